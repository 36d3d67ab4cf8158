"""The mean weighted by sizes equals a loop that repeats each token, and never is a plain mean in silence."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.patching.test_patch import CASES, logits
from vtm.patching import merge_random, patch, recording, unpatch

SCHEDULE = [3, 2, 1]


def image(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, **{"depth": 3, "img_size": 64, "num_classes": 5, "global_pool": "avg", **options})


MODELS = {
    "ViT, fc_norm": lambda: image("vit_tiny_patch16_224", embed_dim=48),
    "ViT, norm": lambda: image("vit_tiny_patch16_224", embed_dim=48, fc_norm=False),
    "ViT, no norm": lambda: image("vit_tiny_patch16_224", embed_dim=48, final_norm=False),
    "ViT, prefix included": lambda: image("vit_tiny_patch16_224", embed_dim=48, pool_include_prefix=True, reg_tokens=2),
    "ViT, no CLS": lambda: image("vit_medium_patch16_gap_240", embed_dim=48, num_heads=3),
    "SigLIP, GAP": lambda: image("vit_base_patch16_siglip_gap_224", embed_dim=48, num_heads=3),
    "EVA-02": lambda: image("eva02_tiny_patch14_224", img_size=70),
    "DINOv3": lambda: image("vit_small_patch16_dinov3"),
    "VideoMAE": lambda: CASES["VideoMAE"].make(),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[request.param]().eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model


@pytest.fixture
def x(model: nn.Module) -> Tensor:
    shape = (2, 8, 3, 32, 32) if hasattr(model, "videomae") else (2, 3, *model.patch_embed.img_size)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def last_tokens(model: nn.Module, x: Tensor) -> Tensor:
    return model.videomae(x).last_hidden_state if hasattr(model, "videomae") else model.forward_features(x)


def pool_by_loop(model: nn.Module, tokens: Tensor, sizes: Tensor) -> Tensor:
    """Repeat each token as often as its size says, average with the library's own code, and classify."""
    rows = []
    for row, size in zip(tokens, sizes, strict=True):
        repeated = [token for token, times in zip(row, size.tolist(), strict=True) for _ in range(int(times))]
        whole = torch.stack(repeated)[None]
        if hasattr(model, "videomae"):
            rows.append(model.classifier(model.fc_norm(whole.mean(1))))
        else:
            rows.append(model.forward_head(whole))
    return torch.cat(rows)


@pytest.mark.parametrize("proportional", [False, True])
def test_the_mean_equals_that_of_repeated_tokens(model: nn.Module, x: Tensor, proportional: bool) -> None:
    patch(model, SCHEDULE, proportional=proportional)
    with recording(model) as trace:
        tokens = last_tokens(model, x)
    plain = logits(model, x)
    patch(model, SCHEDULE, proportional=proportional, pool="size")
    weighed, same_tokens = logits(model, x), last_tokens(model, x)
    assert torch.equal(same_tokens, tokens)  # features are not scaled
    unpatch(model)
    torch.testing.assert_close(weighed, pool_by_loop(model, tokens, trace.sizes[2]))
    assert (weighed - plain).abs().max() > 1e-4


def test_a_schedule_of_zeros_is_equal_to_the_bit(model: nn.Module, x: Tensor) -> None:
    before = logits(model, x)
    assert torch.equal(logits(patch(model, [0, 0, 0], pool="size"), x), before)


def test_a_count_that_is_clamped_to_zero_leaves_the_plain_mean() -> None:
    model = image("vit_tiny_patch16_224", embed_dim=48, img_size=16, class_token=False).eval()
    x = torch.randn(2, 3, 16, 16)
    before = logits(model, x)
    torch.testing.assert_close(logits(patch(model, [5, 5, 5], pool="size"), x), before)


def test_the_head_accepts_the_tokens_of_forward_features_and_no_others() -> None:
    model = patch(MODELS["EVA-02"]().eval(), SCHEDULE, pool="size")
    x = torch.randn(2, 3, 70, 70)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 20, 192)
    assert torch.equal(model.forward_head(tokens), model(x))
    with pytest.raises(RuntimeError, match="have lost their sizes"):
        model.forward_head(tokens * 1)
    model.norm = nn.Identity()
    with pytest.raises(RuntimeError, match="have lost their sizes"):
        model(x)


def test_unpatch_leaves_nothing_behind(model: nn.Module, x: Tensor) -> None:
    before, names = logits(model, x), list(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    classes = [type(module) for module in model.modules()]
    after = logits(patch(model, SCHEDULE, pool="size"), x)
    assert list(model.state_dict()) == names
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, x), after)
        assert torch.equal(logits(unpatch(twin), x), before)
    patch(model, SCHEDULE)  # anew, without weights
    assert not torch.allclose(logits(model, x), after)
    patch(model, SCHEDULE, pool="size")
    patch(model, SCHEDULE, pool="size")
    assert torch.equal(logits(model, x), after)
    assert torch.equal(logits(unpatch(model), x), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert [type(module) for module in model.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_checkpointing_changes_no_gradient(
    model: nn.Module, x: Tensor, reentrant: bool, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(model, SCHEDULE, pool="size").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients(call: Any) -> dict[str, Tensor]:
        model.zero_grad()
        first, second = call(x), call(1.1 * x)  # two forwards before one backward
        (first.square().sum() + second.sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    x.requires_grad_()
    expected = gradients(lambda x: logits(model, x))
    if whole:
        found = gradients(lambda x: checkpoint(lambda x: logits(model, x), x, use_reentrant=reentrant))
    else:
        if hasattr(model, "videomae"):
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        else:
            monkeypatch.setattr(
                "timm.models._manipulate.checkpoint",
                lambda *given, **options: checkpoint(*given, **{**options, "use_reentrant": reentrant}),
            )
            model.set_grad_checkpointing(True)
        found = gradients(lambda x: logits(model, x))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_threads_do_not_disturb_each_other(model: nn.Module, x: Tensor) -> None:
    patch(model, SCHEDULE, pool="size")
    clips = [x * factor for factor in (1.0, 0.5, -1.0, 2.0)] * 4
    expected = [logits(model, clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda clip: logits(model, clip), clips))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    patch(model.to(dtype), SCHEDULE, pool="size")
    with recording(model) as trace:
        tokens = last_tokens(model, x.to(dtype))
        found = logits(model, x.to(dtype))
    assert found.dtype == dtype
    expected = pool_by_loop(unpatch(model).double(), tokens.double(), trace.sizes[2])
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ViT, norm", "EVA-02", "VideoMAE"], indirect=True)
def test_it_is_compiled_and_exported(model: nn.Module, x: Tensor) -> None:
    after = logits(patch(model, SCHEDULE, pool="size"), x)
    torch._dynamo.reset()
    torch.testing.assert_close(logits(torch.compile(model, fullgraph=True, backend="aot_eager"), x), after)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        torch.testing.assert_close(logits(program.module(), x), after)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CASES["SigLIP, no CLS"].make(), r"pools them by attention \(global_pool = map\)"),
        (lambda: CASES["ViT"].make(), r"VisionTransformer takes the class token \(global_pool = token\)"),
        (lambda: image("vit_tiny_patch16_224", global_pool="avgmax"), "has global_pool = avgmax"),
        (lambda: image("vit_tiny_patch16_224", global_pool=""), "has global_pool = none"),
        (lambda: CASES["DeiT distilled"].make(), "Distilled may average its tokens in a way of its own"),
        (lambda: CASES["ViViT"].make(), "VivitModel does not average its tokens"),
        (lambda: CASES["VideoMAE"].make().videomae, "VideoMAEModel does not average its tokens"),
    ],
)  # fmt: skip
def test_models_that_do_not_average_are_refused_unchanged(make: Any, message: str) -> None:
    model = make()
    patch(model, SCHEDULE)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=f'pool="size" weighs the tokens .*{message}; set pool="plain"'):
        patch(model, SCHEDULE, pool="size")
    assert [type(module) for module in model.modules()] == classes


def test_videomae_that_takes_the_first_token_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=32, use_mean_pooling=False
    )
    with pytest.raises(ValueError, match=r"takes the first token \(use_mean_pooling = False\)"):
        patch(transformers.VideoMAEForVideoClassification(config), SCHEDULE, pool="size")


def test_a_pooling_that_is_changed_after_patching_is_followed_or_refused() -> None:
    model = patch(MODELS["ViT, fc_norm"]().eval(), SCHEDULE, pool="size")
    x = torch.randn(2, 3, 64, 64)
    model.reset_classifier(7, "token")
    assert torch.equal(model(x), model.forward_head(model.forward_features(x) * 1))  # CLS needs no sizes
    model.reset_classifier(7, "avgmax")
    with pytest.raises(ValueError, match="does not weigh the mean of global_pool = avgmax"):
        model(x)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)


def test_a_library_that_averages_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = timm.models.vision_transformer.VisionTransformer
    monkeypatch.setattr(kind, "pool", lambda self, x, pool_type=None: x.mean(1))  # with CLS
    model = MODELS["ViT, fc_norm"]()
    with pytest.raises(RuntimeError, match="VisionTransformer averages its tokens in another way than vtm expects"):
        patch(model, SCHEDULE, pool="size")
    assert type(model) is kind


def test_the_loss_and_the_configuration_of_videomae_stay(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = patch(MODELS["VideoMAE"]().eval(), SCHEDULE, pool="size", reduce=merge_random)
    output = model(torch.randn(2, 8, 3, 32, 32), labels=torch.tensor([1, 2]), output_hidden_states=True)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([1, 2])))
    assert len(output.hidden_states) == 4
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(loaded) is transformers.VideoMAEForVideoClassification
    assert loaded.config.architectures == ["VideoMAEForVideoClassification"]

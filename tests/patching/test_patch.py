"""Patched models merge exactly what the loops say, stay trainable, exportable and picklable, and can be restored."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.patching.models import VJEPA2, make_host, make_siglip2
from vtm.merging import unmerge
from vtm.patching import (
    constant,
    drop_random,
    drop_similar,
    merge_hybrid,
    merge_random,
    merge_similar,
    patch,
    recording,
    unpatch,
)
from vtm.patching.motionformer import Motionformer

SCHEDULE = [3, 2, 1]


@dataclass(frozen=True)
class Case:
    """A tiny model with random weights, its input, and its tokens: N, p protected ones and frames."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    num_tokens: int
    protected: int
    groups: str = "clip"
    frames: int = 1
    frame_of: Callable[[int], int] = lambda token: 0


def image(name: str, num_tokens: int, protected: int, *, size: int = 64, **options: Any) -> Case:
    make = partial(timm.create_model, name, depth=3, img_size=size, num_classes=5, **options)
    return Case(make, (2, 3, size, size), num_tokens, protected)


def video(family: str, groups: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        options: dict[str, Any] = {
            "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48,
            "image_size": 32, "num_labels": 5, "hidden_dropout_prob": 0.0,
        }  # fmt: skip
        if family == "vivit":
            config = transformers.VivitConfig(num_frames=8, tubelet_size=[2, 8, 8], **options)
            return transformers.VivitForVideoClassification(config)
        if family == "videomae":
            config = transformers.VideoMAEConfig(num_frames=8, tubelet_size=2, patch_size=8, **options)
            return transformers.VideoMAEForVideoClassification(config)
        config = transformers.TimesformerConfig(num_frames=4, patch_size=8, **options)
        return transformers.TimesformerForVideoClassification(config)

    return make


CLIP = (2, 8, 3, 32, 32)  # 4 steps of 4 × 4 tokens
IMAGE = (2, 3, 32, 32)  # 4 × 4 tokens
CASES = {
    "ViT": image("vit_tiny_patch16_224", 17, 1, embed_dim=48),
    "DeiT distilled": image("deit_tiny_distilled_patch16_224", 18, 2),
    "DeiT-III, LayerScale": image("deit3_small_patch16_224", 17, 1, init_values=0.5),
    "DINOv2, registers": image("vit_small_patch14_reg4_dinov2", 30, 5, size=70, init_values=0.5),
    "SigLIP, no CLS": image("vit_base_patch16_siglip_224", 16, 0, embed_dim=48, num_heads=3),
    "q and k norms": image("vit_medium_patch16_gap_240", 16, 0, qk_norm=True),
    "EVA-02, RoPE": image("eva02_tiny_patch14_224", 26, 1, size=70),
    "DINOv3, RoPE": image("vit_small_patch16_dinov3", 21, 5, init_values=0.5),
    "ViViT": Case(video("vivit", "clip"), CLIP, 65, 1),
    "ViViT, frames": Case(video("vivit", "frame"), CLIP, 65, 1, "frame", 4, lambda token: (token - 1) // 16),
    "VideoMAE": Case(video("videomae", "clip"), CLIP, 64, 0),
    "VideoMAE, frames": Case(video("videomae", "frame"), CLIP, 64, 0, "frame", 4, lambda token: token // 16),
    "TimeSformer": Case(
        video("timesformer", "frame"), (2, 4, 3, 32, 32), 65, 1, "frame", 4, lambda token: (token - 1) % 4
    ),
    "V-JEPA 2, RoPE": Case(make_host("VJEPA2ForVideoClassification", **VJEPA2), CLIP, 64, 0),
    "V-JEPA 2, RoPE, frames": Case(
        make_host("VJEPA2ForVideoClassification", attn_implementation="eager", **VJEPA2),
        CLIP, 64, 0, "frame", 4, lambda token: token // 16,
    ),
    "CLIP of transformers": Case(make_host("CLIPForImageClassification"), IMAGE, 17, 1),
    "SigLIP of transformers": Case(make_host("SiglipForImageClassification"), IMAGE, 16, 0),
    "SigLIP 2 of transformers": Case(make_siglip2, IMAGE, 16, 0),
    "DINOv2 of transformers": Case(make_host("Dinov2ForImageClassification"), IMAGE, 17, 1),
    "DINOv2 of transformers, registers": Case(
        make_host("Dinov2WithRegistersForImageClassification", use_swiglu_ffn=True), IMAGE, 21, 5
    ),
    "DINOv3 of transformers, RoPE": Case(
        make_host("DINOv3ViTModel", num_register_tokens=4, use_gated_mlp=True, pos_embed_rescale=None), IMAGE, 21, 5
    ),
    "Motionformer": Case(
        partial(Motionformer, num_classes=5, num_frames=8, image_size=64, width=24, depth=3, num_heads=3),
        (2, 3, 8, 64, 64), 65, 1, "frame", 4, lambda token: (token - 1) // 16,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def model(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = case.make().eval().double()
    for parameter in model.parameters():  # the initial values of transformers leave the output nearly constant
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model


@pytest.fixture
def x(case: Case) -> Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    if isinstance(output, Tensor):
        return output
    found: Tensor = output.logits if hasattr(output, "logits") else output.pooler_output
    return found


def patched(model: nn.Module, case: Case, schedule: list[int] | None = None, **options: Any) -> nn.Module:
    return patch(model, SCHEDULE if schedule is None else schedule, **{"groups": case.groups, **options})


@pytest.mark.parametrize("proportional", [False, True])
def test_a_schedule_of_zeros_is_equal_to_the_bit(case: Case, model: nn.Module, x: Tensor, proportional: bool) -> None:
    before = logits(model, x)
    assert torch.equal(logits(patched(model, case, [0, 0, 0], proportional=proportional), x), before)


@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("keys", ["mean", "concat"])
def test_sizes_add_up_and_the_number_of_tokens_follows_the_schedule(
    case: Case, model: nn.Module, x: Tensor, proportional: bool, keys: str
) -> None:
    before = logits(model, x)
    patched(model, case, proportional=proportional, keys=keys)
    with recording(model) as trace:
        after = logits(model, x)
    left = [case.num_tokens - case.frames * taken for taken in (3, 5, 6)]
    assert [size.shape[1] for size in trace.sizes.values()] == left
    assert all(torch.equal(size.sum(1), torch.full((2,), case.num_tokens).double()) for size in trace.sizes.values())
    assert not torch.allclose(after, before, rtol=1e-6)
    whole = trace.clip_grouping()
    for row in range(2):
        for group in range(whole.num_groups):
            members = (whole.index[row] == group).nonzero().flatten().tolist()
            assert len({case.frame_of(token) for token in members if token >= case.protected}) <= 1
            assert len(members) == 1 or members[0] >= case.protected
            assert trace.sizes[2][row, group] == len(members)
    assert unmerge(torch.zeros(2, left[-1], 3), whole).shape == (2, case.num_tokens, 3)


def test_what_merges_nothing_alike_is_found_in_identical_tokens(
    request: pytest.FixtureRequest, case: Case, model: nn.Module, x: Tensor
) -> None:
    """A clip of one color has equal tokens but for their positions; merging few of them changes little."""
    flat = x[:1, ..., :1, :1].expand_as(x[:1])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.zero_()
    before = logits(model, flat)
    after = logits(patched(model, case, [1, 0, 0]), flat)
    if "RoPE" not in request.node.callspec.id:  # equal tokens at other places have other rotary embeddings
        assert (after - before).abs().max() < 0.3 * before.abs().max()


@pytest.mark.parametrize("reduce", [drop_similar, merge_random, drop_random, partial(merge_hybrid, threshold=0.5)])
def test_every_reduction_runs(case: Case, model: nn.Module, x: Tensor, reduce: Any) -> None:
    patched(model, case, reduce=reduce)
    torch.manual_seed(0)
    with recording(model) as trace:
        after = logits(model, x)
    assert after.isfinite().all()
    if reduce in (drop_similar, drop_random):
        assert all((size == 1).all() for size in trace.sizes.values())
    torch.manual_seed(0)
    assert torch.equal(logits(model, x), after)


def test_a_batch_gives_what_its_clips_give_alone(case: Case, model: nn.Module, x: Tensor) -> None:
    patched(model, case)
    alone = torch.cat([logits(model, x[:1]), logits(model, x[1:])])
    torch.testing.assert_close(logits(model, x), alone)


def test_a_patched_model_is_copied_pickled_and_restored(case: Case, model: nn.Module, x: Tensor) -> None:
    before, names = logits(model, x), list(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    classes = {name: type(module) for name, module in model.named_modules()}
    after = logits(patched(model, case), x)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), x), after)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(unpatch(twin), x), before)
    assert torch.equal(logits(model, x), after)
    patched(model, case, [1, 1, 1])
    assert torch.equal(logits(patched(model, case), x), after)  # patching again replaces
    unpatch(model)
    assert torch.equal(logits(model, x), before)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not any(module._forward_hooks for module in model.modules())


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    first, second = logits(model, x), logits(model, 1.1 * x)  # two forwards before one backward
    (first.square().sum() + second.sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(
    case: Case, model: nn.Module, x: Tensor, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(model, case).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected = gradients(model, x)
    if hasattr(model, "set_grad_checkpointing"):
        checkpoint = torch.utils.checkpoint.checkpoint
        for name in ("timm.models._manipulate.checkpoint", "vtm.patching.motionformer.checkpoint"):
            monkeypatch.setattr(
                name, lambda *given, **options: checkpoint(*given, **{**options, "use_reentrant": reentrant})
            )
        model.set_grad_checkpointing(True)
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    x = x.requires_grad_()  # as reentrant checkpointing needs it
    found = gradients(model, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_step_of_training_lowers_the_loss(case: Case, model: nn.Module, x: Tensor) -> None:
    patched(model, case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    target = torch.tensor([0, 1])
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(logits(model, x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_sizes_exact(case: Case, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    patched(model.to(dtype), case)
    with recording(model) as trace:
        assert logits(model, x.to(dtype)).isfinite().all()
    assert trace.sizes[2].dtype == torch.float32
    assert torch.equal(trace.sizes[2].sum(1), torch.full((2,), float(case.num_tokens)))


def test_autocast_merges_like_float32_up_to_rounding(case: Case, model: nn.Module, x: Tensor) -> None:
    patched(model.float(), case)
    with recording(model) as trace, torch.autocast("cpu", dtype=torch.bfloat16):
        assert logits(model, x.float()).isfinite().all()
    assert torch.equal(trace.sizes[2].sum(1), torch.full((2,), float(case.num_tokens)))


@pytest.mark.slow
def test_a_patched_model_is_compiled_and_exported(case: Case, model: nn.Module, x: Tensor) -> None:
    after = logits(patched(model, case), x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, x), after)
    torch.testing.assert_close(logits(torch.export.export(model, (x,)).module(), x), after)


def vit(**options: Any) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", depth=3, img_size=64, num_classes=5, embed_dim=48, **options
    ).eval()


@pytest.mark.parametrize(
    "schedule",
    [[1, 2], [1, 2, 3, 4], [1, -1, 0], [1.0, 2, 3], [True, 1, 1], constant(12, 3)],
    ids=lambda schedule: ",".join(map(str, schedule)),
)
def test_a_schedule_that_does_not_fit_is_an_error(schedule: list[int]) -> None:
    with pytest.raises(
        ValueError, match=f"a schedule of 3 whole numbers >= 0, .* of VisionTransformer, got {len(schedule)}"
    ):
        patch(vit(), schedule)


@pytest.mark.parametrize("schedule", [8, constant, torch.ones(3), None])
def test_what_is_not_a_schedule_is_an_error(schedule: Any) -> None:
    with pytest.raises(
        TypeError, match=r"expected a schedule of 3 whole numbers, such as constant\(3, 8\), or a functi"
    ):
        patch(vit(), schedule)


def test_the_hybrid_reduction_needs_its_threshold() -> None:
    with pytest.raises(ValueError, match=r"set reduce=partial\(merge_hybrid, threshold=0\.4\)"):
        patch(vit(), constant(3, 2), reduce=cast("Any", merge_hybrid))


def test_a_schedule_may_be_a_function_of_the_model() -> None:
    model = patch(vit(), lambda model: constant(len(model.blocks), 4))
    with recording(model) as trace:
        model(torch.randn(1, 3, 64, 64))
    assert [size.shape[1] for size in trace.sizes.values()] == [13, 9, 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beit_base_patch16_224", r"but timm\.models\.beit\.Beit contains none"),
        ("vit_base_patch16_rpn_224", r"blocks of .*VisionTransformer are of .*ResPostBlock, .* only .*\.Block itself"),
        ("vit_small_patch16_rope_mixed_224", "Eva cannot be patched: its blocks have rotary embeddings of their own"),
        ("swin_tiny_patch4_window7_224", r"but .*SwinTransformer contains none"),
    ],
)
def test_other_models_are_refused(name: str, message: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(TypeError, match=message):
        patch(model, [0] * 12)


def test_a_block_with_a_forward_of_its_own_is_refused() -> None:
    model = vit()
    model.blocks[1].forward = lambda x: x
    with pytest.raises(TypeError, match="or have a forward of their own"):
        patch(model, SCHEDULE)
    model = vit()
    model.blocks[1].__class__ = type("Changed", (type(model.blocks[0]),), {"forward": lambda self, x: x})
    with pytest.raises(TypeError, match="Changed"):
        patch(model, SCHEDULE)


def test_a_library_whose_block_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    block = timm.models.vision_transformer.Block
    original = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x, **options: original(self, x, **options) + 0.01)
    model = vit()
    with pytest.raises(RuntimeError, match=r"Block of timm .* computes something else than vtm expects: .* differ by"):
        patch(model, SCHEDULE)
    assert type(model.blocks[0]) is block
    assert not hasattr(model.blocks[0], "merging")


def test_methods_that_return_tokens_between_blocks_are_refused() -> None:
    model = patch(vit(), SCHEDULE)
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="forward_intermediates returns the tokens between blocks"):
        model.forward_intermediates(x)
    unpatch(model).forward_intermediates(x)


def test_wrong_options_are_errors() -> None:
    with pytest.raises(ValueError, match="expected keys to be one of mean, concat, got 'max'"):
        patch(vit(), SCHEDULE, keys="max")
    with pytest.raises(ValueError, match="expected groups to be one of clip, frame, got 'video'"):
        patch(vit(), SCHEDULE, groups="video")
    with (
        pytest.raises(ValueError, match="expected a patched model, got VisionTransformer without patch"),
        recording(vit()),
    ):
        pass
    with recording(patch(vit(), [0, 0, 0])) as trace:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        trace.clip_grouping()


def test_the_mask_of_the_model_stays_with_its_tokens() -> None:
    """Tokens that the mask hides from all others must not change them, wherever merging has moved the others."""
    model = patch(vit().double(), [2, 2, 0])
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    tokens = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(x))))
    assert tokens.shape == (1, 13, 48)
    mask = torch.ones(17, 17, dtype=torch.bool)
    with recording(model) as trace:
        model.forward_features(x, attn_mask=mask)
    torch.testing.assert_close(model.forward_features(x, attn_mask=mask), model.forward_features(x))
    hidden = next(
        n for n in range(2, 17) if (trace.clip_grouping().index[0] == trace.clip_grouping().index[0, n]).sum() == 1
    )
    mask[:, hidden] = False
    mask[hidden, hidden] = True
    additive = torch.zeros(17, 17, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(model.forward_features(x, attn_mask=mask), model.forward_features(x, attn_mask=additive))
    with pytest.raises(ValueError, match="cannot be causal"):
        model.forward_features(x, is_causal=True)


def test_timesformer_needs_groups_by_frame() -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match='TimesformerModel attends within frames: set groups="frame"'):
        patch(CASES["TimeSformer"].make(), SCHEDULE)
    config = transformers.TimesformerConfig(
        num_hidden_layers=3, hidden_size=24, num_attention_heads=3, attention_type="space_only"
    )
    with pytest.raises(TypeError, match="only attention_type = divided_space_time is supported, and it has space_only"):
        patch(transformers.TimesformerModel(config), SCHEDULE, groups="frame")


def test_the_configuration_of_videomae_is_shared_again_after_unpatch() -> None:
    pytest.importorskip("transformers")
    model = CASES["VideoMAE"].make()
    other = type(model)(model.config)
    patch(model, SCHEDULE)
    assert model.config._attn_implementation == other.config._attn_implementation != "vtm_proportional"
    unpatch(model)
    assert all(module.config is model.config for module in model.modules() if hasattr(module, "config"))


def test_merge_similar_is_the_default() -> None:
    x = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    model = vit()
    assert torch.equal(patch(model, SCHEDULE)(x), patch(model, SCHEDULE, reduce=merge_similar)(x))


@pytest.mark.parametrize("reduce", [merge_random, drop_random])
def test_a_generator_of_its_own_is_refused_where_gradients_flow(reduce: Any) -> None:
    model, x = vit(), torch.randn(1, 3, 64, 64)
    patch(model, SCHEDULE, reduce=partial(reduce, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError, match="draws other tokens when activation checkpointing computes a block again"):
        model(x)
    with torch.no_grad():
        model(x)
    patch(model, SCHEDULE, reduce=reduce)(x).sum().backward()

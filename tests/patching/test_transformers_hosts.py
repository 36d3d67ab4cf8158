"""Patched models of transformers compute what ToMe says, token for token, and refuse what cannot be merged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.patching.models import VJEPA2, make_host, make_siglip2, to_patches
from tests.patching.motionformer_loops import Weights, gelu, layer_norm
from tests.patching.vit_loops import (
    CLIP_NAMES,
    DINO_NAMES,
    SCALES,
    VJEPA2_NAMES,
    Family,
    Rotate,
    cut,
    dinov3_rotation,
    quick_gelu,
    run,
    silu,
    tanh_gelu,
    vjepa2_rotation,
)
from vtm.patching import patch, recording, split_hidden_states, unpatch


def patches(x: Tensor, weights: Weights, name: str, *, frames: int = 1) -> Tensor:
    kernel = weights[f"{name}.weight"].flatten(1)
    bias = weights.get(f"{name}.bias", torch.zeros(len(kernel), dtype=kernel.dtype))
    return torch.stack([kernel @ cube.flatten() + bias for cube in cut(x, 8, frames)])


def embed_clip(x: Tensor, weights: Weights) -> Tensor:
    tokens = patches(x, weights, "embeddings.patch_embedding")
    tokens = torch.cat([weights["embeddings.class_embedding"][None], tokens])
    return layer_norm(tokens + weights["embeddings.position_embedding.weight"], weights, "pre_layrnorm", eps=1e-5)


def embed_siglip(x: Tensor, weights: Weights) -> Tensor:
    return patches(x, weights, "embeddings.patch_embedding") + weights["embeddings.position_embedding.weight"]


def embed_siglip2(x: Tensor, weights: Weights) -> Tensor:
    rows = [cube[:, 0].permute(1, 2, 0).flatten() for cube in cut(x, 8)]
    kernel, bias = weights["embeddings.patch_embedding.weight"], weights["embeddings.patch_embedding.bias"]
    tokens = torch.stack([kernel @ row + bias for row in rows])
    return tokens + weights["embeddings.position_embedding.weight"].float()  # it resizes them in float32


def embed_dinov2(x: Tensor, weights: Weights) -> Tensor:
    tokens = patches(x, weights, "embeddings.patch_embeddings.projection")
    tokens = torch.cat([weights["embeddings.cls_token"][0], tokens]) + weights["embeddings.position_embeddings"][0]
    registers = weights.get("embeddings.register_tokens", torch.empty(1, 0, 24))[0]
    return torch.cat([tokens[:1], registers.to(tokens.dtype), tokens[1:]])


def embed_dinov3(x: Tensor, weights: Weights) -> Tensor:
    tokens = patches(x, weights, "embeddings.patch_embeddings")
    return torch.cat([weights["embeddings.cls_token"][0], weights["embeddings.register_tokens"][0], tokens])


def embed_vjepa2(x: Tensor, weights: Weights) -> Tensor:
    return patches(x, weights, "encoder.embeddings.patch_embeddings.proj", frames=2)


@dataclass(frozen=True)
class Oracle:
    """A model of transformers, its part that returns the tokens, and the loops that compute the same."""

    make: Callable[[], nn.Module]
    tower: str
    embed: Callable[[Tensor, Weights], Tensor]
    family: Family
    num_heads: int = 3
    rotate: Rotate = lambda x, place: x
    frames: int = 0


def dino(blocks: str, mlp: tuple[str, ...], activate: Any, eps: float, protected: int, norm: str) -> Family:
    return Family(blocks, (*DINO_NAMES, *mlp), SCALES, activate, eps, protected, norm)


GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PLAIN = ("mlp.fc1", "mlp.fc2")
SIGLIP = Family("encoder.layers", CLIP_NAMES, (), tanh_gelu, 1e-6, 0, "post_layernorm")
VJEPA2_FAMILY = Family("encoder.layer", VJEPA2_NAMES, (), gelu, 1e-6, 0, "encoder.layernorm")
ORACLES = {
    "CLIP": Oracle(
        make_host("CLIPForImageClassification"), "vision_model", embed_clip,
        Family("encoder.layers", CLIP_NAMES, (), quick_gelu, 1e-5, 1, ""),
    ),
    "SigLIP": Oracle(make_host("SiglipForImageClassification"), "vision_model", embed_siglip, SIGLIP),
    "SigLIP 2": Oracle(make_siglip2, "model.vision_model", embed_siglip2, SIGLIP),
    "DINOv2": Oracle(
        make_host("Dinov2ForImageClassification"), "dinov2", embed_dinov2,
        dino("encoder.layer", PLAIN, gelu, 1e-6, 1, "layernorm"),
    ),
    "DINOv2, registers": Oracle(
        make_host("Dinov2WithRegistersForImageClassification", use_swiglu_ffn=True), "dinov2_with_registers",
        embed_dinov2, dino("encoder.layer", GATED, silu, 1e-6, 5, "layernorm"),
    ),
    "DINOv3": Oracle(
        make_host("DINOv3ViTModel", num_register_tokens=4, use_gated_mlp=True), "", embed_dinov3,
        dino("model.layer", GATED, gelu, 1e-5, 5, "norm"), rotate=dinov3_rotation(5, 4, 8),
    ),
    "V-JEPA 2": Oracle(
        make_host("VJEPA2ForVideoClassification", **VJEPA2), "vjepa2", embed_vjepa2, VJEPA2_FAMILY,
        num_heads=2, rotate=vjepa2_rotation(4, 14),
    ),
    "V-JEPA 2, frames": Oracle(
        make_host("VJEPA2ForVideoClassification", **VJEPA2), "vjepa2", embed_vjepa2, VJEPA2_FAMILY,
        num_heads=2, rotate=vjepa2_rotation(4, 14), frames=4,
    ),
}  # fmt: skip


@pytest.fixture(params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return ORACLES[request.param]


@pytest.fixture
def model(oracle: Oracle) -> nn.Module:
    torch.manual_seed(0)
    model = oracle.make().eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model


def draw(oracle: Oracle) -> Tensor:
    shape = (2, 8, 3, 32, 32) if oracle.embed is embed_vjepa2 else (2, 3, 32, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(model: Any, oracle: Oracle, x: Tensor) -> Tensor:
    tower = model.get_submodule(oracle.tower)
    if oracle.embed is embed_siglip2:
        output = tower(**to_patches(x))
    else:
        output = tower(x, **({"skip_predictor": True} if oracle.embed is embed_vjepa2 else {}))
    found: Tensor = output.last_hidden_state
    return found


@pytest.mark.parametrize("proportional", [False, True])
def test_the_tokens_are_those_of_the_loops(oracle: Oracle, model: nn.Module, proportional: bool) -> None:
    x = draw(oracle)
    schedule = [3, 2, 1]
    patch(model, schedule, groups="frame" if oracle.frames else "clip", proportional=proportional)
    weights = {name: value.detach() for name, value in model.get_submodule(oracle.tower).state_dict().items()}
    with recording(model) as trace, torch.no_grad():
        found = tokens(model, oracle, x)
    for row in range(1 if oracle.embed is embed_vjepa2 else 2):
        pixels = x[row].transpose(0, 1) if x.ndim == 5 else x[row][:, None]
        expected, size = run(
            oracle.embed(pixels, weights),
            weights,
            oracle.family,
            num_heads=oracle.num_heads,
            schedule=schedule,
            proportional=proportional,
            rotate=oracle.rotate,
            frames=oracle.frames or 1,
        )
        assert torch.equal(trace.sizes[2][row], size)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_are_split(oracle: Oracle, model: nn.Module, dtype: torch.dtype) -> None:
    x = draw(oracle).to(dtype)
    patch(model.to(dtype), [3, 0, 1], groups="frame" if oracle.frames else "clip")
    tower = model.get_submodule(oracle.tower)
    given = to_patches(x) if oracle.embed is embed_siglip2 else {"x": x}
    options = {"skip_predictor": True} if oracle.embed is embed_vjepa2 else {}
    with recording(model) as trace:
        output = tower(*given.values(), output_hidden_states=True, **options)
    states = split_hidden_states(model, output.hidden_states)
    first = states[0].x.shape[1]
    assert [state.x.shape[1] for state in states] == [first - (oracle.frames or 1) * taken for taken in (0, 3, 3, 4)]
    assert all(state.x.shape[-1] == states[0].x.shape[-1] for state in states)
    assert torch.equal(states[3].size, trace.sizes[2])
    assert torch.equal(states[3].place, trace.clip_grouping().anchor)
    assert output.last_hidden_state.shape == states[3].x.shape


def test_a_changed_block_is_noticed(oracle: Oracle, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    block = type(next(module for module in model.modules() if isinstance(module, nn.ModuleList))[0])
    original = block.forward

    def with_other_tokens(self: Any, x: Tensor, *args: Any, **options: Any) -> Any:
        return original(self, 1.1 * x, *args, **options)

    monkeypatch.setattr(block, "forward", with_other_tokens)
    with pytest.raises(RuntimeError, match=r"of transformers .* computes something else than vtm expects"):
        patch(model, [3, 2, 1], groups="frame" if oracle.frames else "clip")
    assert not any("merging" in vars(module) for module in model.modules())


@pytest.mark.parametrize("proportional", [False, True])
def test_an_attention_that_ignores_given_places_is_noticed(monkeypatch: pytest.MonkeyPatch, proportional: bool) -> None:
    model: Any = ORACLES["V-JEPA 2"].make()
    attention = type(model.vjepa2.encoder.layer[0].attention)
    original = attention.get_position_ids
    monkeypatch.setattr(attention, "get_position_ids", lambda self, x, masks=None: original(self, x))
    with pytest.raises(RuntimeError, match="computes something else than vtm expects"):
        patch(model, [1, 1, 1], proportional=proportional)


def test_eager_attention_of_vjepa2_weighs_tokens_like_sdpa(model_of_vjepa2: Any) -> None:
    x = torch.randn(2, 8, 3, 32, 32)
    patch(model_of_vjepa2, [20, 10, 0])
    expected = model_of_vjepa2(x).logits
    model_of_vjepa2.set_attn_implementation("eager")
    torch.testing.assert_close(patch(model_of_vjepa2, [20, 10, 0])(x).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(patch(model_of_vjepa2, [20, 10, 0], proportional=False)(x).logits, expected, atol=1e-4)


@pytest.fixture
def model_of_vjepa2() -> Any:
    torch.manual_seed(0)
    model = make_host("VJEPA2ForVideoClassification", **VJEPA2)().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return model


def test_the_predictor_of_vjepa2_is_refused(model_of_vjepa2: Any) -> None:
    x = torch.randn(2, 8, 3, 32, 32)
    base = model_of_vjepa2.vjepa2
    mask = [torch.arange(8).expand(2, -1)]
    before = base(x, context_mask=mask, target_mask=mask)
    assert torch.equal(
        patch(base, [0, 0, 0])(x, context_mask=mask, target_mask=mask).masked_hidden_state, before.masked_hidden_state
    )
    patch(base, [0, 2, 0])
    for options in ({}, {"context_mask": mask, "skip_predictor": True}, {"target_mask": mask, "skip_predictor": True}):
        with pytest.raises(ValueError, match="predictor and the masks of V-JEPA 2 need the tokens at all positions"):
            base(x, **options)
    with pytest.raises(ValueError, match="predictor and the masks"):
        base(x, None, None, False)
    assert base(x, None, None, True).last_hidden_state.shape == base.get_vision_features(x).shape == (2, 62, 28)
    after = unpatch(base)(x, context_mask=mask, target_mask=mask)
    assert torch.equal(after.predictor_output.last_hidden_state, before.predictor_output.last_hidden_state)
    assert not base._forward_pre_hooks_with_kwargs


def test_vjepa2_takes_clips_of_another_length(model_of_vjepa2: Any) -> None:
    patch(model_of_vjepa2, [3, 3, 3])
    with recording(model_of_vjepa2) as trace:
        model_of_vjepa2(torch.randn(1, 12, 3, 32, 32))
    assert torch.equal(trace.sizes[2].sum(1), torch.tensor([96.0]))
    with pytest.raises(ValueError, match='groups="frame" needs all 64 tokens of a clip, got 96'):
        patch(model_of_vjepa2, [3, 3, 3], groups="frame")(torch.randn(1, 12, 3, 32, 32))


def test_padding_of_siglip2_is_refused() -> None:
    model: Any = make_siglip2()
    given = to_patches(torch.randn(2, 3, 32, 32))
    padded = {**given, "pixel_attention_mask": torch.arange(16).expand(2, -1) < 12}
    before = model.model(**padded).logits
    assert torch.equal(patch(model.model, [0, 0, 0])(**padded).logits, before)
    patch(model.model, [0, 1, 0])
    with pytest.raises(ValueError, match="a patched SigLIP 2 cannot merge images with padding"):
        model.model(**padded)
    with pytest.raises(ValueError, match="a patched SigLIP 2 cannot merge images with padding"):
        model.model.vision_model(padded["pixel_values"], padded["pixel_attention_mask"], padded["spatial_shapes"])
    assert model.model(**given).logits.shape == (2, 5)
    assert torch.equal(unpatch(model.model)(**padded).logits, before)


@pytest.mark.parametrize(
    ("name", "tower"),
    [("CLIPModel", "vision_model"), ("SiglipModel", "vision_model"), ("CLIPVisionModelWithProjection", "vision_model")],
)
def test_only_the_vision_tower_is_patched(name: str, tower: str) -> None:
    model: Any = make_host(name)().eval()
    text = {name: type(module) for name, module in model.named_modules() if name.startswith("text_model")}
    pixels = torch.randn(2, 3, 32, 32)
    patch(model, [3, 2, 1])
    assert {name: type(module) for name, module in model.named_modules() if name.startswith("text_model")} == text
    with recording(model) as trace:
        output = model.get_submodule(tower)(pixels, output_hidden_states=True)
    assert [state.x.shape[1] for state in split_hidden_states(model, output.hidden_states)] == [
        output.hidden_states[0].shape[1] - taken for taken in (0, 3, 5, 6)
    ]
    assert torch.equal(split_hidden_states(model, output.hidden_states)[-1].size, trace.sizes[2])
    assert output.last_hidden_state.shape[-1] == 24


def test_the_pooling_of_siglip_stays(model_of_siglip: Any) -> None:
    """The attention of the head sees the merged tokens, each once."""
    x = torch.randn(2, 3, 32, 32)
    output = patch(model_of_siglip, [3, 2, 1])(x)
    torch.testing.assert_close(output.pooler_output, model_of_siglip.head(output.last_hidden_state))
    with pytest.raises(ValueError, match='pool="size" weighs the tokens where a model averages them'):
        patch(model_of_siglip, [3, 2, 1], pool="size")


@pytest.fixture
def model_of_siglip() -> Any:
    return make_host("SiglipVisionModel")().eval()


@pytest.mark.parametrize("name", ["Dinov2Backbone", "Dinov2WithRegistersBackbone", "DINOv3ViTBackbone"])
def test_backbones_whose_maps_need_all_tokens_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"expected a model that contains one of .* but .*{name} contains none"):
        patch(make_host(name)(), [1, 1, 1])


def test_masks_need_an_attention_that_takes_them() -> None:
    model: Any = make_host("Dinov2Model")().eval()
    mask = torch.ones(2, 17, dtype=torch.bool)
    x = torch.randn(2, 3, 32, 32)
    patch(model, [2, 2, 2])
    torch.testing.assert_close(model(x, attention_mask=mask).last_hidden_state, model(x).last_hidden_state)
    mask[:, 9:12] = False
    masked = model(x, attention_mask=mask).last_hidden_state
    assert not torch.allclose(masked, model(x).last_hidden_state, atol=1e-3)
    model.set_attn_implementation("eager")  # whose mask is additive
    torch.testing.assert_close(model(x, attention_mask=mask).last_hidden_state, masked)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="expected eager or sdpa, got flex_attention"):
        patch(model, [2, 2, 2])


CLASSIFIERS = {
    name: ORACLES[name] for name in ("CLIP", "SigLIP", "SigLIP 2", "DINOv2", "DINOv2, registers")
}  # those that average


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_mean_by_sizes_is_that_of_repeated_tokens(name: str) -> None:
    oracle = CLASSIFIERS[name]
    torch.manual_seed(0)
    model: Any = oracle.make().eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    x = draw(oracle)
    kinds = [type(module) for module in model.modules()]
    plain = patch(model, [3, 2, 1])(x).logits
    patch(model, [3, 2, 1], pool="size")
    with recording(model) as trace:
        weighed = model(x).logits
    last = tokens(model, oracle, x)
    assert [type(module) for module in unpatch(model).modules()] == kinds
    assert (weighed - plain).abs().max() > 1e-3
    protected = oracle.family.protected
    classifier = getattr(model, "model", model).classifier
    for row in range(2):
        size = trace.sizes[2][row, protected:].to(torch.int64)
        mean = last[row, protected:].repeat_interleave(size, dim=0).mean(0)
        features = torch.cat([last[row, 0], mean]) if oracle.family.scales else mean
        torch.testing.assert_close(weighed[row], classifier(features))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_that_averages_otherwise_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CLASSIFIERS[name].make()
    kind = type(getattr(model, "model", model))
    original = kind.forward

    def twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(kind, "forward", twice)
    with pytest.raises(RuntimeError, match=f"{kind.__name__} averages its tokens in another way than vtm expects"):
        patch(model, [3, 2, 1], pool="size")
    assert type(getattr(model, "model", model)) is kind


def test_the_loss_and_the_name_of_a_classifier_stay(tmp_path: Any) -> None:
    model: Any = CLASSIFIERS["DINOv2"].make().eval()
    x, labels = draw(CLASSIFIERS["DINOv2"]).float(), torch.tensor([0, 3])
    patch(model, [2, 2, 2], pool="size")
    output = model(x, labels=labels)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    assert torch.equal(model(x, labels=labels, return_dict=False)[1], output.logits)
    model.save_pretrained(tmp_path)
    assert type(unpatch(model)).from_pretrained(tmp_path).config.architectures == ["Dinov2ForImageClassification"]

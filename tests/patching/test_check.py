"""The self-check notices a library that computes something else, wherever the difference lies."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.patching.test_patch import CASES, SCHEDULE, patched, vit
from vtm.patching import patch

BLOCK = timm.models.vision_transformer.Block


def without_layer_scale(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    x = x + self.drop_path1(self.attn(self.norm1(x), attn_mask=attn_mask))
    return x + self.drop_path2(self.mlp(self.norm2(x)))


def without_drop_path(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    x = x + self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask))
    return x + self.ls2(self.mlp(self.norm2(x)))


def with_another_mlp(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
    return x + self.drop_path2(self.ls2(self.mlp(x)))


def parallel(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    return x + self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)) + self.ls2(self.mlp(self.norm2(x)))


def another_in_the_last(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    return (parallel if getattr(self, "is_last", False) else original)(self, x, attn_mask=attn_mask)


original = BLOCK.forward


@pytest.mark.parametrize(
    ("forward", "options"),
    [
        (without_layer_scale, {"init_values": 1e-6}),
        (without_drop_path, {"drop_path_rate": 0.1}),
        (with_another_mlp, {}),
        (parallel, {"init_values": 1e-6}),
        (another_in_the_last, {}),
    ],
)
def test_a_changed_forward_is_noticed(monkeypatch: pytest.MonkeyPatch, forward: Any, options: dict[str, Any]) -> None:
    model = vit(**options)
    model.blocks[-1].is_last = True
    for block in model.blocks:
        nn.init.zeros_(block.mlp.fc2.weight)  # a half that does nothing hides what it should do
    monkeypatch.setattr(BLOCK, "forward", forward)
    with pytest.raises(RuntimeError, match=r"Block of timm .* computes something else than vtm expects: .* differ by"):
        patch(model, SCHEDULE)
    assert all(type(block) is BLOCK and not hasattr(block, "merging") for block in model.blocks)
    assert not any(module._forward_hooks for module in model.modules())
    monkeypatch.setattr(BLOCK, "forward", original)
    patch(model, SCHEDULE)


class DeafAttention(timm.layers.Attention):
    """An attention that ignores its mask."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        return super().forward(x)


class OwnAttention(nn.Module):
    """An attention without the layers that vtm expects."""

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class OtherKeys(timm.layers.Attention):
    """An attention whose `k_norm` is not given the keys."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        self.k_norm(x.mean(1))
        return x


def test_an_attention_that_ignores_the_sizes_is_noticed() -> None:
    model = vit(attn_layer=DeafAttention)
    with pytest.raises(RuntimeError, match="computes something else than vtm expects"):
        patch(model, SCHEDULE)
    patch(model, SCHEDULE, proportional=False)


def test_an_attention_without_keys_is_refused() -> None:
    with pytest.raises(TypeError, match=r"VisionTransformer has no layer attn\.k_norm, whose output are its keys"):
        patch(vit(attn_layer=OwnAttention), SCHEDULE)
    with pytest.raises(
        RuntimeError, match="cannot be run in the way vtm expects: block 0 computes its keys in another"
    ):
        patch(vit(attn_layer=OtherKeys), SCHEDULE)


def test_the_check_changes_nothing_of_the_model() -> None:
    model = vit(drop_path_rate=0.2, proj_drop_rate=0.1)
    model.blocks[1].attn.train()
    modes = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    calls: list[int] = []
    model.blocks[0].register_forward_hook(lambda *given: calls.append(1))
    state = torch.get_rng_state()
    patch(model, SCHEDULE)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert not calls


@pytest.mark.parametrize(
    "name",
    [
        "DINOv2, registers", "DINOv3, RoPE", "VideoMAE", "ViViT", "TimeSformer", "V-JEPA 2, RoPE",
        "CLIP of transformers", "SigLIP 2 of transformers", "DINOv3 of transformers, RoPE", "Motionformer",
    ],
)  # fmt: skip
def test_models_without_values_are_patched(name: str) -> None:
    with torch.device("meta"):
        model = CASES[name].make()
        patched(model, CASES[name], pool="size" if name == "VideoMAE" else "plain")  # with meta as default device
    assert next(model.parameters()).is_meta


def test_a_block_that_uses_its_rotary_embedding_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = timm.models.eva.EvaBlock
    original = kind.forward

    def forward(self: Any, x: Tensor, rope: Tensor, **options: Any) -> Tensor:
        return original(self, x, rope=0.5 * rope, **options)

    model = CASES["EVA-02, RoPE"].make()
    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises(RuntimeError, match=r"EvaBlock of timm .* computes something else than vtm expects"):
        patch(model, SCHEDULE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_check_does_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        patch(vit(), SCHEDULE)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)

"""Blocks of timm: the ViT family (`vision_transformer.Block`) and the EVA family with rotary positions (`EvaBlock`)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models._features import FeatureHookNet
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from vtm.patching.block import Merging, take_output
from vtm.patching.host import Averaging, Facts, Host
from vtm.patching.pooling import TakeState, check_mean, mean_by_size, pass_sizes


class MergingBlock(Block):
    """A block of timm's ViTs that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(x):
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        _refuse_causal(is_causal)
        state = merging.enter(x)
        attended = self.attn(self.norm1(state.x), attn_mask=merging.bias(state, attn_mask))
        x = state.x + self.drop_path1(self.ls1(attended))
        state = merging.apply(state._replace(x=x), take_output(self.attn.k_norm))  # type: ignore[arg-type]
        x = state.x + self.drop_path2(self.ls2(self.mlp(self.norm2(state.x))))
        return merging.leave(state._replace(x=x))


class MergingEvaBlock(EvaBlock):
    """A block of timm's EVA models that takes tokens away between attention and MLP."""

    merging: Merging

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Map tokens (B, N, C), with the state of the merging behind the channels, to fewer tokens."""
        merging = self.merging
        if merging.is_idle(x):
            return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        _refuse_causal(is_causal)
        state = merging.enter(x)
        rope = None if rope is None else _rope_at_places(rope, state.place, merging.protected)
        attended = self.attn(self.norm1(state.x), rope=rope, attn_mask=merging.bias(state, attn_mask))
        x = state.x + self.drop_path1(attended if self.gamma_1 is None else self.gamma_1 * attended)
        state = merging.apply(state._replace(x=x), take_output(self.attn.k_norm))
        mapped = self.mlp(self.norm2(state.x))
        x = state.x + self.drop_path2(mapped if self.gamma_2 is None else self.gamma_2 * mapped)
        return merging.leave(state._replace(x=x))


class WeighingVisionTransformer(VisionTransformer):
    """A ViT of timm that weighs each token by its size where it averages the tokens."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens (B, N, C) to (B, C)."""
        if not _averages(self, pool_type):
            return super().pool(x, pool_type)
        return mean_by_size(x, skip=0 if self.pool_include_prefix else self.num_prefix_tokens)


class WeighingEva(Eva):
    """An EVA model of timm that weighs each token by its size where it averages the tokens."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens (B, N, C) to (B, C)."""
        return (
            mean_by_size(x, skip=self.num_prefix_tokens) if _averages(self, pool_type) else super().pool(x, pool_type)
        )


def _averages(model: Any, pool_type: str | None) -> bool:
    """Return whether the model averages its tokens, which `reset_classifier` may have changed since it was patched."""
    pool_type = model.global_pool if pool_type is None else pool_type
    if pool_type == "avgmax":
        raise ValueError('pool="size" does not weigh the mean of global_pool = avgmax; patch with pool="plain"')
    return model.attn_pool is None and pool_type == "avg"


def _pooling_problem(model: Any) -> str | None:
    if model.attn_pool is not None:
        return f"pools them by attention (global_pool = {model.global_pool})"
    if model.global_pool == "token":
        return "takes the class token (global_pool = token)"
    return None if model.global_pool == "avg" else f"has global_pool = {model.global_pool or 'none'}"


def _take_off(model: Any) -> None:
    model.norm.register_forward_pre_hook(TakeState(model.embed_dim))
    model.norm.register_forward_hook(pass_sizes)


def _averaging(model: Any, weighing: Any) -> Averaging:
    def check(patched: Any) -> None:
        pools = [lambda x, kind=kind: kind.pool(patched, x) for kind in (weighing, model)]
        check_mean(model.__name__, patched.embed_dim, *pools)

    return Averaging(model, weighing, _pooling_problem, check)


def _refuse_causal(is_causal: bool) -> None:
    if is_causal:
        raise ValueError(
            "merging changes the order of the tokens, so the attention of a patched model cannot be causal"
        )


def _rope_at_places(rope: Tensor, place: Tensor, protected: int) -> Tensor:
    """Take the rotary embedding of each token at its place: (B, 1, N − p, E).

    Args:
        rope: (N0 − p, E), or (B, 1, N0 − p, E) after patch dropout.
        place: (B, N).
        protected: p.

    Raises:
        ValueError: if the heads have rotary embeddings of their own.
    """
    place = place[:, protected:] - protected
    if rope.ndim == 2:
        return rope[place][:, None]
    if rope.ndim == 4 and rope.shape[:2] == (len(place), 1):
        return rope.gather(2, place[:, None, :, None].expand(-1, -1, -1, rope.shape[-1]))
    raise ValueError(
        f"expected rotary embeddings (N, E) or (B, 1, N, E) that all heads and blocks share, got shape "
        f"{tuple(rope.shape)}; models with mixed rotary embeddings cannot be patched"
    )


def _facts(model: Any) -> Facts:
    problem = "its blocks have rotary embeddings of their own" if getattr(model, "rope_mixed", False) else None
    protected = int(model.num_prefix_tokens)

    def arguments(place: Tensor) -> dict[str, Any]:
        """Return rotary embeddings (N − p, 2d), if the model has them, of tokens in a row."""
        if getattr(model, "rope", None) is None:
            return {}
        half = int(model.blocks[0].attn.head_dim) // 2
        angles = torch.outer(place[place >= protected].float(), torch.linspace(0.1, 1.0, half)).repeat_interleave(2, 1)
        return {"rope": torch.cat([angles.sin(), angles.cos()], dim=1)}

    return Facts(
        int(model.embed_dim),
        protected,
        num_tokens=protected + 8,
        arguments=arguments,
        inputs=lambda: {"x": torch.zeros(1, model.in_chans, *_image_size(model.patch_embed))},
        problem=problem,
    )


def _image_size(patch_embed: Any) -> tuple[int, int]:
    """Return the height and width of images that a model takes."""
    height, width = patch_embed.img_size or (4 * side for side in patch_embed.patch_size)
    return height, width


_REST: Any = {
    "blocks": "blocks",
    "key_layer": "attn.k_norm",
    "facts": _facts,
    "take_off": _take_off,
    "unsuited": (FeatureHookNet,),
    "unusable": ("forward_intermediates", "get_intermediate_layers", "prune_intermediate_layers"),
}
HOSTS = (
    Host(
        VisionTransformer,
        block=Block,
        merging=MergingBlock,
        averaging=_averaging(VisionTransformer, WeighingVisionTransformer),
        **_REST,
    ),
    Host(Eva, block=EvaBlock, merging=MergingEvaBlock, averaging=_averaging(Eva, WeighingEva), **_REST),
)

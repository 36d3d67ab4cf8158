"""Blocks of timm: the ViT family (`vision_transformer.Block`) and the EVA family with rotary positions (`EvaBlock`)."""

from __future__ import annotations

from typing import Any

from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from vtm.patching.block import Merging, take_output
from vtm.patching.patch import Facts, Host


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


def _refuse_causal(is_causal: bool) -> None:
    if is_causal:
        raise ValueError(
            "merging changes the order of the tokens, so the attention of a patched model cannot be causal"
        )


def _rope_at_places(rope: Tensor, place: Tensor, protected: int) -> Tensor:
    """Take the rotary embedding (N0 − p, E) of each token at its place: (B, 1, N − p, E)."""
    if rope.ndim != 2:
        raise ValueError(
            f"expected rotary embeddings (N, E) that all heads and blocks share, got shape {tuple(rope.shape)}; models "
            "with mixed rotary embeddings cannot be patched"
        )
    return rope[place[:, protected:] - protected][:, None]


def _facts(model: Any) -> Facts:
    problem = "its blocks have rotary embeddings of their own" if getattr(model, "rope_mixed", False) else None
    return Facts(int(model.embed_dim), int(model.num_prefix_tokens), problem=problem)


_REST: Any = {
    "blocks": "blocks",
    "key_layer": "attn.k_norm",
    "facts": _facts,
    "unusable": ("forward_intermediates", "get_intermediate_layers", "prune_intermediate_layers"),
}
HOSTS = (
    Host(VisionTransformer, block=Block, merging=MergingBlock, **_REST),
    Host(Eva, block=EvaBlock, merging=MergingEvaBlock, **_REST),
)

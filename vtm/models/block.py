"""The block of the VTM network (Lee et al., NeurIPS 2024, section 3): attention, merging, and the auxiliary path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from vtm.merging import Grid, Merged, NoMerger, TokenMerger, Tokens, merge
from vtm.merging.attention import attention
from vtm.merging.partition import Generators

MergeLayer = Callable[[int], TokenMerger | NoMerger]


class SelfAttention(nn.Module):
    """A pre-norm self-attention layer with a residual and no output projection (equation 8).

    Args:
        dim: C, number of input and output channels.
        num_heads: number of heads; must divide C.
        dropout: dropout probability of the attention output.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected num_heads to divide the channels {dim}, got num_heads = {num_heads}")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, *, key_bias: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the output x′ and the keys, both (B, N, C).

        The scale and shift of the norm are folded into the projection: U (x̂ ⊙ g + b) = (U ⊙ g) x̂ + U b. If x needs no
        gradient, such as stored features, neither does x̂, which saves one of the two largest products of the backward
        pass.
        """
        normed = F.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        weights = (self.qkv.weight * self.norm.weight).chunk(3)  # three products, so that q, k and v are contiguous
        shifts = (self.qkv.weight @ self.norm.bias).chunk(3)
        q, k, v = (F.linear(normed, *affine) for affine in zip(weights, shifts, strict=True))
        out = attention(q, k, v, num_heads=self.num_heads, key_bias=key_bias, mask=mask)
        return x + self.dropout(out), k


class AuxiliaryPath(nn.Module):
    """The auxiliary path of a block in training; its attention is biased by the main path's saliency (equation 10).

    Args:
        dim: C, number of input channels.
        out_dim: C′, number of output channels.
        num_heads: number of heads; must divide C.
        dropout: dropout probability of the attention output.
        saliency_weight: λ, or "scale" for 1/√d.
    """

    def __init__(self, dim: int, out_dim: int, *, num_heads: int, dropout: float, saliency_weight: float | str) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.project = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU())
        self.saliency_weight = (dim // num_heads) ** -0.5 if saliency_weight == "scale" else float(saliency_weight)

    def forward(self, tokens: Tokens, merged: Merged) -> Tokens:
        """Attend, then merge the N tokens with the grouping and the weights of the main path."""
        assert merged.saliency is not None  # the path exists only if the saliency is estimated
        x, _ = self.attention(tokens.x, key_bias=self.saliency_weight * merged.saliency, mask=tokens.mask)
        grouped = merge(replace(tokens, x=x), merged.grouping, weights=merged.weights)
        return replace(grouped, x=self.project(grouped.x))


class Block(nn.Module):
    """A block: attention, merging, projection, and an auxiliary path if the merger learns saliency.

    Args:
        dim: C, number of input channels.
        out_dim: C′, number of output channels.
        num_heads: number of heads of both paths; must divide C.
        dropout: dropout probability of the attention outputs of both paths.
        merge_layer: function that creates the merger for keys of width C.
    """

    def __init__(self, dim: int, out_dim: int, *, num_heads: int, dropout: float, merge_layer: MergeLayer) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.merger = merge_layer(dim)
        self.project = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU())
        self.auxiliary: AuxiliaryPath | None = None
        if self.merger.estimates_saliency:
            weight = self.merger.saliency_weight
            assert weight is not None  # since the merger estimates saliency
            self.auxiliary = AuxiliaryPath(dim, out_dim, num_heads=num_heads, dropout=dropout, saliency_weight=weight)

    def forward(self, tokens: Tokens, grid: Grid, *, generator: Generators = None) -> tuple[Tokens, Merged]:
        """Run the main path; also return the merge, for the auxiliary path."""
        x, keys = self.attention(tokens.x, mask=tokens.mask)
        merged: Merged = self.merger(replace(tokens, x=x), keys, grid, generator=generator)
        return replace(merged.tokens, x=self.project(merged.tokens.x)), merged

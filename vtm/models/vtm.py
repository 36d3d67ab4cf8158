"""The VTM network (Lee et al., NeurIPS 2024, section 3 and figure 6): attention, block with two paths, network.

Block i attends within windows of L_i frames, merges tokens, and maps C_i to C_{i+1} channels; then neighbouring windows
join, so that later blocks see more time with fewer tokens. In training, an auxiliary path beside the main one has its
attention biased by the saliency of the main path, and so teaches the saliency estimator; evaluation never runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtm.merging import FeatureGrid, Grid, Merged, NoMerger, TokenMerger, Tokens, merge
from vtm.merging.attention import attention
from vtm.merging.partition import Generators
from vtm.merging.tokens import rewindow
from vtm.models.head import BlockPlan, BlockTrace, Head, HeadOutput

MergeLayer = Callable[[int], TokenMerger | NoMerger]


class SelfAttention(nn.Module):
    """Pre-norm self-attention with a residual and no output projection (equation 8).

    Args:
        dim: C, channels in and out.
        num_heads: number of heads; must divide C.
        dropout: probability of dropping an attention output.
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
        """Return x′ and the keys, both (B, N, C).

        The scale and shift of the norm are folded into the projection: U (x̂ ⊙ g + b) = (U ⊙ g) x̂ + U b. So no gradient
        of x̂ is needed where x, such as stored features, needs none: one of the backward pass's two largest products.
        """
        normed = F.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        weights = (self.qkv.weight * self.norm.weight).chunk(3)  # three products, for what each returns is contiguous
        shifts = (self.qkv.weight @ self.norm.bias).chunk(3)
        q, k, v = (F.linear(normed, *affine) for affine in zip(weights, shifts, strict=True))
        out = attention(q, k, v, num_heads=self.num_heads, key_bias=key_bias, mask=mask)
        return x + self.dropout(out), k


class AuxiliaryPath(nn.Module):
    """The training-only companion of a block, whose attention sees the saliency of the main path (equation 10).

    Args:
        dim: C.
        out_dim: C′.
        num_heads: number of heads; must divide C.
        dropout: probability of dropping an attention output.
        saliency_weight: λ, or "scale" for 1/√d.
    """

    def __init__(self, dim: int, out_dim: int, *, num_heads: int, dropout: float, saliency_weight: float | str) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.project = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU())
        self.saliency_weight = (dim // num_heads) ** -0.5 if saliency_weight == "scale" else float(saliency_weight)

    def forward(self, tokens: Tokens, merged: Merged) -> Tokens:
        """Group the N tokens of this path as the main path did: same targets, same matches, same weights."""
        assert merged.saliency is not None  # it is what this path exists for
        x, _ = self.attention(tokens.x, key_bias=self.saliency_weight * merged.saliency, mask=tokens.mask)
        grouped = merge(replace(tokens, x=x), merged.grouping, weights=merged.weights)
        return replace(grouped, x=self.project(grouped.x))


class Block(nn.Module):
    """Attention, merging, projection; and an auxiliary path if the merger learns saliency.

    Args:
        dim: C.
        out_dim: C′.
        num_heads: of both paths; must divide C.
        dropout: of both paths.
        merge_layer: makes the merger for keys of width C.
    """

    def __init__(self, dim: int, out_dim: int, *, num_heads: int, dropout: float, merge_layer: MergeLayer) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.merger = merge_layer(dim)
        self.project = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU())
        self.auxiliary: AuxiliaryPath | None = None
        if self.merger.estimates_saliency:
            weight = self.merger.saliency_weight
            assert weight is not None  # it is what has the saliency estimated
            self.auxiliary = AuxiliaryPath(dim, out_dim, num_heads=num_heads, dropout=dropout, saliency_weight=weight)

    def forward(self, tokens: Tokens, grid: Grid, *, generator: Generators = None) -> tuple[Tokens, Merged]:
        """Run the main path; also return what was merged, for the auxiliary path."""
        x, keys = self.attention(tokens.x, mask=tokens.mask)
        merged: Merged = self.merger(replace(tokens, x=x), keys, grid, generator=generator)
        return replace(merged.tokens, x=self.project(merged.tokens.x)), merged


class SinusoidalTime(nn.Module):
    """Add fixed sines and cosines of the frame number to features (B, T, H, W, C); any T."""

    def forward(self, x: Tensor, *, first: int = 0) -> Tensor:
        """Return x + p(t), with wavelengths from 2π to 20000π frames; t counts from `first`."""
        frames, channels = x.shape[1], x.shape[-1]
        rate = torch.exp(torch.arange(0, channels, 2, device=x.device) * (-math.log(10000.0) / channels))
        angle = torch.arange(first, first + frames, device=x.device)[:, None] * rate
        embedding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]  # (T, C)
        return x + embedding.to(x.dtype)[:, None, None]


class VTM(Head):
    """Video token merging network: features of a clip to logits.

    Args:
        in_channels: width of the features, the encoder's.
        num_outputs: K, the number of classes; 1 for regression.
        grid: layout of the tokens of a step, the encoder's; None: whatever H × W features come, without a prefix.
        window_frames: (L_1, …, L_k), frames in the windows of each block; each divides the next.
        channels: (C_2, …, C_{k+1}), the output channels of each block.
        num_heads: attention heads in every block; must divide its input channels.
        dropout: probability of dropping an attention output.
        merge_layer: makes the merger of a block, given the width of its keys: a partial `TokenMerger`, or `NoMerger`.
        time_embedding: maps features (B, T, H, W, C) and the number `first` of their first frame to features;
            `SinusoidalTime()` tells the network the time.

    Raises:
        ValueError: if the window lengths do not divide one another, or the lists differ in length.
    """

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        grid: FeatureGrid | None = None,
        *,
        window_frames: Sequence[int],
        channels: Sequence[int],
        num_heads: int,
        dropout: float,
        merge_layer: MergeLayer,
        time_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not window_frames or len(window_frames) != len(channels):
            raise ValueError(
                f"expected one entry per block in window_frames and channels, got {len(window_frames)}, {len(channels)}"
            )
        if min(window_frames) < 1 or any(later % earlier for earlier, later in pairwise(window_frames)):
            raise ValueError(f"expected each of window_frames to divide the next, got {list(window_frames)}")
        self.grid = grid
        self.window_frames = tuple(window_frames)
        self.widths = (in_channels, *channels)
        self.time_embedding = time_embedding
        self.blocks = nn.ModuleList(
            Block(dim, out_dim, num_heads=num_heads, dropout=dropout, merge_layer=merge_layer)
            for dim, out_dim in pairwise(self.widths)
        )
        self.head = nn.Linear(channels[-1], num_outputs)

    @property
    def needs_motion(self) -> bool:
        """Tell whether a block merges by the motion of the tokens."""
        return any(block.merger.needs_motion for block in self._blocks())

    @property
    def samples_in_eval(self) -> bool:
        """Tell whether a block samples its targets in evaluation, too."""
        return any(block.merger.sample_in_eval for block in self._blocks())

    def freeze_unused(self, frames: int, height: int, width: int) -> None:
        """Turn off the gradients of blocks whose windows are longer than a clip of T frames."""
        for block in self.blocks[len(self.plan(frames, height, width)) :]:
            block.requires_grad_(False)

    def for_inference(self) -> Self:
        """Drop the auxiliary path, switch to evaluation, and return the network itself."""
        for block in self._blocks():
            block.auxiliary = None
        return self.eval()

    def plan(self, frames: int, height: int, width: int) -> list[BlockPlan]:
        """Work out the shapes of every block for clips of T frames of H × W tokens; longer blocks are left out.

        Raises:
            ValueError: if T does not fit the windows, or a block cannot merge as many tokens as asked for.
        """
        lengths = [length for length in self.window_frames if length <= frames]
        if not lengths or frames % lengths[-1] or self.widths[len(lengths)] != self.head.in_features:
            raise ValueError(
                f"clips of {frames} frames do not fit window_frames = {list(self.window_frames)} with channels = "
                f"{list(self.widths[1:])}: the longest window that fits must divide the number of frames, and longer "
                f"ones are left out only where the channels stay the same. Change model.window_frames or the frames"
            )
        plans: list[BlockPlan] = []
        num_tokens, previous = height * width, 1
        for i, (length, block) in enumerate(zip(lengths, self._blocks(), strict=False)):
            num_tokens = num_tokens * (length // previous)
            try:
                targets, merge_count = block.merger.plan(num_tokens)
            except ValueError as error:
                raise ValueError(f"block {i + 1} of {len(lengths)} ({length} frames): {error}") from None
            windows = frames // length
            plans.append(BlockPlan(length, windows, num_tokens, targets, merge_count, *self.widths[i : i + 2]))
            num_tokens, previous = num_tokens - merge_count, length
        return plans

    def grid_of(self, features: Tensor) -> FeatureGrid:
        """Return the layout of the tokens of a step of features (B, T, H, W, C)."""
        return FeatureGrid(*features.shape[2:4]) if self.grid is None else self.grid

    def check(self, features: Tensor, motion: Tensor | None, mask: Tensor | None) -> None:
        """Raise a ValueError unless the inputs of `forward` fit the network and one another."""
        if features.ndim != 5 or features.shape[-1] != self.widths[0]:
            raise ValueError(
                f"expected features (B, T, H, W, C) with C = {self.widths[0]}, got {tuple(features.shape)}"
            )
        if self.grid is not None and features.shape[2:4] != self.grid.shape:
            raise ValueError(
                f"expected features (B, T, H, W, C) with (H, W) = {self.grid.shape}, got {tuple(features.shape)}"
            )
        if motion is not None and motion.shape != features.shape[:4]:
            raise ValueError(f"expected motion (B, T, H, W) = {tuple(features.shape[:4])}, got {tuple(motion.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != features.shape[:2]):
            raise ValueError(
                f"expected mask (B, T) = {tuple(features.shape[:2])} of dtype torch.bool, "
                f"got {tuple(mask.shape)} of dtype {mask.dtype}"
            )

    def embed(
        self, features: Tensor, *, motion: Tensor | None = None, mask: Tensor | None = None, first: int = 0
    ) -> Tokens:
        """Turn frames, of which the first one has the number `first`, into the tokens that the first block takes.

        The other arguments and the errors are those of `forward`.
        """
        self.check(features, motion, mask)
        if mask is not None:
            features = features.masked_fill(~mask[:, :, None, None, None], 0)
        features = features.to(self.head.weight.dtype)
        if self.time_embedding is not None:
            features = self.time_embedding(features, first=first)
        tokens = Tokens.from_features(features, self.grid_of(features), motion=motion, mask=mask)
        if not first:
            return tokens
        position = tokens.position[0] + torch.tensor([first, 0, 0], device=features.device)
        return replace(tokens, position=position.expand_as(tokens.position))

    def forward(
        self,
        features: Tensor,
        *,
        motion: Tensor | None = None,
        mask: Tensor | None = None,
        generator: Generators = None,
    ) -> HeadOutput:
        """Classify clips, or predict their values.

        Args:
            features: (B, T, H, W, C) from the encoder.
            motion: (B, T, H, W) magnitude of motion in pixels per frame, for merging by motion.
            mask: (B, T) bool, True = real frame. What masked frames hold, NaN included, changes nothing.
            generator: of the noise where targets are sampled: None, one, or one per clip (`vtm.merging.partition`).

        Raises:
            ValueError: on shapes that do not fit, with the numbers.
        """
        tokens = aux = self.embed(features, motion=motion, mask=mask)
        batch, *shape = features.shape[:4]
        grid = self.grid_of(features)
        traces: list[BlockTrace] = []
        for plan, block in zip(self.plan(*shape), self._blocks(), strict=False):
            rows = batch * plan.windows
            window = Grid(plan.window_frames, grid.height, grid.width)
            tokens, merged = block(rewindow(tokens, rows), window, generator=generator)
            if self.training and block.auxiliary is not None:
                aux = block.auxiliary(rewindow(aux, rows), merged)
            traces.append(BlockTrace(merged.grouping, merged.targets, merged.saliency, plan.window_frames))
        logits = self.head(_pool(rewindow(tokens, batch)))
        learned = self.training and next(self._blocks()).auxiliary is not None
        aux_logits = self.head(_pool(rewindow(aux, batch))) if learned else None
        return HeadOutput(logits, aux_logits, tuple(traces))

    def _blocks(self) -> Iterator[Block]:
        """Go through the blocks with their type, which a ModuleList does not know."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block


def _pool(tokens: Tokens) -> Tensor:
    """Average the real tokens: (B, N, C) -> (B, C)."""
    if tokens.mask is None:
        return tokens.x.mean(1)
    exact = torch.promote_types(tokens.x.dtype, torch.float32)  # sums of half precision overflow
    real = tokens.mask[..., None].to(exact)
    return ((tokens.x * real).sum(1) / real.sum(1).clamp(min=1)).to(tokens.x.dtype)

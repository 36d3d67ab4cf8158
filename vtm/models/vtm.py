"""The VTM network (Lee et al., NeurIPS 2024, section 3 and figure 6).

Block i attends within windows of L_i frames, merges tokens, and maps C_i to C_{i+1} channels; then consecutive windows
are joined, so that later blocks see more time with fewer tokens. In training, the attention of an auxiliary path is
biased by the saliency of the main path, which trains the saliency estimator; evaluation skips the auxiliary path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from vtm.merging import FeatureGrid, Grid, Tokens
from vtm.merging.partition import Generators
from vtm.merging.tokens import rewindow
from vtm.models.block import Block, MergeLayer
from vtm.models.head import BlockPlan, BlockTrace, Head, HeadOutput


class SinusoidalTime(nn.Module):
    """A fixed sinusoidal embedding of the frame index, added to features (B, T, H, W, C)."""

    def forward(self, x: Tensor, *, first: int = 0) -> Tensor:
        """Return x + p(t), with wavelengths from 2π to 20000π frames; the first t is `first`."""
        frames, channels = x.shape[1], x.shape[-1]
        rate = torch.exp(torch.arange(0, channels, 2, device=x.device) * (-math.log(10000.0) / channels))
        angle = torch.arange(first, first + frames, device=x.device)[:, None] * rate
        embedding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]  # (T, C)
        return x + embedding.to(x.dtype)[:, None, None]


class VTM(Head):
    """The video token merging network, from the features of a clip to logits.

    Args:
        in_channels: C_1, width of the features of the encoder.
        num_outputs: K, number of classes; 1 for regression.
        grid: layout of the tokens of a step of the encoder; None accepts any H × W, without prefix tokens.
        window_frames: (L_1, …, L_k), frames per window of each block; each divides the next.
        channels: (C_2, …, C_{k+1}), output channels of each block.
        num_heads: number of attention heads of every block; must divide its input channels.
        dropout: dropout probability of the attention outputs.
        merge_layer: function that creates the merger of a block for keys of a given width, such as a partial
            `TokenMerger` or `NoMerger`.
        time_embedding: module from features (B, T, H, W, C) and the index `first` of their first frame to features,
            such as `SinusoidalTime()`; None to add nothing.

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
        """Whether a block merges by the motion of the tokens."""
        return any(block.merger.needs_motion for block in self._blocks())

    @property
    def samples_in_eval(self) -> bool:
        """Whether a block samples its targets in evaluation too."""
        return any(block.merger.sample_in_eval for block in self._blocks())

    def freeze_unused(self, frames: int, height: int, width: int) -> None:
        """Disable the gradients of blocks whose windows are longer than a clip of T frames."""
        for block in self.blocks[len(self.plan(frames, height, width)) :]:
            block.requires_grad_(False)

    def for_inference(self) -> Self:
        """Remove the auxiliary paths, switch to evaluation mode, and return the network itself."""
        for block in self._blocks():
            block.auxiliary = None
        return self.eval()

    def plan(self, frames: int, height: int, width: int) -> list[BlockPlan]:
        """Compute the shapes of the blocks for clips of T frames of H × W tokens, skipping blocks with longer windows.

        Raises:
            ValueError: if T does not match the windows, or the merge count of a block exceeds its sources.
        """
        lengths = [length for length in self.window_frames if length <= frames]
        if not lengths or frames % lengths[-1] or self.widths[len(lengths)] != self.head.in_features:
            raise ValueError(
                f"clips of {frames} frames do not fit window_frames = {list(self.window_frames)} with channels = "
                f"{list(self.widths[1:])}: the longest window that fits must divide the number of frames, and blocks "
                f"of longer windows are skipped only if the channels stay the same; change model.window_frames or the "
                f"number of frames"
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

    def token_counts(self, frames: int, height: int, width: int) -> list[int]:
        """Return how many tokens of a clip enter each block, followed by how many remain."""
        plans = self.plan(frames, height, width)
        left = [plan.windows * (plan.num_tokens - plan.merge_count) for plan in plans]
        return [plans[0].windows * plans[0].num_tokens, *left]

    @property
    def settings(self) -> dict[str, Any]:
        """None: the network is built from its configuration alone."""
        return {}

    def match_classes(self, names: Sequence[str] | None) -> bool:
        """Return False: the network must be trained."""
        return False

    def grid_of(self, features: Tensor) -> FeatureGrid:
        """Return the layout of the tokens of a step of features (B, T, H, W, C)."""
        return FeatureGrid(*features.shape[2:4]) if self.grid is None else self.grid

    def check(self, features: Tensor, motion: Tensor | None, mask: Tensor | None) -> None:
        """Raise an error if the inputs of `forward` do not match the network or one another, as `forward` does."""
        if not isinstance(features, Tensor) or not features.is_floating_point():
            kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"expected features (B, T, H, W, C) as a tensor of floating-point numbers, got {kind}")
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
        """Convert frames, the first with index `first`, to the input tokens of the first block.

        The other arguments and the errors are the same as in `forward`.
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
            features: features (B, T, H, W, C) of the encoder.
            motion: (B, T, H, W), motion magnitude in pixels per frame, for merging by motion.
            mask: (B, T) bool, True = real frame. Masked frames are ignored, even if they are NaN.
            generator: generator of the sampling noise: None, one, or one per clip (see `vtm.merging.partition`).

        Raises:
            TypeError: if the features are not in floating point.
            ValueError: if the shapes do not match the network or one another.
        """
        tokens = aux = self.embed(features, motion=motion, mask=mask)
        batch, *shape = features.shape[:4]
        grid = self.grid_of(features)
        traces: list[BlockTrace] = []
        plans = self.plan(*shape)
        for plan, block in zip(plans, self._blocks(), strict=False):
            rows = batch * plan.windows
            window = Grid(plan.window_frames, grid.height, grid.width)
            tokens, merged = block(rewindow(tokens, rows, plan.num_tokens), window, generator=generator)
            if self.training and block.auxiliary is not None:
                aux = block.auxiliary(rewindow(aux, rows, plan.num_tokens), merged)
            traces.append(BlockTrace(merged.grouping, merged.targets, merged.saliency, plan.window_frames))
        left = plans[-1].windows * (plans[-1].num_tokens - plans[-1].merge_count)
        logits = self.head(_pool(rewindow(tokens, batch, left)))
        learned = self.training and next(self._blocks()).auxiliary is not None
        aux_logits = self.head(_pool(rewindow(aux, batch, left))) if learned else None
        return HeadOutput(logits, aux_logits, tuple(traces))

    def _blocks(self) -> Iterator[Block]:
        """Iterate over the blocks with their type, which a ModuleList loses."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block


def _pool(tokens: Tokens) -> Tensor:
    """Average the real tokens: (B, N, C) -> (B, C)."""
    if tokens.mask is None:
        return tokens.x.mean(1)
    exact = torch.promote_types(tokens.x.dtype, torch.float32)  # sums in half precision overflow
    real = tokens.mask[..., None].to(exact)
    return ((tokens.x * real).sum(1) / real.sum(1).clamp(min=1)).to(tokens.x.dtype)

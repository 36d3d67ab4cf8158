"""Evaluation of the VTM network on streams of frames of any length, in bounded memory.

A window of block i can be merged as soon as its L_i frames have arrived, and no later computation reads its tokens. The
stream therefore computes window by window what `VTM.forward` computes block by block: at the same cost, but it keeps
only the tokens of open windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtm.merging import FeatureGrid, Grid, Tokens
from vtm.merging.tokens import rewindow
from vtm.models.block import Block
from vtm.models.head import BlockPlan, BlockTrace
from vtm.models.vtm import VTM


class ClosedWindows(NamedTuple):
    """The merges of one block in consecutive windows.

    Attributes:
        block: index of the block.
        first: index of the first of these windows in the stream.
        trace: merges; rows are the B · windows windows of all clips.
    """

    block: int
    first: int
    trace: BlockTrace


class Stream:
    """An evaluation of a network on clips whose frames arrive in chunks.

    Groupings and logits equal the outputs of `VTM.forward` on the whole clip. If `forward` does not support the number
    of frames, they equal its outputs for the clip padded with as few masked frames as possible. For any number of
    frames, block i keeps fewer than the N tokens of one window. No gradients are computed.

    Args:
        model: network in evaluation mode.

    Attributes:
        frames: number of frames received.

    Raises:
        ValueError: if the model is in training mode, or samples its targets in evaluation.

    >>> from vtm.merging import NoMerger
    >>> model = VTM(8, 3, window_frames=[2, 4], channels=[8, 8], num_heads=2, dropout=0.1, merge_layer=NoMerger).eval()
    >>> stream, features = Stream(model), torch.randn(1, 4, 2, 2, 8)
    >>> [len(stream.update(frame)) for frame in features.split(1, dim=1)]  # number of blocks that closed a window
    [0, 1, 0, 2]
    >>> torch.allclose(stream.logits(), model(features).logits, atol=1e-5)
    True
    """

    def __init__(self, model: VTM) -> None:
        if model.training:
            raise ValueError(
                "a stream needs a model in evaluation mode, but the model is in training mode: call model.eval() first"
            )
        if model.samples_in_eval:
            raise ValueError(
                "a stream cannot sample targets, but the model samples its targets in evaluation: set "
                "merging.sample_in_eval=false, or call the model on whole clips"
            )
        self.model = model
        self.frames = 0
        self._layout: tuple[int, int, int, bool] | None = None  # B, H, W, and whether there is motion
        self._plans: list[BlockPlan] = []
        self._open: list[list[Tokens]] = [[] for _ in model.blocks]  # ordered by time
        self._pooled: tuple[Tensor, Tensor] | None = None  # sum (B, C) and number (B, 1) of the output tokens

    @torch.no_grad()
    def update(
        self, features: Tensor, *, motion: Tensor | None = None, mask: Tensor | None = None
    ) -> list[ClosedWindows]:
        """Process the next frames and return the merges of the windows that they complete.

        Args:
            features: features (B, t, H, W, C) of the encoder, for any t; copied if the stream keeps them.
            motion: (B, t, H, W), motion magnitude in pixels per frame; for all frames of the stream or for none.
            mask: (B, t) bool, True = real frame. Masked frames are ignored.

        Raises:
            ValueError: if the shapes do not match one another, the model, or the previous frames.
        """
        self._check(features, motion, mask)
        closed: list[ClosedWindows] = []
        taken = 0
        while taken < features.shape[1]:
            part = slice(taken, taken + self._next_part(features.shape[1] - taken))
            tokens = self.model.embed(
                features[:, part],
                motion=None if motion is None else motion[:, part],
                mask=None if mask is None else mask[:, part],
                first=self.frames,
            )
            closed += self._push(tokens, self.frames + part.stop - part.start)
            taken = part.stop
        return closed

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return the logits (B, K) of the frames so far; more frames may follow.

        Raises:
            ValueError: if there are no frames yet.
        """
        if not self.frames:
            raise ValueError("a stream without frames has no logits: call update(features) first")
        pooled, last = self._pooled, None
        for i, plan in enumerate(self._plans):
            held = self._open[i] if last is None else [*self._open[i], last]
            if not held:
                continue
            last = _join(held)
            missing = plan.num_tokens - last.x.shape[1]
            if missing and i and self.frames < plan.window_frames and plan.in_channels == self.model.head.in_features:
                break  # `VTM.forward` skips this block
            last, _ = self._run(i, _pad(last, missing), windows=1)
        if last is not None:
            pooled = _add(pooled, last)
        assert pooled is not None
        total, count = pooled
        logits: Tensor = self.model.head((total / count.clamp(min=1)).to(self.model.head.weight.dtype))
        return logits

    def _check(self, features: Tensor, motion: Tensor | None, mask: Tensor | None) -> None:
        """Raise a ValueError if the shapes of a chunk do not match one another, the model or the first chunk."""
        self.model.check(features, motion, mask)
        batch, _, height, width = features.shape[:4]
        layout = (batch, height, width, motion is not None)
        if self._layout is None:
            self._plans = self.model.plan(self.model.window_frames[-1], height, width)
            self._layout = layout
        if layout != self._layout:
            raise ValueError(
                f"expected frames like the previous ones, (B, H, W, with motion) = {self._layout}, got {layout}: "
                f"start a new stream for other clips"
            )

    def _next_part(self, available: int) -> int:
        """Return the number of frames to process next: the rest of an open window of block 1, or whole windows.

        Whole windows run as one batch, which ends no later than the current window of block 2. This bounds the batch,
        and no block receives tokens beyond a window that it closes.
        """
        first, *later = self.model.window_frames
        if begun := self.frames % first:
            return min(available, first - begun)
        span = later[0] if later else first
        part = min(available, span - self.frames % span)
        return part // first * first or part

    def _push(self, tokens: Tokens, end: int) -> list[ClosedWindows]:
        """Add the tokens of the frames before frame `end`, and run the blocks whose windows they complete."""
        closed: list[ClosedWindows] = []
        begin, self.frames = self.frames, end
        for i, plan in enumerate(self._plans):
            first, stop = begin // plan.window_frames, end // plan.window_frames
            if first == stop:
                # copied, so that the chunk of the caller can be freed or changed
                self._open[i].append(_map(tokens, torch.clone))
                return closed
            tokens = _join([*self._open[i], tokens])
            self._open[i] = []
            tokens, trace = self._run(i, tokens, windows=stop - first)
            closed.append(ClosedWindows(i, first, trace))
        self._pooled = _add(self._pooled, tokens)
        return closed

    def _run(self, i: int, tokens: Tokens, *, windows: int) -> tuple[Tokens, BlockTrace]:
        """Run block i on whole windows: (B, windows · N, C) -> (B, windows · (N − R), C′)."""
        assert self._layout is not None
        batch, height, width, _ = self._layout
        block = self.model.blocks[i]
        assert isinstance(block, Block)
        step = self.model.grid or FeatureGrid(height, width)
        plan = self._plans[i]
        grid = Grid(plan.window_frames, step.height, step.width)
        tokens, merged = block(rewindow(tokens, batch * windows, plan.num_tokens), grid)
        tokens = rewindow(tokens, batch, windows * (plan.num_tokens - plan.merge_count))
        return tokens, BlockTrace(merged.grouping, merged.targets, merged.saliency, grid.frames)


def _map(tokens: Tokens, change: Callable[[Tensor], Tensor]) -> Tokens:
    fields: dict[str, Any] = {name: None if value is None else change(value) for name, value in vars(tokens).items()}
    return Tokens(**fields)


def _join(parts: list[Tokens]) -> Tokens:
    """Concatenate tokens over time; parts without a mask are real."""
    if len(parts) == 1:
        return parts[0]
    if any(part.mask is not None for part in parts):
        parts = [part if part.mask is not None else replace(part, mask=part.size > 0) for part in parts]
    columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
    fields: dict[str, Any] = {
        name: None if values[0] is None else torch.cat(values, 1) for name, values in columns.items()
    }
    return Tokens(**fields)


def _pad(tokens: Tokens, count: int) -> Tokens:
    """Append masked tokens, in place of the outputs of fully masked windows, whose values are never read."""
    padding = _map(tokens, lambda value: value.new_zeros(value.shape[0], count, *value.shape[2:]))
    return _join([tokens, replace(padding, mask=padding.size > 0)])


def _add(pooled: tuple[Tensor, Tensor] | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Add the real tokens to the sum (B, C) and their number to the count (B, 1), in fp32 at least."""
    x = tokens.x.to(torch.promote_types(tokens.x.dtype, torch.float32))
    real = torch.ones_like(x[..., :1]) if tokens.mask is None else tokens.mask[..., None].to(x.dtype)
    total, count = (x * real).sum(1), real.sum(1)
    return (total, count) if pooled is None else (pooled[0] + total, pooled[1] + count)

"""The network on videos of any length: frames go in as they come, and only the tokens of open windows are held.

A window of block i can be merged as soon as its L_i frames are there, and nothing looks back at it later. So what the
forward of a whole clip computes block by block is computed window by window here: at the same cost, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtm.merging import FeatureGrid, Grid, Tokens
from vtm.merging.tokens import rewindow
from vtm.models.head import BlockPlan, BlockTrace
from vtm.models.vtm import VTM, Block


class ClosedWindows(NamedTuple):
    """What one block merged in neighbouring windows.

    Attributes:
        block: number of the block, from 0.
        first: number of the first of the windows in the stream, from 0.
        trace: rows are the windows of all clips, B · windows.
    """

    block: int
    first: int
    trace: BlockTrace


class Stream:
    """Evaluate a network on clips whose frames come little by little.

    Groupings and logits are those of `VTM.forward` on the whole clip. If that does not take the number of frames, they
    are those of the clip with the fewest masked frames at its end that make it fit. Whatever the number of frames,
    block i holds fewer than the N tokens of one window; no gradient is kept.

    Args:
        model: in evaluation mode.

    Attributes:
        frames: number of frames seen.

    Raises:
        ValueError: if the model is in training mode, or samples its targets in evaluation.

    >>> from vtm.merging import NoMerger
    >>> model = VTM(8, 3, window_frames=[2, 4], channels=[8, 8], num_heads=2, dropout=0.1, merge_layer=NoMerger).eval()
    >>> stream, features = Stream(model), torch.randn(1, 4, 2, 2, 8)
    >>> [len(stream.update(frame)) for frame in features.split(1, dim=1)]  # blocks that have closed a window
    [0, 1, 0, 2]
    >>> torch.allclose(stream.logits(), model(features).logits, atol=1e-5)
    True
    """

    def __init__(self, model: VTM) -> None:
        if model.training:
            raise ValueError("a stream evaluates, but the model is in training mode: call model.eval() first")
        if model.samples_in_eval:
            raise ValueError(
                "a stream cannot draw the noise of a whole clip at once, but the model samples its targets in "
                "evaluation: set merging.sample_in_eval=false, or call the model on whole clips"
            )
        self.model = model
        self.frames = 0
        self._layout: tuple[int, int, int, bool] | None = None  # B, H, W, and whether motion is given
        self._plans: list[BlockPlan] = []
        self._open: list[list[Tokens]] = [[] for _ in model.blocks]  # in order of time
        self._pooled: tuple[Tensor, Tensor] | None = None  # sum (B, C) and number (B, 1) of the tokens to average

    @torch.no_grad()
    def update(
        self, features: Tensor, *, motion: Tensor | None = None, mask: Tensor | None = None
    ) -> list[ClosedWindows]:
        """Take the next frames; return what was merged in the windows that they close, which the stream then forgets.

        Args:
            features: (B, t, H, W, C) from the encoder, any t; copied where they must be kept.
            motion: (B, t, H, W) magnitude of motion in pixels per frame, with all frames or with none.
            mask: (B, t) bool, True = real frame. What masked frames hold changes nothing.

        Raises:
            ValueError: on shapes that do not fit one another, the model, or the frames before, with the numbers.
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
        """Return the logits (B, K) of the frames so far; more frames may follow."""
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
                break  # a block that the forward leaves out
            last, _ = self._run(i, _pad(last, missing), windows=1)
        if last is not None:
            pooled = _add(pooled, last)
        assert pooled is not None
        total, count = pooled
        logits: Tensor = self.model.head((total / count.clamp(min=1)).to(self.model.head.weight.dtype))
        return logits

    def _check(self, features: Tensor, motion: Tensor | None, mask: Tensor | None) -> None:
        """Compare the shapes of a chunk with one another, the model and the first chunk."""
        self.model.check(features, motion, mask)
        batch, _, height, width = features.shape[:4]
        layout = (batch, height, width, motion is not None)
        if self._layout is None:
            self._plans = self.model.plan(self.model.window_frames[-1], height, width)
            self._layout = layout
        if layout != self._layout:
            raise ValueError(
                f"expected frames like those before, (B, H, W, with motion) = {self._layout}, got {layout}: "
                f"start a new stream for other clips"
            )

    def _next_part(self, available: int) -> int:
        """Count the frames to take next: to the end of an open first window, or whole first windows.

        The whole ones run as one batch, which ends where a window of the second block ends at the latest: so the batch
        is bounded, and no block is given tokens of a window after one that it closes.
        """
        first, *later = self.model.window_frames
        if begun := self.frames % first:
            return min(available, first - begun)
        span = later[0] if later else first
        part = min(available, span - self.frames % span)
        return part // first * first or part

    def _push(self, tokens: Tokens, end: int) -> list[ClosedWindows]:
        """Take the tokens of the frames up to number `end`, and run the blocks whose windows they close."""
        closed: list[ClosedWindows] = []
        begin, self.frames = self.frames, end
        for i, plan in enumerate(self._plans):
            first, stop = begin // plan.window_frames, end // plan.window_frames
            if first == stop:
                # copied, so that the caller's chunk does not stay in memory, and may change
                self._open[i].append(_map(tokens, torch.clone))
                return closed
            tokens = _join([*self._open[i], tokens])
            self._open[i] = []
            tokens, trace = self._run(i, tokens, windows=stop - first)
            closed.append(ClosedWindows(i, first, trace))
        self._pooled = _add(self._pooled, tokens)
        return closed

    def _run(self, i: int, tokens: Tokens, *, windows: int) -> tuple[Tokens, BlockTrace]:
        """Run block i on whole windows, (B, windows · N, C) to (B, windows · (N − R), C′)."""
        assert self._layout is not None
        batch, height, width, _ = self._layout
        block = self.model.blocks[i]
        assert isinstance(block, Block)
        step = self.model.grid or FeatureGrid(height, width)
        grid = Grid(self._plans[i].window_frames, step.height, step.width)
        tokens, merged = block(rewindow(tokens, batch * windows), grid)
        return rewindow(tokens, batch), BlockTrace(merged.grouping, merged.targets, merged.saliency, grid.frames)


def _map(tokens: Tokens, change: Callable[[Tensor], Tensor]) -> Tokens:
    fields: dict[str, Any] = {name: None if value is None else change(value) for name, value in vars(tokens).items()}
    return Tokens(**fields)


def _join(parts: list[Tokens]) -> Tokens:
    """Put tokens one after another; where only some have a mask, the others are real."""
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
    """Add masked tokens at the end: what windows without a real frame pass on, up to values that change nothing."""
    padding = _map(tokens, lambda value: value.new_zeros(value.shape[0], count, *value.shape[2:]))
    return _join([tokens, replace(padding, mask=padding.size > 0)])


def _add(pooled: tuple[Tensor, Tensor] | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Add the real tokens to a sum (B, C) and their number to a count (B, 1), in fp32 at least."""
    x = tokens.x.to(torch.promote_types(tokens.x.dtype, torch.float32))
    real = torch.ones_like(x[..., :1]) if tokens.mask is None else tokens.mask[..., None].to(x.dtype)
    total, count = (x * real).sum(1), real.sum(1)
    return (total, count) if pooled is None else (pooled[0] + total, pooled[1] + count)

"""Collect what every block did to one clip: group, saliency and target of every input token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vtm.merging import ClipMerge, FeatureGrid, Grouping
from vtm.models import HeadOutput

Scores = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class BlockView:
    """What one block did, on the grid of the encoder.

    Attributes:
        group: index of the token that holds each input token after this block, (T, H, W) int64 in [0, num_groups). An
            input token that was dropped has a number of its own, from num_groups on.
        target: which input tokens are at the positions of this block's targets, (T, H, W) bool; in a patched model, at
            the positions of the tokens after the block.
        saliency: saliency that this block estimated for the token that held each input token when it entered the block,
            (T, H, W) float32; None without an estimator.
        num_groups: number of tokens of the clip after this block that hold a visible input token.
        window_frames: frames that the block sees at a time, L; None in a patched model.
    """

    group: Tensor
    target: Tensor
    saliency: Tensor | None
    num_groups: int
    window_frames: int | None

    @property
    def dropped(self) -> Tensor:
        """Which input tokens were dropped, (T, H, W) bool."""
        return self.group >= self.num_groups

    @property
    def spans_frames(self) -> bool:
        """Whether a group has tokens of several frames."""
        groups = [set(frame.unique().tolist()) for frame in self.group]
        return sum(map(len, groups)) > len(set().union(*groups))


@dataclass(frozen=True)
class ClipView:
    """The frames of a clip and what every block did to them.

    Attributes:
        frames: frames of the clip, (T, 3, Y, X) uint8.
        times: times of the frames in seconds, (T,).
        blocks: blocks of the network, in order.
        scores: classes with their probabilities, best first, or ("value", x) for a regression.
        numbers: numbers of the blocks, counted from 1; empty if no block of the network is left out.
        step_frames: number of frames of a step; only the first is in `frames`, and its time is the mean of all.
    """

    frames: Tensor
    times: tuple[float, ...]
    blocks: tuple[BlockView, ...]
    scores: Scores
    numbers: tuple[int, ...] = ()
    step_frames: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the visible tokens of a frame, H and W."""
        _, height, width = self.blocks[0].group.shape
        return height, width

    @property
    def is_patched(self) -> bool:
        """Whether the blocks are those of a patched model."""
        return self.blocks[0].window_frames is None

    @property
    def has_dropped(self) -> bool:
        """Whether a block dropped tokens."""
        return any(bool(block.dropped.any()) for block in self.blocks)

    @property
    def spans_frames(self) -> bool:
        """Whether a block merged tokens of several frames."""
        return any(block.spans_frames for block in self.blocks)

    @classmethod
    def of(
        cls,
        frames: Tensor,
        times: Sequence[float],
        output: HeadOutput,
        grid: FeatureGrid,
        *,
        scores: Scores = (),
    ) -> Self:
        """Build the view from the outputs of the network.

        Args:
            frames: frames of the real steps, (T', 3, Y, X) uint8 with T' <= T; padded steps are not visible.
            times: times of these frames in seconds, (T',).
            output: outputs of the network for a batch of one clip.
            grid: layout of the tokens of a step; tokens of its prefix, such as CLS, are not visible.
            scores: scores of the clip, best first.

        Raises:
            ValueError: if the arguments do not match one another.
        """
        _check_frames(frames)
        if len(output.logits) != 1:
            raise ValueError(f"expected the outputs of one clip, got the outputs of {len(output.logits)} clips")
        num_tokens = output.blocks[0].grouping.index.numel()
        steps, left = divmod(num_tokens, grid.num_tokens)
        if left or not 0 < len(times) == len(frames) <= steps:
            raise ValueError(
                f"expected as many frames as times, 1 to the {steps} steps of {num_tokens} tokens in a grid of "
                f"{grid.num_tokens}, got {len(frames)} frames and {len(times)} times"
            )
        visible = _Visible(grid, len(times))
        blocks, before = [], Grouping.identity(1, num_tokens, device=output.logits.device)
        traces = zip(output.blocks, output.clip_groupings(), output.clip_targets(), strict=True)
        for trace, after, targets in traces:
            saliency = None
            if trace.saliency is not None:
                saliency = visible(trace.saliency.reshape(1, -1).gather(1, before.index)).float()
            block = _block(after, visible, targets=targets)
            blocks.append(replace(block, saliency=saliency, window_frames=trace.window_frames))
            before = after
        return cls(frames.cpu(), tuple(times), tuple(blocks), tuple(scores))

    @classmethod
    def of_merges(
        cls,
        frames: Tensor,
        times: Sequence[float],
        merges: Sequence[ClipMerge],
        grid: FeatureGrid,
        *,
        scores: Scores = (),
    ) -> Self:
        """Build the view from what a patched model merged; a block that took no token away is left out.

        Args:
            frames: frames of the clip as the model sees them, (F, 3, Y, X) uint8; F is T times the number of
                frames in a tubelet.
            times: times of these frames in seconds, (F,).
            merges: what each block merged, from `Trace.clip_merges`.
            grid: H × W tokens of a step.
            scores: scores of the clip, best first.

        Raises:
            ValueError: if the arguments do not match one another.
        """
        _check_frames(frames)
        if not merges:
            raise ValueError("expected the merges of at least one block, got none")
        if len(merges[0].grouping.index) != 1:
            raise ValueError(f"expected the merges of one clip, got {len(merges[0].grouping.index)}")
        num_tokens, steps, per_step = merges[0].grouping.index.numel(), merges[0].steps, grid.height * grid.width
        if num_tokens != steps * per_step:
            raise ValueError(
                f"expected a grid of {num_tokens // steps} tokens, since the clip has {num_tokens} tokens in "
                f"{steps} steps, got {grid.height} × {grid.width}"
            )
        step_frames = merges[0].tubelet
        if not len(frames) == len(times) == steps * step_frames:
            raise ValueError(
                f"expected {steps * step_frames} frames and times, since the clip has {steps} steps of {step_frames} "
                f"frames, got {len(frames)} frames and {len(times)} times; images of a batch are one clip with "
                "trace.clip_merges(images=…)"
            )
        visible = _Visible(FeatureGrid(grid.height, grid.width), steps)
        blocks = [_block(one.grouping, visible, targets=one.grouping.anchor, dropped=one.dropped) for one in merges]
        mean = [sum(times[first : first + step_frames]) / step_frames for first in range(0, len(times), step_frames)]
        return cls(
            frames[::step_frames].cpu(),
            tuple(mean),
            tuple(blocks),
            tuple(scores),
            numbers=tuple(one.block + 1 for one in merges),
            step_frames=step_frames,
        )


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"expected frames (T, 3, Y, X) of dtype torch.uint8, got {tuple(frames.shape)} of dtype {frames.dtype}"
        )


def _block(after: Grouping, visible: _Visible, *, targets: Tensor, dropped: Tensor | None = None) -> BlockView:
    """Build the view of a block without saliency.

    Args:
        after: groups of the tokens of the clip after the block, one row.
        visible: function that picks the visible tokens.
        targets: (1, M), indices of the targets among the tokens of the clip.
        dropped: tokens of the clip that were dropped, (1, N) bool; None if none was.
    """
    is_target = torch.zeros_like(after.index, dtype=torch.bool).scatter(1, targets, True)
    kept, group = visible(after.index).unique(return_inverse=True)
    if dropped is not None:
        lost = visible(dropped)
        group[lost] = len(kept) + torch.arange(int(lost.sum()))
    return BlockView(group, visible(is_target), None, len(kept), None)


class _Visible:
    """A function that picks the visible tokens (T', H, W) of a clip (1, T · tokens)."""

    def __init__(self, grid: FeatureGrid, steps: int) -> None:
        self.grid, self.steps = grid, steps

    def __call__(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, self.grid.num_tokens)[: self.steps, self.grid.prefix :]
        return rows.reshape(self.steps, self.grid.height, self.grid.width).detach().cpu()

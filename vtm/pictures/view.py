"""Collect what every block did to one clip: group, saliency and target of every input token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vtm.merging import FeatureGrid, Grouping
from vtm.models import HeadOutput

Scores = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class BlockView:
    """What one block did, on the grid of the encoder.

    Attributes:
        group: index of the token that holds each input token after this block, (T, H, W) int64 in [0, num_groups).
        target: which input tokens are at the positions of this block's targets, (T, H, W) bool.
        saliency: saliency that this block estimated for the token that held each input token when it entered the block,
            (T, H, W) float32; None without an estimator.
        num_groups: number of tokens of the clip after this block that hold a visible input token.
        window_frames: frames that the block sees at a time, L.
    """

    group: Tensor
    target: Tensor
    saliency: Tensor | None
    num_groups: int
    window_frames: int


@dataclass(frozen=True)
class ClipView:
    """The frames of a clip and what every block did to them.

    Attributes:
        frames: frames of the clip, (T, 3, Y, X) uint8.
        times: times of the frames in seconds, (T,).
        blocks: blocks of the network, in order.
        scores: classes with their probabilities, best first, or ("value", x) for a regression.
    """

    frames: Tensor
    times: tuple[float, ...]
    blocks: tuple[BlockView, ...]
    scores: Scores

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the visible tokens of a frame, H and W."""
        _, height, width = self.blocks[0].group.shape
        return height, width

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
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                f"expected frames (T, 3, Y, X) of dtype torch.uint8, got {tuple(frames.shape)} of dtype {frames.dtype}"
            )
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
            is_target = torch.zeros_like(after.index, dtype=torch.bool).scatter(1, targets, True)
            kept, group = visible(after.index).unique(return_inverse=True)
            saliency = None
            if trace.saliency is not None:
                saliency = visible(trace.saliency.reshape(1, -1).gather(1, before.index)).float()
            blocks.append(BlockView(group, visible(is_target), saliency, len(kept), trace.window_frames))
            before = after
        return cls(frames.cpu(), tuple(times), tuple(blocks), tuple(scores))


class _Visible:
    """A function that picks the visible tokens (T', H, W) of a clip (1, T · tokens)."""

    def __init__(self, grid: FeatureGrid, steps: int) -> None:
        self.grid, self.steps = grid, steps

    def __call__(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, self.grid.num_tokens)[: self.steps, self.grid.prefix :]
        return rows.reshape(self.steps, self.grid.height, self.grid.width).detach().cpu()

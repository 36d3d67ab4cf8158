"""What there is to see of one clip: of every input token, in every block, the group, the saliency, and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vtm.merging import Grid, Grouping
from vtm.models import HeadOutput


@dataclass(frozen=True)
class BlockView:
    """Show what one block did, on the grid of the encoder.

    Attributes:
        group: (T, H, W) int64 in [0, num_groups), the token that holds each input token after this block.
        target: (T, H, W) bool, the places of this block's targets.
        saliency: (T, H, W) float32, what this block estimated for the token that held each input token when it entered
            the block; None without an estimator.
        num_groups: tokens of the clip after this block, as far as they hold input tokens that are shown.
        window_frames: L, the frames that the block sees at a time.
    """

    group: Tensor
    target: Tensor
    saliency: Tensor | None
    num_groups: int
    window_frames: int


@dataclass(frozen=True)
class ClipView:
    """Show the frames of a clip and what every block did to them.

    Attributes:
        frames: (T, 3, Y, X) uint8.
        times: (T,) of the frames, in seconds.
        blocks: of the network, in order.
    """

    frames: Tensor
    times: tuple[float, ...]
    blocks: tuple[BlockView, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """H and W, the tokens of a frame that are shown."""
        _, height, width = self.blocks[0].group.shape
        return height, width

    @classmethod
    def of(
        cls,
        frames: Tensor,
        times: Sequence[float],
        output: HeadOutput,
        grid: Grid,
        *,
        window_frames: Sequence[int],
        prefix: int = 0,
    ) -> Self:
        """Read the outputs of the network for one clip.

        Args:
            frames: (T', 3, Y, X) uint8 of the real steps, T' <= T: padded steps are not shown.
            times: (T',) of these frames, in seconds.
            output: of a batch of one clip.
            grid: of the tokens that went into the network, T × H × W.
            window_frames: of the blocks that ran.
            prefix: how many tokens, such as CLS, come first in every frame of an encoder that puts all of a frame into
                one row, 1 × (prefix + side²). They are not shown, and the others become side × side.

        Raises:
            ValueError: if the arguments do not fit together.
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                f"expected frames (T, 3, Y, X) of dtype torch.uint8, got {tuple(frames.shape)} of dtype {frames.dtype}"
            )
        if not 0 < len(times) == len(frames) <= grid.frames:
            raise ValueError(
                f"expected as many frames as times, 1 to {grid.frames}, got {len(frames)} frames and {len(times)} times"
            )
        if len(output.logits) != 1 or len(window_frames) != len(output.blocks):
            raise ValueError(
                f"expected the outputs of one clip and window_frames of each of {len(output.blocks)} blocks, got "
                f"{len(output.logits)} clips and window_frames = {list(window_frames)}"
            )
        shown = _Shown(grid, len(times), prefix)
        blocks, before = [], Grouping.identity(1, shown.num_tokens, device=output.logits.device)
        traces = zip(output.blocks, output.clip_groupings(), output.clip_targets(), window_frames, strict=True)
        for trace, after, targets, length in traces:
            is_target = torch.zeros_like(after.index, dtype=torch.bool).scatter(1, targets, True)
            kept, group = shown(after.index).unique(return_inverse=True)
            saliency = None
            if trace.saliency is not None:
                saliency = shown(trace.saliency.reshape(1, -1).gather(1, before.index)).float()
            blocks.append(BlockView(group, shown(is_target), saliency, len(kept), length))
            before = after
        return cls(frames.cpu(), tuple(times), tuple(blocks))


def shown_grid(grid: Grid, prefix: int) -> tuple[int, int]:
    """Tell how many rows and columns of tokens are shown of a frame.

    Args:
        grid: of the tokens that go into the network.
        prefix: of these, how many of every frame are not shown, as in `ClipView.of`.

    Raises:
        ValueError: if the others are no square.

    >>> shown_grid(Grid(60, 14, 14), 0), shown_grid(Grid(60, 1, 197), 1)
    ((14, 14), (14, 14))
    """
    if not prefix:
        return grid.height, grid.width
    side = isqrt(max(0, grid.width - prefix))
    if grid.height != 1 or prefix < 0 or not side or side**2 != grid.width - prefix:
        raise ValueError(
            f"expected with prefix = {prefix} a grid of 1 × ({prefix} + side²) tokens, got {grid.height} × {grid.width}"
        )
    return side, side


class _Shown:
    """Lay the tokens of a clip (1, T · H · W) out as those that are shown, (T', H', W')."""

    def __init__(self, grid: Grid, steps: int, prefix: int) -> None:
        self.grid, self.steps, self.prefix = grid, steps, prefix
        self.num_tokens = grid.frames * grid.height * grid.width
        self.shape = shown_grid(grid, prefix)

    def __call__(self, values: Tensor) -> Tensor:
        if values.shape != (1, self.num_tokens):
            raise ValueError(
                f"expected {self.num_tokens} tokens, for a grid of {self.grid.frames} × {self.grid.height} × "
                f"{self.grid.width}, got {tuple(values.shape)}"
            )
        rows = values.reshape(self.grid.frames, -1)[: self.steps, self.prefix :]
        return rows.reshape(self.steps, *self.shape).detach().cpu()


class Look(NamedTuple):
    """What the model sees of one clip and does with it.

    Attributes:
        video: the path as it was given.
        frames: (T, 3, S, S) uint8, the first frame of each step inside the video.
        times: of the T steps, in seconds from the first frame.
        output: of one clip, padded to the number of steps that the model takes.
        grid: of that clip's tokens.
        prefix: number of tokens of each step that stand before those of the frame, such as CLS; then the grid is a row.
        window_frames: L of each block that ran.
        scores: as `Prediction.top`, of this clip.
    """

    video: str
    frames: Tensor
    times: list[float]
    output: HeadOutput
    grid: Grid
    prefix: int
    window_frames: list[int]
    scores: list[tuple[str, float]]

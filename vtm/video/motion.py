"""Measure the speed of each part of a frame, in pixels per frame of the square that the encoder takes.

Speed comes from the motion vectors that the codec stores with its P-frames or, without vectors, from the difference of
two frames. The vectors of B-frames are ignored because FFmpeg does not export which frame they refer to.
"""

from bisect import bisect_right
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vtm.video.view import View

MotionSource = Literal["codec", "difference"]

# Number of P-frames for a reliable median, and their largest distance in frames: half a second at 30 frames per second.
_ENOUGH = 4
_REACH = 16

# Gray levels that the pixels of a block must deviate from their mean (standard deviation) for its vector to count.
_TEXTURE = 3

# Positions in a block, from its center and relative to its side, of the pixels that show its texture.
_SAMPLES = (np.arange(4) + 0.5) / 4 - 0.5


class VectorMotion:
    """A collector of motion vectors that computes the speed at each step from the P-frames near it.

    A step uses the P-frames among its own frames. If these are fewer than four, it adds the last P-frames before them,
    of the same group of pictures and at most 16 frames away. If there are none, as right after an I-frame, it uses the
    next P-frame. The motion of a step therefore does not depend on the other steps. Blocks that refer to an older frame
    than the last I- or P-frame are not marked as such and appear too fast, hence the median over P-frames.

    Args:
        first: index of the first frame of each step (T,), in any order.
        last: index of the last frame of each step (T,).
        grid: H and W of the encoder's tokens.
        size: S, side of the square that the encoder takes.
        squash: see `View.of`.
    """

    def __init__(
        self, first: NDArray[np.int64], last: NDArray[np.int64], grid: tuple[int, int], *, size: int, squash: bool
    ) -> None:
        self._steps = list(zip(first.tolist(), last.tolist(), strict=True))
        self._begins, self._ends = np.sort(first) - _REACH, np.sort(last)
        self._grid = grid
        self._size, self._squash = size, squash
        self._fields: dict[int, NDArray[np.float64]] = {}  # P-frame to its speed on the grid, see `vector_field`
        self._opening: dict[int, int | None] = {}  # I-frame to the first P-frame after it
        self._anchor: int | None = None  # last I- or P-frame

    def restart(self) -> None:
        """Forget the last frame, before decoding continues elsewhere in the file."""
        self._anchor = None

    def see_intra(self, row: int) -> None:
        """Record the I-frame with index `row`. Frames must be passed in display order."""
        self._opening.setdefault(row, None)
        self._anchor = row

    def see_predicted(
        self,
        row: int,
        vectors: NDArray[Any] | None,
        luma: NDArray[Any],
        *,
        depth: int,
        turns: int,
        pixel_aspect: float = 1.0,
    ) -> None:
        """Record the motion vectors of a P-frame, which refer to the last I- or P-frame before it.

        Args:
            row: index of the frame.
            vectors: motion vectors as FFmpeg exports them; None if the frame has none.
            luma: brightness of the frame (height, width).
            depth: bits per value of `luma`.
            turns: quarter turns that make the frame upright, counter-clockwise.
            pixel_aspect: width of a pixel divided by its height.
        """
        anchor, self._anchor = self._anchor, row
        if anchor is None or anchor >= row:
            return
        opens = anchor in self._opening
        if opens:
            self._opening[anchor] = row
        near = np.searchsorted(self._begins, row, "right") > np.searchsorted(self._ends, row, "left")
        if vectors is not None and (near or opens):
            view = View.of(*luma.shape, size=self._size, squash=self._squash, turns=turns, pixel_aspect=pixel_aspect)
            vectors = stop_plain_blocks(vectors, luma, depth=depth)
            self._fields[row] = vector_field(vectors, row - anchor, view, self._grid)

    def awaits(self, row: int) -> bool:
        """Return whether frame `row` still needs the next P-frame, as none has been seen in its group of pictures."""
        opener = self._opener(row)
        return opener is not None and opener == self._anchor

    def speed(self) -> NDArray[np.float32]:
        """Compute the median speed over the P-frames of each step (T, H, W); NaN for steps without P-frames.

        A cell without vectors in every P-frame is set to the mean of the step's other cells.
        """
        motion = np.full((len(self._steps), *self._grid), np.nan, np.float32)
        for step, (first, last) in enumerate(self._steps):
            fields = [self._fields[row] for row in self._choose(first, last)]
            covered = ~np.isnan(fields).all(0) if fields else np.zeros(self._grid, np.bool_)
            if covered.any():
                typical = np.nanmedian(np.where(covered, fields, 0), 0)
                motion[step] = np.where(covered, typical, typical[covered].mean())
        return motion

    def _opener(self, row: int) -> int | None:
        """Return the I-frame that starts the group of pictures of a frame; None before the first I-frame."""
        return max((intra for intra in self._opening if intra <= row), default=None)

    def _choose(self, first: int, last: int) -> list[int]:
        """List the P-frames from which the motion of a step is computed."""
        rows = sorted(self._fields)
        start = max(first - _REACH, self._opener(first) or 0)
        before, inside, behind = (bisect_right(rows, row - 1) for row in (start, first, last + 1))
        chosen = rows[max(before, min(inside, behind - _ENOUGH)) : behind]
        opener = self._opener(last)
        after = None if opener is None else self._opening[opener]
        if not chosen and after in self._fields and last < after <= last + _REACH:
            return [after]
        return chosen


def stop_plain_blocks(vectors: NDArray[Any], luma: NDArray[Any], *, depth: int) -> NDArray[Any]:
    """Return the vectors with those of blocks without texture set to zero.

    Encoders minimize bits, not the error of motion: where a block looks the same wherever it is copied from, its vector
    is arbitrary, often long, and would count as fast motion.

    Args:
        vectors: see `vector_field`.
        luma: brightness of the frame (height, width).
        depth: bits per value of `luma`.
    """
    moved = np.flatnonzero((vectors["motion_x"] != 0) | (vectors["motion_y"] != 0))
    lines, columns = (
        (vectors[f"dst_{axis}"][moved, None] + vectors[side][moved, None] * _SAMPLES).astype(np.intp).clip(0, end - 1)
        for axis, side, end in (("y", "h", luma.shape[0]), ("x", "w", luma.shape[1]))
    )  # (N, 4)
    samples = (
        luma[lines[:, :, None], columns[:, None, :]].reshape(len(moved), len(_SAMPLES) ** 2).astype(np.float32)
    )  # (N, 16)
    plain = moved[samples.std(1) < _TEXTURE * 2 ** (depth - 8)]
    stopped = vectors.copy()
    stopped["motion_x"][plain] = stopped["motion_y"][plain] = 0
    return stopped


def vector_field(vectors: NDArray[Any], gap: int, view: View, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Average the speed of the blocks of a P-frame in each cell of the token grid, weighted by area.

    Args:
        vectors: motion vectors as FFmpeg exports them: blocks of w x h around (dst_x, dst_y), displaced by
            motion / motion_scale.
        gap: distance in frames to the frame that the vectors refer to.
        view: mapping from the frame to the square that the encoder takes.
        grid: H and W of the upright square.

    Returns:
        Speed in pixels per frame (H, W); NaN for cells without blocks.
    """
    vectors = vectors[vectors["source"] < 0]
    first_row, first_column, height, width = view.part
    scale_y, scale_x = view.scaled[0] / height, view.scaled[1] / width
    top, left = view.corner[0] + scale_y * first_row, view.corner[1] + scale_x * first_column
    displacement = np.hypot(scale_x * vectors["motion_x"], scale_y * vectors["motion_y"])
    speed = displacement / (np.maximum(vectors["motion_scale"], 1) * float(gap))  # (N,)
    rows, columns = grid[::-1] if view.turns % 2 else grid
    high, wide = scale_y * vectors["h"], scale_x * vectors["w"]
    over_y = _overlap(scale_y * vectors["dst_y"] - high / 2 - top, high, view.size, rows)  # (N, H)
    over_x = _overlap(scale_x * vectors["dst_x"] - wide / 2 - left, wide, view.size, columns)  # (N, W)
    area = over_y.T @ over_x  # (H, W)
    total = over_y.T @ (speed[:, None] * over_x)
    return np.rot90(np.where(area > 0, total / np.where(area > 0, area, 1), np.nan), view.turns)


def difference_motion(
    before: NDArray[np.uint8], after: NDArray[np.uint8], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """Estimate speed from two neighboring frames (3, S, S): the change in brightness over its slope, summed by cell.

    This is the speed perpendicular to edges, exact for small displacements. It is an underestimate where objects move
    along their edges or further than the width of their texture. One gray level is added to the slope, so that noise
    in plain areas does not count as motion.

    Returns:
        Speed in pixels per frame (H, W).
    """
    first, second = (np.tensordot((0.299, 0.587, 0.114), picture, 1) for picture in (before, after))  # (S, S)
    slope = np.hypot(*np.gradient((first + second) / 2))
    size = len(first)
    lines = np.arange(size, dtype=np.float64)
    over_y, over_x = (_overlap(lines, np.ones(size), size, cells) for cells in grid)
    change, steepness = (over_y.T @ values @ over_x for values in (np.abs(second - first), slope + 1))
    return (change / steepness).astype(np.float32)


def _overlap(start: NDArray[Any], length: NDArray[Any], size: int, cells: int) -> NDArray[np.float64]:
    """Compute the overlap of each interval with each of the cells that divide 0 .. size evenly: (N, cells)."""
    edges = np.linspace(0, size, cells + 1)
    start, end = start[:, None], (start + length)[:, None]
    overlap: NDArray[np.float64] = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
    return overlap.clip(min=0)

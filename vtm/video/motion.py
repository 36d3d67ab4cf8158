"""Measure how fast each part of the picture moves, in pixels per frame of the square that the encoder sees.

Two sources with one unit: the vectors that a codec stores with its P-frames, and where there are none the difference
of two frames. The vectors of B-frames are left out: they do not tell from which frame they count.
"""

from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# How many P-frames make a reliable average, and how many frames away they may be: half a second of ordinary video.
_ENOUGH = 4
_REACH = 16


class View(NamedTuple):
    """Say how a frame becomes the square that the encoder sees: scaled, cut out, turned."""

    frame: tuple[int, int]  # height and width
    scaled: tuple[int, int]
    size: int  # S
    turns: int  # quarter turns, counter-clockwise

    @classmethod
    def of(cls, height: int, width: int, *, size: int, squash: bool, turns: int) -> "View":
        """Scale the shortest side to S to cut out the centre, or both sides if the frame is to be squashed."""
        scale = size / min(height, width)
        scaled = (size, size) if squash else (max(size, round(height * scale)), max(size, round(width * scale)))
        return cls((height, width), scaled, size, turns % 4)

    @property
    def corner(self) -> tuple[int, int]:
        """Name the first row and column of the scaled frame that stay."""
        return (self.scaled[0] - self.size) // 2, (self.scaled[1] - self.size) // 2

    def cut(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """Take the square out of a scaled frame (height, width, ...) and turn it upright."""
        top, left = self.corner
        return np.rot90(scaled[top : top + self.size, left : left + self.size], self.turns)


class VectorMotion:
    """Collect motion vectors while frames are decoded, and tell the speed at each step from the P-frames there.

    These are the P-frames among the step's frames and, if they are fewer than four, the last ones before, of the same
    group of pictures and at most 16 frames away. Right after an I-frame, where there are none, it is the next one.
    So the motion of a step does not depend on the other steps. A block that counts from an earlier frame than the last
    I- or P-frame does not say so and looks too fast, which is why the median is taken.

    Args:
        first: The number of the first frame of each step, ascending or not.
        last: That of its last frame.
        grid: H and W of the encoder's tokens.
        size: S, the side of the square that the encoder sees.
        squash: As for `View.of`.
    """

    def __init__(
        self, first: NDArray[np.int64], last: NDArray[np.int64], grid: tuple[int, int], *, size: int, squash: bool
    ) -> None:
        self._steps = list(zip(first.tolist(), last.tolist(), strict=True))
        self._begins, self._ends = np.sort(first) - _REACH, np.sort(last)
        self._grid = grid
        self._size, self._squash = size, squash
        self._fields: dict[int, NDArray[np.float64]] = {}  # of P-frames: see `vector_field`
        self._opening: dict[int, int | None] = {}  # of I-frames: the first P-frame after each
        self._anchor: int | None = None

    def restart(self) -> None:
        """Forget the last frame: decoding goes on at another place."""
        self._anchor = None

    def see_intra(self, row: int) -> None:
        """Take note of an I-frame, the frame number `row`. Frames come in order of display."""
        self._opening.setdefault(row, None)
        self._anchor = row

    def see_predicted(self, row: int, vectors: NDArray[Any] | None, height: int, width: int, turns: int) -> None:
        """Take in the vectors of a P-frame; they count from the last I- or P-frame before it."""
        anchor, self._anchor = self._anchor, row
        if anchor is None or anchor >= row:
            return
        opens = anchor in self._opening
        if opens:
            self._opening[anchor] = row
        near = np.searchsorted(self._begins, row, "right") > np.searchsorted(self._ends, row, "left")
        if vectors is not None and (near or opens):
            view = View.of(height, width, size=self._size, squash=self._squash, turns=turns)
            self._fields[row] = vector_field(vectors, row - anchor, view, self._grid)

    def awaits(self, row: int) -> bool:
        """Tell whether the frame `row` has no P-frame yet to take its motion from, and the next one may be it."""
        opener = self._opener(row)
        return opener is not None and opener == self._anchor

    def speed(self) -> NDArray[np.float32]:
        """Take the median over the P-frames at each step, (T, H, W); NaN at steps that have none.

        A cell that every P-frame codes without vectors has the mean of the step's other cells.
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
        """Find the I-frame from which the group of pictures around a frame starts."""
        return max((intra for intra in self._opening if intra <= row), default=None)

    def _choose(self, first: int, last: int) -> list[int]:
        rows = sorted(self._fields)
        start = max(first - _REACH, self._opener(first) or 0)
        before, inside, behind = (bisect_right(rows, row - 1) for row in (start, first, last + 1))
        chosen = rows[max(before, min(inside, behind - _ENOUGH)) : behind]
        opener = self._opener(last)
        after = None if opener is None else self._opening[opener]
        if not chosen and after in self._fields and last < after <= last + _REACH:
            return [after]
        return chosen


def vector_field(vectors: NDArray[Any], gap: int, view: View, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Average the speed of the blocks of a P-frame on each cell of the token grid, by area: (H, W), NaN if it has none.

    Args:
        vectors: As FFmpeg exports them: blocks of w x h around (dst_x, dst_y), displaced by motion / motion_scale.
        gap: How many frames before this one the frame is from which the displacement counts.
        view: How the frame becomes the square.
        grid: H and W of the upright square.
    """
    vectors = vectors[vectors["source"] < 0]
    scale_y, scale_x = view.scaled[0] / view.frame[0], view.scaled[1] / view.frame[1]
    top, left = view.corner
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
    """Estimate speed from two neighbouring frames (3, S, S): the change in brightness over its slope, summed by cell.

    This is the speed across edges, exact for small steps. It says too little where things move along their edges or
    further than their texture is wide. One grey level is added to the slope, so that noise on plain areas is no motion.
    """
    first, second = (np.tensordot((0.299, 0.587, 0.114), picture, 1) for picture in (before, after))  # (S, S)
    slope = np.hypot(*np.gradient((first + second) / 2))
    size = len(first)
    lines = np.arange(size, dtype=np.float64)
    over_y, over_x = (_overlap(lines, np.ones(size), size, cells) for cells in grid)
    change, steepness = (over_y.T @ values @ over_x for values in (np.abs(second - first), slope + 1))
    return (change / steepness).astype(np.float32)


def _overlap(start: NDArray[Any], length: NDArray[Any], size: int, cells: int) -> NDArray[np.float64]:
    """Measure how much of each interval lies in each of the cells that divide 0 .. size evenly: (N, cells)."""
    edges = np.linspace(0, size, cells + 1)
    start, end = start[:, None], (start + length)[:, None]
    overlap: NDArray[np.float64] = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
    return overlap.clip(min=0)

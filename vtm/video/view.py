"""Turn a frame into an upright picture of square pixels: whole, or the square that an encoder takes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

# Recorded with stored features. Increase the rule when the squares of some videos change. Before rule 1, pixels counted
# as square whatever the file declared, and frames marked as interlaced were blurred.
PIXEL_RULE = 1
PYAV_VERSION = av.__version__

# Frames whose longer side is more than this many times the shorter one are cut before they are scaled, so that the cost
# of a frame is bounded. The frames of ordinary videos are scaled whole.
_ELONGATED = 4

# Chroma samples of common pixel formats cover up to this many pixels in each direction.
_CHROMA = 4


class View(NamedTuple):
    """Mapping from a frame to the square that the encoder takes: cut, scale, crop, rotate."""

    part: tuple[int, int, int, int]  # top, left, height and width of the part of the frame that is scaled
    scaled: tuple[int, int]  # height and width of the part after scaling
    size: int  # S
    turns: int  # quarter turns, counter-clockwise
    crop: float = 0.5  # where the square lies along the longer side of the upright frame, from its left or top

    @classmethod
    def of(
        cls,
        height: int,
        width: int,
        *,
        size: int,
        squash: bool,
        turns: int,
        pixel_aspect: float = 1.0,
        crop: float = 0.5,
    ) -> View:
        """Make the view that scales the shortest side to S and crops a square or, to squash, scales both sides to S.

        Args:
            height: height of the frame in pixels.
            width: width of the frame in pixels.
            size: S, side of the square in pixels.
            squash: scale both sides to S.
            turns: quarter turns, counter-clockwise.
            pixel_aspect: width of a pixel of the frame divided by its height.
            crop: where the square lies along the longer side of the upright frame, from 0, the left or top, to 1.
        """
        if squash:
            return cls((0, 0, height, width), (size, size), size, turns % 4)
        scale = size / min(height, width * pixel_aspect)
        top, rows = _middle(height, _ELONGATED * width * pixel_aspect)
        left, columns = _middle(width, _ELONGATED * height / pixel_aspect)
        scaled = max(size, round(rows * scale)), max(size, round(columns * pixel_aspect * scale))
        return cls((top, left, rows, columns), scaled, size, turns % 4, crop)

    @property
    def corner(self) -> tuple[int, int]:
        """First row and column of the crop in the scaled part."""
        rest = self.scaled[0] - self.size, self.scaled[1] - self.size
        # the left or top of the upright frame is at the far end of a side that a turn reverses
        reversed_rows, reversed_columns = self.turns in (2, 3), self.turns in (1, 2)
        shares = (1 - self.crop if turned else self.crop for turned in (reversed_rows, reversed_columns))
        top, left = (int(length * share) for length, share in zip(rest, shares, strict=True))
        return top, left

    def cut(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """Crop the square out of the scaled part (height, width, ...) and rotate it upright."""
        top, left = self.corner
        return np.rot90(scaled[top : top + self.size, left : left + self.size], self.turns)


def whole_shape(
    height: int, width: int, *, shortest_side: int | None, turns: int, pixel_aspect: float = 1.0
) -> tuple[int, int]:
    """Return the height and width of a frame as an upright picture of square pixels.

    Args:
        height: height of the frame in pixels.
        width: width of the frame in pixels.
        shortest_side: pixels to which a longer shortest side is scaled down; None to keep the size.
        turns: quarter turns, counter-clockwise.
        pixel_aspect: width of a pixel of the frame divided by its height.

    >>> whole_shape(576, 720, shortest_side=None, turns=0, pixel_aspect=16 / 15)
    (576, 768)
    >>> whole_shape(1080, 1920, shortest_side=720, turns=1)
    (1280, 720)
    """
    sides = height, width * pixel_aspect
    scale = 1.0 if shortest_side is None else min(1.0, shortest_side / min(sides))
    upright = sides[::-1] if turns % 2 else sides
    return max(1, round(upright[0] * scale)), max(1, round(upright[1] * scale))


def _middle(length: int, limit: float) -> tuple[int, int]:
    """Return the start and length of the middle of a side, which is the whole side if it is within the limit."""
    start = max(0, int(length - limit) // 2) // _CHROMA * _CHROMA
    return start, length - 2 * start


class Scaler:
    """A scaler of frames by area averaging, which keeps its tables from frame to frame."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._cutter: tuple[Any, Graph] | None = None

    def square(self, frame: VideoFrame, view: View) -> NDArray[np.uint8]:
        """Return the upright square of a frame in RGB (3, S, S)."""
        return view.cut(self._scale(frame, view.part, view.scaled)).transpose(2, 0, 1)

    def whole(self, frame: VideoFrame, shape: tuple[int, int], *, turns: int) -> NDArray[np.uint8]:
        """Return the whole frame in RGB (3, H, W), rotated upright.

        Args:
            frame: frame of the file.
            shape: H and W, those of `whole_shape`.
            turns: quarter turns, counter-clockwise.
        """
        scaled = self._scale(frame, (0, 0, frame.height, frame.width), shape[::-1] if turns % 2 else shape)
        return np.rot90(scaled, turns).transpose(2, 0, 1)

    def _scale(self, frame: VideoFrame, part: tuple[int, int, int, int], scaled: tuple[int, int]) -> NDArray[np.uint8]:
        """Return a part of a frame in RGB (height, width, 3), scaled by area averaging."""
        if frame.interlaced_frame or part != (0, 0, frame.height, frame.width):
            frame = self._cut(frame, part)
        height, width = scaled
        area = Interpolation.AREA
        picture = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=area, threads=1)
        return cast(NDArray[np.uint8], picture.to_ndarray())

    def _cut(self, frame: VideoFrame, part: tuple[int, int, int, int]) -> VideoFrame:
        """Return a part of a frame, marked as progressive, without copying its pixels.

        Swscale would scale each field of an interlaced frame by itself, which blurs progressive pictures.
        """
        kind = (frame.width, frame.height, frame.format.name, part)
        if self._cutter is None or self._cutter[0] != kind:
            top, left, height, width = part
            graph = Graph()
            graph.threads = 1
            graph.link_nodes(
                graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
                ),
                graph.add("crop", f"w={width}:h={height}:x={left}:y={top}:exact=1"),
                graph.add("setfield", "prog"),
                graph.add("buffersink"),
            ).configure()
            self._cutter = kind, graph
        graph = self._cutter[1]
        graph.push(frame)
        cut = graph.pull()
        assert isinstance(cut, VideoFrame)
        return cut

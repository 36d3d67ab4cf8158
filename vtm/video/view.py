"""Turn a frame into the upright square of square pixels that an encoder takes: cut, scale, crop, rotate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

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

    @classmethod
    def of(cls, height: int, width: int, *, size: int, squash: bool, turns: int, pixel_aspect: float = 1.0) -> View:
        """Make the view that scales the shortest side to S and crops the center or, to squash, scales both sides to S.

        Args:
            height: height of the frame in pixels.
            width: width of the frame in pixels.
            size: S, side of the square in pixels.
            squash: scale both sides to S.
            turns: quarter turns, counter-clockwise.
            pixel_aspect: width of a pixel of the frame divided by its height.
        """
        if squash:
            return cls((0, 0, height, width), (size, size), size, turns % 4)
        scale = size / min(height, width * pixel_aspect)
        top, rows = _middle(height, _ELONGATED * width * pixel_aspect)
        left, columns = _middle(width, _ELONGATED * height / pixel_aspect)
        scaled = max(size, round(rows * scale)), max(size, round(columns * pixel_aspect * scale))
        return cls((top, left, rows, columns), scaled, size, turns % 4)

    @property
    def corner(self) -> tuple[int, int]:
        """First row and column of the crop in the scaled part."""
        return (self.scaled[0] - self.size) // 2, (self.scaled[1] - self.size) // 2

    def cut(self, scaled: NDArray[Any]) -> NDArray[Any]:
        """Crop the square out of the scaled part (height, width, ...) and rotate it upright."""
        top, left = self.corner
        return np.rot90(scaled[top : top + self.size, left : left + self.size], self.turns)


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
        if frame.interlaced_frame or view.part != (0, 0, frame.height, frame.width):
            frame = self._cut(frame, view)
        height, width = view.scaled
        area = Interpolation.AREA
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=area, threads=1)
        return view.cut(scaled.to_ndarray()).transpose(2, 0, 1)

    def _cut(self, frame: VideoFrame, view: View) -> VideoFrame:
        """Return a part of a frame, marked as progressive, without copying its pixels.

        Swscale would scale each field of an interlaced frame by itself, which blurs progressive pictures.
        """
        kind = (frame.width, frame.height, frame.format.name, view.part)
        if self._cutter is None or self._cutter[0] != kind:
            top, left, height, width = view.part
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
        part = graph.pull()
        assert isinstance(part, VideoFrame)
        return part

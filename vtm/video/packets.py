"""Hold what the packets of a video tell without decoding it: when each frame is shown and where decoding can start."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from math import floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Matroska rounds time stamps to whole milliseconds, so a frame may be stamped up to half of one too late.
_CLOCK_ERROR = 0.0005

# Reordering moves a frame by 16 places at most; a time stamp this far out of order is damaged.
_OUT_OF_ORDER = 64


class PacketTable(NamedTuple):
    """Hold the time stamps of a video stream, in ticks of its clock."""

    pts: NDArray[np.int64]  # of every frame, ascending
    keys: NDArray[np.int64]  # of the frames where decoding can start, ascending
    end: int  # when the last frame leaves the screen
    tick: Fraction  # seconds
    codec: str
    stamps: list[int] | None  # if the packets carry no time of display: the one of each, in the order of the file

    @property
    def length(self) -> float:
        """Tell how long the frames are on screen, in seconds."""
        return float((self.end - int(self.pts[0])) * self.tick)

    def rows(self, times: Sequence[float]) -> NDArray[np.int64]:
        """Find the numbers of the frames on screen at times in seconds."""
        ticks = [floor((time + _CLOCK_ERROR) / self.tick) for time in times]
        found: NDArray[np.int64] = np.searchsorted(self.pts, self.pts[0] + ticks, "right") - 1
        return found.clip(min=0)

    def row(self, pts: int) -> int:
        """Find the number of the frame with a time stamp, or of the first one after it."""
        return int(np.searchsorted(self.pts, pts))

    def groups(self, stamps: Iterable[int]) -> Iterator[tuple[int, set[int]]]:
        """Divide ascending time stamps into groups of pictures: the number of the key frame and the stamps."""
        keys = self.keys.tolist()
        for key, group in groupby(stamps, key=lambda pts: max(bisect_right(keys, pts) - 1, 0)):
            yield key, set(group)


def in_order(pts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which time stamps are sound; damaged ones lie far from their place in the file.

    >>> in_order([10, 9 << 40, *range(11, 100)]).tolist()[:4]
    [True, False, True, True]
    """
    stamps = np.asarray(pts)
    sound = np.ones(len(stamps), np.bool_)
    for _ in range(2):  # a stamp that is far off moves the places of others
        (places,) = np.nonzero(sound)
        ranks = np.argsort(np.argsort(stamps[places], kind="stable"))
        sound[places] = abs(ranks - np.arange(len(places))) <= _OUT_OF_ORDER
    return sound

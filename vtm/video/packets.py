"""The packet table of a video: when each frame is shown and where decoding can start."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from math import floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Matroska rounds time stamps to whole milliseconds, so a time stamp may be up to half a millisecond too late.
_CLOCK_ERROR = 0.0005

# Reordering moves a frame by at most 16 positions; a time stamp this far out of order is damaged.
_OUT_OF_ORDER = 64


class Entry(NamedTuple):
    """The packet of a key frame."""

    number: int  # index of the packet in the file
    position: int  # position in the file in bytes
    size: int  # size in bytes
    pts: int  # time stamp that the packet has in the file


class PacketTable(NamedTuple):
    """Time stamps of a video stream, in ticks of its clock."""

    pts: NDArray[np.int64]  # presentation time stamp of every frame, ascending
    keys: NDArray[np.int64]  # time stamps of the key frames, where decoding can start, ascending
    end: int  # end of the last frame
    tick: Fraction  # length of a tick in seconds
    codec: str  # FFmpeg's name of the codec
    stamps: list[int | None] | None  # time stamps of the packets in file order, if they replace those of the packets
    entries: list[Entry] | None = None  # the packets of the key frames, if `stamps` replaces their time stamps

    @property
    def length(self) -> float:
        """Length of the video in seconds."""
        return float((self.end - int(self.pts[0])) * self.tick)

    def rows(self, times: Sequence[float]) -> NDArray[np.int64]:
        """Return the indices of the frames on screen at the given times in seconds."""
        ticks = [floor((time + _CLOCK_ERROR) / self.tick) for time in times]
        rows: NDArray[np.int64] = np.searchsorted(self.pts, self.pts[0] + ticks, "right") - 1
        return rows.clip(min=0)

    def row(self, pts: int) -> int:
        """Return the index of the frame with a time stamp, or of the first frame after it."""
        return int(np.searchsorted(self.pts, pts))

    def entry(self, number: int) -> Entry | None:
        """Return the packet of the key frame with index `number`, if it must be found by its position in the file."""
        return self.entries[number] if number and self.entries is not None else None

    def groups(self, stamps: Iterable[int]) -> Iterator[tuple[int, set[int]]]:
        """Divide ascending time stamps by group of pictures; yield the index of the key frame and the time stamps."""
        keys = self.keys.tolist()
        for key, group in groupby(stamps, key=lambda pts: max(bisect_right(keys, pts) - 1, 0)):
            yield key, set(group)


def in_order(pts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which time stamps are plausible; damaged ones are far from their position in the file.

    >>> in_order([10, 9 << 40, *range(11, 100)]).tolist()[:4]
    [True, False, True, True]
    """
    stamps = np.asarray(pts)
    plausible = np.ones(len(stamps), np.bool_)
    for _ in range(2):  # a damaged time stamp shifts the ranks of others
        (positions,) = np.nonzero(plausible)
        ranks = np.argsort(np.argsort(stamps[positions], kind="stable"))
        plausible[positions] = abs(ranks - np.arange(len(positions))) <= _OUT_OF_ORDER
    return plausible

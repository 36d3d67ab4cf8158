"""Choose the times at which a video is looked at: pure functions and, on top of them, the two clip protocols.

A protocol turns the length of a video (or of its region of interest) into clips. `Single` looks at the whole at once,
`Windows` at one stretch of fixed length after another, one frame per second, as ViS4mer does on LVU.
"""

from dataclasses import dataclass
from math import floor
from typing import Protocol

import torch


def spread(duration: float, num_frames: int) -> list[float]:
    """Spread times evenly over a video: the middles of equal parts, (i + 1/2) * duration / num_frames.

    >>> spread(8.0, 4)
    [1.0, 3.0, 5.0, 7.0]
    """
    return [(i + 0.5) * duration / num_frames for i in range(num_frames)]


def every_second(start: float, num_frames: int) -> list[float]:
    """List one time per second from the start on.

    >>> every_second(2.0, 3)
    [2.0, 3.0, 4.0]
    """
    return [start + i for i in range(num_frames)]


def windows(duration: float, length: float, stride: float) -> list[float]:
    """List the start times of all complete windows; a video shorter than one window has a single one.

    >>> windows(63.0, 60, 1)
    [0.0, 1.0, 2.0, 3.0]
    >>> windows(18.0, 60, 1)
    [0.0]
    """
    return [float(i * stride) for i in range(max(floor((duration - length) / stride), 0) + 1)]


class ClipProtocol(Protocol):
    """Say which clips a video has and which times a clip looks at; seconds count from the start of its region."""

    @property
    def num_frames(self) -> int:
        """T, the sampled steps of every clip."""

    def starts(self, duration: float) -> list[float]:
        """List where the clips of the evaluation start."""

    def draw(self, duration: float) -> float:
        """Choose where the clip of one training step starts, with torch's global random numbers."""

    def times(self, start: float, duration: float) -> list[float]:
        """List the times of a clip that lie inside the region: T of them, or fewer where the region ends early."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """Look once at the whole video, with its frames spread evenly; training and evaluation see the same clip.

    Args:
        num_frames: T, the sampled steps.
    """

    num_frames: int

    def starts(self, duration: float) -> list[float]:
        """List the one start, 0."""
        return [0.0]

    def draw(self, duration: float) -> float:
        """Choose the only start, 0."""
        return 0.0

    def times(self, start: float, duration: float) -> list[float]:
        """Spread all T times over the whole."""
        return spread(duration, self.num_frames)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Look at stretches of T seconds with one frame per second: in training a random one, in evaluation all.

    Args:
        num_frames: T, the length of a window in frames and in seconds.
        stride: Seconds from one window of the evaluation to the next. Training windows start at any whole second.
    """

    num_frames: int
    stride: float

    def starts(self, duration: float) -> list[float]:
        """List the starts of all complete windows."""
        return windows(duration, self.num_frames, self.stride)

    def draw(self, duration: float) -> float:
        """Draw one of the complete windows that start at a whole second, all equally likely."""
        candidates = windows(duration, self.num_frames, 1.0)
        return candidates[int(torch.randint(len(candidates), ()))]

    def times(self, start: float, duration: float) -> list[float]:
        """List the seconds of the window that lie before the end; the first one always does."""
        return [time for time in every_second(start, self.num_frames) if time == start or time < duration]

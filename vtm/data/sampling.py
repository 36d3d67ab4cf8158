"""Choose the times at which a video is looked at: pure functions and, on top of them, the two clip protocols.

A protocol turns the length of a video (or of its region of interest) into clips. `Single` looks at the whole at once,
`Windows` at one stretch of fixed length after another, one frame per second, as ViS4mer does on LVU. It also lists the
times that any of its clips may look at, at which features are stored.
"""

from dataclasses import dataclass
from math import ceil, floor
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

    @property
    def sampling(self) -> str:
        """Name the rule of `stored`: part of the key of stored features."""

    def starts(self, duration: float) -> list[float]:
        """List where the clips of the evaluation start."""

    def times(self, start: float, duration: float) -> list[float]:
        """List the times of a clip that lie inside the region: T of them, or fewer where the region ends early."""

    def draw(self, duration: float) -> list[float]:
        """Choose the times of the clip of one training step, with torch's global random numbers."""

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List all times, ascending, that training clips (or those of the evaluation) may look at."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """Look once at the whole video, with its frames spread evenly.

    Args:
        num_frames: T, the sampled steps.
        train_positions: How many evenly spread positions the T steps of a training clip are drawn from, a multiple of
            T; None: training sees the clip of the evaluation. ViS4mer draws 64 of 256 on COIN and of 512 on Breakfast.
    """

    num_frames: int
    train_positions: int | None = None

    def __post_init__(self) -> None:
        if self.train_positions is not None and (self.train_positions % self.num_frames or self.train_positions <= 0):
            raise ValueError(
                f"expected train_positions to be a multiple of num_frames = {self.num_frames}, "
                f"got {self.train_positions}"
            )

    @property
    def sampling(self) -> str:
        """Name the number of steps and of positions."""
        return f"spread{self.num_frames}" + (f"of{self.train_positions}" if self.train_positions else "")

    def starts(self, duration: float) -> list[float]:
        """List the one start, 0."""
        return [0.0]

    def times(self, start: float, duration: float) -> list[float]:
        """Spread T times over the whole; they are training positions, the middle one of each group of P / T."""
        positions = self._positions(duration)
        share = len(positions) // self.num_frames
        return positions[share // 2 :: share]

    def draw(self, duration: float) -> list[float]:
        """Draw T of the training positions without repetition, all equally likely, in order of time."""
        if self.train_positions is None:
            return self.times(0.0, duration)
        chosen = torch.randperm(self.train_positions)[: self.num_frames].sort().values
        positions = self._positions(duration)
        return [positions[i] for i in chosen.tolist()]

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List the training positions, or the T times of the evaluation."""
        return self._positions(duration) if train else self.times(0.0, duration)

    def _positions(self, duration: float) -> list[float]:
        return spread(duration, self.train_positions or self.num_frames)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Look at stretches of T seconds with one frame per second: in training a random one, in evaluation all.

    Args:
        num_frames: T, the length of a window in frames and in seconds.
        stride: Whole seconds from one window of the evaluation to the next. Training windows start at any second.
    """

    num_frames: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride != int(self.stride):
            raise ValueError(f"expected stride as a whole number of seconds from 1 on, got {self.stride}")

    @property
    def sampling(self) -> str:
        """Name the rate; windows of any length and stride share what is stored."""
        return "1fps"

    def starts(self, duration: float) -> list[float]:
        """List the starts of all complete windows."""
        return windows(duration, self.num_frames, self.stride)

    def times(self, start: float, duration: float) -> list[float]:
        """List the seconds of the window that lie before the end; the first one always does."""
        return [time for time in every_second(start, self.num_frames) if time == start or time < duration]

    def draw(self, duration: float) -> list[float]:
        """Draw one of the complete windows that start at a whole second, all equally likely."""
        candidates = windows(duration, self.num_frames, 1)
        return self.times(candidates[int(torch.randint(len(candidates), ()))], duration)

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List every second before the end."""
        return every_second(0.0, max(1, ceil(duration)))

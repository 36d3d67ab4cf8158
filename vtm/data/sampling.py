"""Choose the sampled times of a video: pure functions, and the two clip protocols built on them.

A protocol turns the length of a video (or of its region of interest) into clips. `Single` samples the whole video as
one clip; `Windows` samples windows of fixed length at one frame per second, as ViS4mer does on LVU. A protocol also
lists all times that its clips may sample, at which features are stored.
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import Protocol

import torch


def spread(duration: float, num_frames: int) -> list[float]:
    """Return the midpoints of equal parts of a video, (i + 1/2) * duration / num_frames.

    >>> spread(8.0, 4)
    [1.0, 3.0, 5.0, 7.0]
    """
    return [(i + 0.5) * duration / num_frames for i in range(num_frames)]


def every_second(start: float, num_frames: int) -> list[float]:
    """Return one time per second, beginning at the start.

    >>> every_second(2.0, 3)
    [2.0, 3.0, 4.0]
    """
    return [start + i for i in range(num_frames)]


def windows(duration: float, length: float, stride: float) -> list[float]:
    """Return the start times of all complete windows; a video shorter than one window has a single one.

    >>> windows(63.0, 60, 1)
    [0.0, 1.0, 2.0, 3.0]
    >>> windows(18.0, 60, 1)
    [0.0]
    """
    return [float(i * stride) for i in range(max(floor((duration - length) / stride), 0) + 1)]


class ClipProtocol(Protocol):
    """Protocol that chooses the clips of a video and their times, in seconds from the start of its region of interest.

    The `duration` that its methods take is the length of the region in seconds.
    """

    @property
    def num_frames(self) -> int:
        """T, the number of sampled steps of every clip."""

    @property
    def sampling(self) -> str:
        """Name of the rule behind `stored`, part of the key of stored features."""

    def starts(self, duration: float) -> list[float]:
        """List the start times of the evaluation clips."""

    def times(self, start: float, duration: float) -> list[float]:
        """List the times of a clip inside the region: T times, or fewer if the region ends before the clip."""

    def draw(self, duration: float) -> list[float]:
        """Draw the times of a training clip from torch's global random generator."""

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List all times, ascending, that training clips (or evaluation clips) may sample."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """Protocol of one clip per video, with evenly spread frames.

    Args:
        num_frames: T, number of sampled steps.
        train_positions: P, number of evenly spread positions from which the T steps of a training clip are drawn, a
            multiple of T. None trains on the evaluation clip. ViS4mer draws 64 of 256 on COIN and of 512 on Breakfast.

    Raises:
        ValueError: if `train_positions` is not a positive multiple of `num_frames`.
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
        """Name of the rule, with the numbers of steps and positions."""
        return f"spread{self.num_frames}" + (f"of{self.train_positions}" if self.train_positions else "")

    def starts(self, duration: float) -> list[float]:
        """Return the single start time, 0."""
        return [0.0]

    def times(self, start: float, duration: float) -> list[float]:
        """Return T evenly spread times: the middle one of each P / T training positions."""
        positions = self._positions(duration)
        step = len(positions) // self.num_frames
        return positions[step // 2 :: step]

    def draw(self, duration: float) -> list[float]:
        """Draw T of the training positions uniformly without replacement, in order of time."""
        if self.train_positions is None:
            return self.times(0.0, duration)
        chosen = torch.randperm(self.train_positions)[: self.num_frames].sort().values
        positions = self._positions(duration)
        return [positions[i] for i in chosen.tolist()]

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List the P training positions, or the T times of the evaluation clip."""
        return self._positions(duration) if train else self.times(0.0, duration)

    def _positions(self, duration: float) -> list[float]:
        return spread(duration, self.train_positions or self.num_frames)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Protocol of windows of T seconds at one frame per second: a random window for training, all for evaluation.

    Args:
        num_frames: T, length of a window in frames and in seconds.
        stride: whole seconds between the starts of evaluation windows. Training windows start at any whole second.

    Raises:
        ValueError: if `stride` is not a whole number of at least 1.
    """

    num_frames: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride != int(self.stride):
            raise ValueError(f"expected stride to be a whole number of seconds, at least 1, got {self.stride}")

    @property
    def sampling(self) -> str:
        """Name of the rule: the frame rate, since windows of any length and stride share the stored features."""
        return "1fps"

    def starts(self, duration: float) -> list[float]:
        """List the start times of all complete windows."""
        return windows(duration, self.num_frames, self.stride)

    def times(self, start: float, duration: float) -> list[float]:
        """List the seconds of a window before the end of the region, and always the first one."""
        return [time for time in every_second(start, self.num_frames) if time == start or time < duration]

    def draw(self, duration: float) -> list[float]:
        """Draw the times of a complete window that starts at a uniformly random whole second."""
        candidates = windows(duration, self.num_frames, 1)
        return self.times(candidates[int(torch.randint(len(candidates), ()))], duration)

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List every whole second before the end of the region."""
        return every_second(0.0, max(1, ceil(duration)))

"""Choose the sampled times of a video: pure functions, and the clip protocols built on them.

A protocol turns the length of a video (or of its region of interest) into clips. `Single` samples the whole video as
one clip; `Windows` samples windows of fixed length at one frame per second, as ViS4mer does on LVU; `Dense` samples
every few frames of the file, as video transformers do. A protocol also lists all times that its clips may sample, at
which features are stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import ClassVar, Protocol, Self

import torch

CENTER = (0.5,)  # the only crop of most protocols


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


class Length(float):
    """A length in seconds that can tell the frame rate of its video.

    Args:
        seconds: length in seconds.
        frame_rate: function that returns the mean number of frames per second; only `Dense` needs it.
    """

    frame_rate: Callable[[], float]

    def __new__(cls, seconds: float, frame_rate: Callable[[], float]) -> Self:
        """Make the number."""
        length = super().__new__(cls, seconds)
        length.frame_rate = frame_rate
        return length

    def __getnewargs__(self) -> tuple[float, Callable[[], float]]:  # type: ignore[override]
        """Return the arguments with which a copy is made."""
        return float(self), self.frame_rate


class ClipProtocol(Protocol):
    """Protocol that chooses the clips of a video and their times, in seconds from the start of its region of interest.

    The `duration` that its methods take is the length of the region in seconds, a `Length` if it is of a video file.
    """

    @property
    def crops(self) -> tuple[float, ...]:
        """Where the squares of each evaluation clip lie along the longer side of the frames, see `Video.crop`."""

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

    crops: ClassVar[tuple[float, ...]] = CENTER

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

    crops: ClassVar[tuple[float, ...]] = CENTER

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


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Protocol of clips of T frames of the file, `rate` frames apart, as for video transformers on Kinetics.

    A clip spans T * rate frames at the frame rate of the file, whatever that is. Training draws a clip that starts at a
    random frame. Evaluation takes `views` clips, spread evenly from the first possible start to the last one (a single
    view is in the middle), and from each of them `crops` squares, whose probabilities are averaged. In a video that is
    shorter than a clip, the clip starts at the first frame and repeats the last one, and there is a single view.

    Args:
        num_frames: T, number of frames of a clip.
        rate: number of frames of the file from one frame of a clip to the next.
        views: number of clips of a video in evaluation.
        num_crops: 1 for the center of the frames, 3 for both ends of their longer side, too.

    Raises:
        ValueError: if a number is less than 1, or there are 2 or more than 3 crops.
    """

    num_frames: int
    rate: int
    views: int
    num_crops: int

    def __post_init__(self) -> None:
        for name, value in (("num_frames", self.num_frames), ("rate", self.rate), ("views", self.views)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"expected data.protocol.{name} as a whole number of at least 1, got {value}")
        if self.num_crops not in (1, 3):
            raise ValueError(f"expected data.protocol.num_crops to be 1 or 3, got {self.num_crops}")

    @property
    def crops(self) -> tuple[float, ...]:
        """The center, or the start, the center and the end of the longer side."""
        return CENTER if self.num_crops == 1 else (0.0, 0.5, 1.0)

    @property
    def sampling(self) -> str:
        """Name of the rule, with the number of frames and their distance."""
        return f"dense{self.num_frames}x{self.rate}"

    def starts(self, duration: float) -> list[float]:
        """List the start times of the views, or 0 for a video that is not longer than a clip."""
        latest = self._latest(duration)
        if self.views == 1 or not latest:
            return [latest // 2 / self._fps(duration)]
        starts = {latest * view // (self.views - 1) for view in range(self.views)}
        return [start / self._fps(duration) for start in sorted(starts)]

    def times(self, start: float, duration: float) -> list[float]:
        """List the times of a clip, in the middle of its frames, because a file rounds the times at which they begin.

        After the end of the region, the last frame is repeated.
        """
        fps = self._fps(duration)
        last = (max(1, round(duration * fps)) - 0.5) / fps
        return [min(start + (i * self.rate + 0.5) / fps, last) for i in range(self.num_frames)]

    def draw(self, duration: float) -> list[float]:
        """Draw the times of a clip that starts at a uniformly random frame and ends inside the region."""
        start = int(torch.randint(self._latest(duration) + 1, ()))
        return self.times(start / self._fps(duration), duration)

    def stored(self, duration: float, *, train: bool) -> list[float]:
        """List the times of all frames, or the times of the evaluation clips."""
        if train:
            fps = self._fps(duration)
            return [(frame + 0.5) / fps for frame in range(max(1, round(duration * fps)))]
        return sorted({time for start in self.starts(duration) for time in self.times(start, duration)})

    def is_short(self, duration: float) -> bool:
        """Return whether a video is shorter than a clip, so that its last frame is repeated."""
        return self._rest(duration) < 0

    def _latest(self, duration: float) -> int:
        """Return the last frame at which a clip can start, 0 in a video that is too short."""
        return max(0, self._rest(duration))

    def _rest(self, duration: float) -> int:
        """Return the number of frames that a video has more than a clip spans."""
        span = (self.num_frames - 1) * self.rate + 1
        return round(duration * self._fps(duration)) - span

    def _fps(self, duration: float) -> float:
        if not isinstance(duration, Length):
            raise ValueError(
                "data/protocol=dense counts the frames of video files; set data/source=videos, or use another protocol"
            )
        return duration.frame_rate()

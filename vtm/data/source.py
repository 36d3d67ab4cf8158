"""Where the inputs of a clip come from: `VideoFiles` decodes them; `vtm.features.store` reads what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vtm.data.sampling import ClipProtocol
from vtm.merging import FeatureGrid
from vtm.video.frames import FrameSpec
from vtm.video.reading import read_frames
from vtm.video.scanning import duration


@dataclass(frozen=True)
class Video:
    """Name one video of a split and what is to be learnt from it.

    Args:
        id: Unique in its data set: the relative path, or the id that the annotations use.
        path: The file.
        target: The class index, or the value to regress.
        start: Where the region of interest starts, in seconds.
        end: Where it ends; None stands for the end of the file.
        cluster: What the video shares with others, such as a performance that several cameras film; None: nothing.
            Videos of one cluster are not independent, which intervals take into account.
    """

    id: str
    path: Path
    target: int | float
    start: float = 0.0
    end: float | None = None
    cluster: str | None = None


def region_length(video: Video, end: float) -> float:
    """Tell how long the region of interest is, in seconds, if the video ends there.

    Raises:
        ValueError: The region is empty.
    """
    if not 0 <= video.start < end:
        raise ValueError(
            f"{video.path}: expected a region 0 <= start < end, got start {video.start} s and end {end} s; "
            "the annotation does not belong to this file"
        )
    return end - video.start


class StepData(NamedTuple):
    """Hold what a source has at some times of a video."""

    inputs: Tensor  # (T * f, 3, S, S) uint8 frames, or (T, H, W, C) features
    motion: Tensor | None  # (T, H, W) pixels per frame
    from_codec: Tensor | None  # (T,) bool: the motion is the codec's; else it comes from differences of frames
    substituted: Tensor  # (T,) frames that could not be decoded, for which the nearest one stands in

    @classmethod
    def join(cls, parts: Sequence[StepData]) -> StepData:
        """Put the steps of several parts one after another."""
        inputs, motion, from_codec, substituted = zip(*parts, strict=True)
        return cls(
            torch.cat(inputs),
            None if motion[0] is None else torch.cat(motion),
            None if from_codec[0] is None else torch.cat(from_codec),
            torch.cat(substituted),
        )


class EncoderSpec(Protocol):
    """What data have to know of an encoder, or of features that are there already; not its weights.

    Attributes:
        key: names the features.
        grid: layout of the tokens of a step.
        channels: C, of a token.
        frames: that it takes; None where the data are features already.
    """

    @property
    def key(self) -> str: ...

    @property
    def grid(self) -> FeatureGrid: ...

    @property
    def channels(self) -> int: ...

    @property
    def frames(self) -> FrameSpec | None: ...


def frames_of(encoder: EncoderSpec) -> FrameSpec:
    """Return the frames that an encoder takes.

    Raises:
        ValueError: It stands for features that are there already.
    """
    if encoder.frames is None:
        raise ValueError(
            f"{encoder.key} is what the data are already: there is nothing to encode and nothing stored; choose an "
            "encoder, or leave out data/source"
        )
    return encoder.frames


class Source(Protocol):
    """Give the inputs of videos."""

    motion: bool  # whether it also reads how fast each token moves
    remedy: str  # what to do about a file that is missing
    unusable: Path  # the list of those that are there but of no use, which `python -m vtm.check_data` writes

    def locate(self, video: Video) -> str:
        """Name the file of a video, whether it is there or not."""

    def version(self, video: Video) -> str | None:
        """Name the state of a video's file by a text that changes with it; None if there is no file."""

    def length(self, video: Video) -> float:
        """Tell how long the region of interest is, in seconds."""

    def read(self, video: Video, times: list[float]) -> StepData:
        """Read the inputs at some times of the file, in seconds from its first frame."""

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Raise what can be told at once to stand in the way of the clips of a video that is there."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Raise whatever stands in the way of them, however long it takes to find out."""


class VideoFiles:
    """Decode the frames, for an encoder that runs during training.

    Args:
        root: The folder of the data set; the videos name their files themselves.
        encoder: Wants the frames.
        sampling: The rule of the times; any will do here.
        motion: Read how fast each token moves, which makes decoding a quarter to two fifths slower.
    """

    remedy = "put them there as data/README.md describes"

    def __init__(self, *, root: Path, encoder: EncoderSpec, sampling: str, motion: bool) -> None:
        self.unusable = root / "unusable.csv"
        self.frames = frames_of(encoder)  # and not the encoder, whose weights loading processes need not carry
        self.grid = encoder.grid
        self.motion = motion

    def locate(self, video: Video) -> str:
        """Name the file."""
        return str(video.path)

    def version(self, video: Video) -> str | None:
        """Name size and time of the file; None if there is none."""
        try:
            facts = video.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{facts.st_size}-{facts.st_mtime_ns}" if S_ISREG(facts.st_mode) else None

    def length(self, video: Video) -> float:
        """Take the annotated end, or measure the file.

        Raises:
            ValueError: The region is empty.
            VideoError: The file cannot be read.
        """
        return region_length(video, duration(video.path) if video.end is None else video.end)

    def read(self, video: Video, times: list[float]) -> StepData:
        """Decode the frames.

        Raises:
            VideoError: The file cannot be read.
        """
        frames = read_frames(
            video.path,
            times,
            size=self.frames.image_size,
            frames_per_step=self.frames.frames_per_step,
            squash=self.frames.squash,
            motion_grid=(self.grid.height, self.grid.width) if self.motion else None,
        )
        motion = None if frames.motion is None else self.grid.lay_out(frames.motion)
        return StepData(frames.pixels, motion, frames.from_codec, frames.substituted)

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Expect nothing of a file before it is read."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Decode the first and the last frame, after the pass over all packets that tells the length.

        Raises:
            ValueError: The region is empty.
            VideoError: The file cannot be read, or is too short.
        """
        times = stored_times(self, video, protocol, train=train)
        self.read(video, [times[0], times[-1]])


def stored_times(source: Source, video: Video, protocol: ClipProtocol, *, train: bool) -> list[float]:
    """List all times of the file that clips of a video may look at, in seconds from its first frame."""
    return [video.start + time for time in protocol.stored(source.length(video), train=train)]

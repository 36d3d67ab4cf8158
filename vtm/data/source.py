"""The sources of the inputs of a clip: `VideoFiles` decodes videos; `vtm.features.store` reads stored features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vtm.data.sampling import ClipProtocol, Length
from vtm.merging import FeatureGrid
from vtm.system.names import PathIndex, explain_missing, spellings
from vtm.video.frames import FrameSpec
from vtm.video.listing import SUFFIXES
from vtm.video.motion import MotionSource
from vtm.video.reading import read_frames
from vtm.video.scanning import duration, frame_rate


@dataclass(frozen=True)
class Video:
    """Video of a split, with its target and region of interest.

    Args:
        id: name that is unique in the data set: the relative path, or the id in the annotations.
        path: video file.
        target: class index, or value to regress.
        start: start of the region of interest in seconds.
        end: end of the region of interest in seconds; None for the end of the file.
        cluster: name of a group of videos that are not independent, such as recordings of one performance by several
            cameras; confidence intervals take it into account. None if the video is independent of all others.
        crop: where the square lies along the longer side of the frames, from 0, the left or top, to 1; 0.5 for the
            center.
    """

    id: str
    path: Path
    target: int | float
    start: float = 0.0
    end: float | None = None
    cluster: str | None = None
    crop: float = 0.5


def region_length(video: Video, end: float) -> float:
    """Return the length of a region of interest in seconds.

    Args:
        video: video, which holds the start of the region.
        end: end of the region in seconds.

    Raises:
        ValueError: if the region is empty.
    """
    if not 0 <= video.start < end:
        raise ValueError(
            f"{video.path}: expected a region 0 <= start < end, got start {video.start} s and end {end} s; "
            "the annotation does not belong to this file"
        )
    return end - video.start


class StepData(NamedTuple):
    """Inputs and motion of some steps of a video."""

    inputs: Tensor  # (T * f, 3, S, S) uint8 frames, or (T, H, W, C) features
    motion: Tensor | None  # (T, H, W) pixels per frame
    from_codec: Tensor | None  # (T,) bool, True if the motion is from the codec, False if from frame differences
    substituted: Tensor  # (T,) int64, number of frames that could not be decoded and were replaced by the nearest ones

    @classmethod
    def join(cls, parts: Sequence[StepData]) -> StepData:
        """Concatenate the steps of several parts."""
        inputs, motion, from_codec, substituted = zip(*parts, strict=True)
        return cls(
            torch.cat(inputs),
            None if motion[0] is None else torch.cat(motion),
            None if from_codec[0] is None else torch.cat(from_codec),
            torch.cat(substituted),
        )


class EncoderSpec(Protocol):
    """Specification of an encoder, or of data that are features already, without weights.

    Attributes:
        key: name of the features.
        grid: layout of the tokens of a step.
        channels: C, channels of a token.
        frames: frames that the encoder takes; None if the data are features already.
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
    """Return the specification of the frames that an encoder takes.

    Raises:
        ValueError: if the data are features already.
    """
    if encoder.frames is None:
        raise ValueError(
            f"expected an encoder that takes frames, got {encoder.key}, which stands for data that are features "
            "already; choose an encoder, or leave out data/source"
        )
    return encoder.frames


class Source(Protocol):
    """Source of the inputs of videos."""

    motion: bool  # whether the motion of each token is read too
    unusable: Path  # list of unusable files, which `python -m vtm.check_data` writes

    @property
    def remedy(self) -> str:
        """What the user can do about missing files, for error messages."""

    def locate(self, video: Video) -> str:
        """Return the path or address of the file of a video, whether or not it exists."""

    def version(self, video: Video) -> str | None:
        """Return a string that changes when the file of a video changes; None if the file does not exist."""

    def length(self, video: Video) -> float:
        """Return the length of the region of interest in seconds."""

    def read(self, video: Video, times: list[float]) -> StepData:
        """Read the inputs at some times, in seconds from the first frame of the file."""

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Raise an error if a quick check finds that the clips of an existing video cannot be read."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Raise an error if a thorough check, which may be slow, finds that the clips of a video cannot be read."""


class VideoFiles:
    """Source that decodes video files, for an encoder that runs during training.

    Args:
        root: folder of the data set.
        encoder: specification of the encoder of the frames.
        sampling: name of the sampling rule; not used.
        motion: measure the motion of each token, which makes decoding 25 to 40 % slower.
        motion_source: where motion comes from, see `vtm.video.reading.read_frames`.
    """

    remedy = "put them there as data/README.md describes"

    def __init__(
        self,
        *,
        root: Path,
        encoder: EncoderSpec,
        sampling: str,
        motion: bool,
        motion_source: MotionSource = "codec",
    ) -> None:
        self.unusable = root / "unusable.csv"
        self.frames = frames_of(encoder)  # keep no encoder, so that worker processes do not copy its weights
        self.grid = encoder.grid
        self.motion = motion
        self.motion_source = motion_source

    def locate(self, video: Video) -> str:
        """Return the path of the video file."""
        return str(video.path)

    def version(self, video: Video) -> str | None:
        """Return the size and modification time of the file; None if it is not a regular file."""
        try:
            status = video.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{status.st_size}-{status.st_mtime_ns}" if S_ISREG(status.st_mode) else None

    def length(self, video: Video) -> float:
        """Return the length of the region of interest, which ends at the annotated or else the measured end.

        Raises:
            ValueError: if the region is empty.
            VideoError: if the file cannot be read.
        """
        seconds = region_length(video, duration(video.path) if video.end is None else video.end)
        return Length(seconds, partial(frame_rate, video.path))

    def read(self, video: Video, times: list[float]) -> StepData:
        """Decode the frames at some times.

        Raises:
            VideoError: if the file cannot be read.
            ValueError: if motion is read of another crop than the center.
        """
        if self.motion and video.crop != 0.5:
            raise ValueError("motion is read for the center of frames only; set data.protocol.num_crops=1")
        frames = read_frames(
            video.path,
            times,
            size=self.frames.image_size,
            frames_per_step=self.frames.frames_per_step,
            squash=self.frames.squash,
            crop=video.crop,
            motion_grid=(self.grid.height, self.grid.width) if self.motion else None,
            motion_source=self.motion_source,
        )
        motion = None if frames.motion is None else self.grid.lay_out(frames.motion)
        return StepData(frames.pixels, motion, frames.from_codec, frames.substituted)

    def expect(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Accept any file: a video has no quick check."""

    def check(self, video: Video, protocol: ClipProtocol, *, train: bool) -> None:
        """Scan all packets, and decode the first and last frame that clips may sample.

        Raises:
            ValueError: if the region of interest is empty.
            VideoError: if the file cannot be read or is too short.
        """
        times = stored_times(self, video, protocol, train=train)
        self.read(video, [times[0], times[-1]])


def explain_absence(source: Source, video: Video, paths: PathIndex) -> str:
    """Name the existing file that a missing one probably stands for, and how their names differ; empty if none.

    Args:
        source: source that has no file of the video.
        video: missing video.
        paths: index of the files, which reads each folder once.
    """
    if source.locate(video) == str(video.path):
        return paths.explain(video.path, suffixes=SUFFIXES)
    others = (name for name in spellings(video.id) if source.version(replace(video, id=name)) is not None)
    return explain_missing(video.id, others, here="the list", there="the stored features")


def stored_times(source: Source, video: Video, protocol: ClipProtocol, *, train: bool) -> list[float]:
    """List all times that clips of a video may sample, in seconds from the first frame of the file."""
    return [video.start + time for time in protocol.stored(source.length(video), train=train)]

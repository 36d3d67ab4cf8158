"""Where the inputs of a clip come from: `VideoFiles` decodes them; `vtm.data.features` reads what was stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from vtm.data.video import duration, read_frames
from vtm.packing import Storage


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


class Content(NamedTuple):
    """Hold what a source has at some times of a video."""

    inputs: Tensor  # (T * f, 3, S, S) uint8 frames, or (T, H, W, C) features
    motion: Tensor | None  # (T, H, W) pixels per frame
    from_codec: Tensor | None  # (T,) bool: the motion is the codec's; else it comes from differences of frames
    substituted: Tensor  # (T,) frames that could not be decoded, for which the nearest one stands in


class Encoding(Protocol):
    """Tell what data have to know of an encoder; every `vtm.encoders.Encoder` does."""

    key: str
    image_size: int
    frames_per_step: int
    squash: bool
    grid: tuple[int, int]
    channels: int
    storage: Storage


class Source(Protocol):
    """Give the inputs of videos."""

    remedy: str  # what to do about a file that is missing
    unusable: Path  # the list of those that are there but of no use, which `python -m vtm.check_data` writes

    def locate(self, video: Video) -> str:
        """Name the file of a video, whether it is there or not."""

    def exists(self, video: Video) -> bool:
        """Look for the file of a video."""

    def length(self, video: Video) -> float:
        """Tell how long the region of interest is, in seconds."""

    def read(self, video: Video, times: list[float]) -> Content:
        """Read the inputs at some times of the file, in seconds from its first frame."""

    def check(self, video: Video, times: list[float]) -> None:
        """Raise what stands in the way of reading the inputs at these times."""


class VideoFiles:
    """Decode the frames, for an encoder that runs during training.

    Args:
        root: The folder of the data set; the videos name their files themselves.
        encoder: Wants the frames.
        sampling: The rule of the times; any will do here.
        motion: Read how fast each token moves, which takes about half as long again as decoding.
    """

    remedy = "put them there as data/README.md describes"

    def __init__(self, *, root: Path, encoder: Encoding, sampling: str, motion: bool) -> None:
        self.unusable = root / "unusable.csv"
        self.encoder = encoder
        self.motion = motion

    def locate(self, video: Video) -> str:
        """Name the file."""
        return str(video.path)

    def exists(self, video: Video) -> bool:
        """Look for the file."""
        return video.path.is_file()

    def length(self, video: Video) -> float:
        """Take the annotated end, or measure the file.

        Raises:
            ValueError: The region is empty.
            VideoError: The file cannot be read.
        """
        end = duration(video.path) if video.end is None else video.end
        if not 0 <= video.start < end:
            raise ValueError(
                f"{video.path}: expected a region 0 <= start < end, got start {video.start} s and end {end} s; "
                "the annotation does not belong to this file"
            )
        return end - video.start

    def read(self, video: Video, times: list[float]) -> Content:
        """Decode the frames.

        Raises:
            VideoError: The file cannot be read.
        """
        frames = read_frames(
            video.path,
            times,
            size=self.encoder.image_size,
            frames_per_step=self.encoder.frames_per_step,
            squash=self.encoder.squash,
            motion_grid=self.encoder.grid if self.motion else None,
        )
        return Content(*frames)

    def check(self, video: Video, times: list[float]) -> None:
        """Decode the first and the last frame, after the pass over all packets that tells the length.

        Raises:
            VideoError: The file cannot be read, or is too short.
        """
        self.read(video, [times[0], times[-1]])

"""One clip of one video as a training example, and clips as a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vtm.data.sampling import ClipProtocol
from vtm.data.video import duration, read_frames


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


class Clip(NamedTuple):
    """Hold one example: what `Batch` holds, without the first axis."""

    inputs: Tensor  # (T * f, 3, S, S)
    mask: Tensor | None  # (T,)
    motion: Tensor | None  # (T, H, W)
    target: Tensor  # ()
    index: int  # type: ignore[assignment]  # tuple has a method of this name
    id: str


class Batch(NamedTuple):
    """Hold the clips of one step of training or evaluation."""

    inputs: Tensor  # (B, T * f, 3, S, S) uint8 frames
    mask: Tensor | None  # (B, T) bool, True = real; None when every frame is
    motion: Tensor | None  # (B, T, H, W)
    target: Tensor  # (B,) int64 class index or float32 value
    index: Tensor  # type: ignore[assignment]  # (B,) int64, the place of the clip's video in its split
    id: list[str]  # of the clips; unique in a split and the same in every run


class VideoDataset(Dataset[Clip]):
    """Read the clips of a split: in training one of each video, in evaluation all that the protocol names.

    Args:
        videos: The split; `Clip.index` is a place in this list.
        protocol: Says where clips start and at which times they look.
        image_size: S, the side of the frames in pixels.
        frames_per_step: f, how many consecutive frames the encoder takes at each sampled time.
        train: Draw the clip of a video anew whenever it is asked for.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        protocol: ClipProtocol,
        *,
        image_size: int,
        frames_per_step: int,
        train: bool,
    ) -> None:
        self.videos = list(videos)
        self.protocol = protocol
        self.image_size = image_size
        self.frames_per_step = frames_per_step
        self._clips: list[tuple[int, float | None]] = (
            [(index, None) for index in range(len(self.videos))]
            if train
            else [(index, start) for index, video in enumerate(videos) for start in protocol.starts(_length(video))]
        )

    def __len__(self) -> int:
        """Count the clips."""
        return len(self._clips)

    def __getitem__(self, item: int) -> Clip:
        """Read one clip; steps after the end of the region are zero and masked.

        Raises:
            VideoError: The file cannot be read.
        """
        index, start = self._clips[item]
        video = self.videos[index]
        length = _length(video)
        if start is None:
            start = self.protocol.draw(length)
        times = [video.start + time for time in self.protocol.times(start, length)]
        frames = read_frames(video.path, times, size=self.image_size, frames_per_step=self.frames_per_step)
        mask = torch.arange(self.protocol.num_frames) < len(times)
        absent = len(mask) * self.frames_per_step - len(frames)
        if absent:
            frames = torch.cat([frames, frames.new_zeros(absent, *frames.shape[1:])])  # (T * f, 3, S, S)
        return Clip(
            inputs=frames,
            mask=mask if absent else None,
            motion=None,
            target=torch.tensor(video.target, dtype=torch.int64 if isinstance(video.target, int) else torch.float32),
            index=index,
            id=f"{video.id}@{video.start + start:.2f}",
        )


def collate(clips: Sequence[Clip]) -> Batch:
    """Stack clips into a batch.

    The mask is left out when it says nothing, because attention without a mask has faster kernels.

    Raises:
        ValueError: Some clips have motion and others have none.
    """
    masks = [clip.mask for clip in clips if clip.mask is not None and not clip.mask.all()]
    motions = [clip.motion for clip in clips if clip.motion is not None]
    if motions and len(motions) < len(clips):
        without = [clip.id for clip in clips if clip.motion is None]
        raise ValueError(f"expected motion in all {len(clips)} clips or in none, but {without[:3]} have none")
    return Batch(
        inputs=torch.stack([clip.inputs for clip in clips]),
        mask=(
            torch.stack([torch.ones_like(masks[0]) if clip.mask is None else clip.mask for clip in clips])
            if masks
            else None
        ),
        motion=torch.stack(motions) if motions else None,
        target=torch.stack([clip.target for clip in clips]),
        index=torch.tensor([clip.index for clip in clips]),
        id=[clip.id for clip in clips],
    )


def _length(video: Video) -> float:
    """Measure the region of interest in seconds."""
    end = duration(video.path) if video.end is None else video.end
    if not 0 <= video.start < end:
        raise ValueError(
            f"{video.path}: expected a region 0 <= start < end, got start {video.start} s and end {end} s; "
            "the annotation does not belong to this file"
        )
    return end - video.start

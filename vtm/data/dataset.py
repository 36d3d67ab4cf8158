"""One clip of one video as a training example, and clips as a batch."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vtm.data.sampling import ClipProtocol
from vtm.data.source import Source, StepData, Video


class Clip(NamedTuple):
    """Hold one example: what `Batch` holds, without the first axis."""

    inputs: Tensor  # (T * f, 3, S, S) or (T, H, W, C)
    mask: Tensor | None  # (T,)
    motion: Tensor | None  # (T, H, W)
    target: Tensor  # ()
    index: int  # type: ignore[assignment]  # tuple has a method of this name
    id: str
    damaged: bool
    from_codec: float | None


class Batch(NamedTuple):
    """Hold the clips of one step of training or evaluation."""

    inputs: Tensor  # (B, T * f, 3, S, S) uint8 frames, or (B, T, H, W, C) features
    mask: Tensor | None  # (B, T) bool, True = real; None when every step is
    motion: Tensor | None  # (B, T, H, W) pixels per frame
    target: Tensor  # (B,) int64 class index or float32 value
    index: Tensor  # type: ignore[assignment]  # (B,) int64, the place of the clip's video in its split
    id: list[str]  # of the clips; unique in a split and the same in every run
    damaged: Tensor  # (B,) bool: some of the frames could not be decoded, and others stand in for them
    from_codec: Tensor | None  # (B,) the share of the steps whose motion is the codec's; None without motion


class VideoDataset(Dataset[Clip]):
    """Read the clips of a split: in training one of each video, in evaluation all that the protocol names.

    Args:
        videos: The split; `Clip.index` is a place in this list.
        protocol: Says where clips start and at which times they look.
        source: Gives the frames or features at these times.
        train: Draw the clip of a video anew whenever it is asked for.
    """

    def __init__(self, videos: Sequence[Video], protocol: ClipProtocol, source: Source, *, train: bool) -> None:
        self.videos = list(videos)
        self.protocol = protocol
        self.source = source
        self._clips: list[tuple[int, float | None]] = (
            [(index, None) for index in range(len(self.videos))]
            if train
            else [(i, start) for i, video in enumerate(videos) for start in protocol.starts(source.length(video))]
        )

    def __len__(self) -> int:
        """Count the clips."""
        return len(self._clips)

    def __getitem__(self, item: int) -> Clip:
        """Read one clip; steps after the end of the region are zero and masked.

        Raises:
            VideoError: The video cannot be read.
            FeatureError: The stored features cannot be read.
        """
        index, start = self._clips[item]
        video = self.videos[index]
        length = self.source.length(video)
        times = self.protocol.draw(length) if start is None else self.protocol.times(start, length)
        content = self.source.read(video, [video.start + time for time in times])
        begin = video.start + (times[0] if start is None else start)
        return make_clip(video, index, begin, content, num_frames=self.protocol.num_frames)


def make_clip(video: Video, index: int, start: float, content: StepData, *, num_frames: int) -> Clip:
    """Make a clip of the steps that lie inside the video; those after its end are zero and masked.

    Args:
        video: That it is of.
        index: Of the video in its split.
        start: Of the clip, in seconds from the first frame of the file; it names the clip.
        content: At the T' times inside the video, 0 < T' <= T.
        num_frames: T.
    """
    steps = len(content.substituted)
    absent = num_frames - steps
    mask = torch.arange(num_frames, device=content.inputs.device) < steps
    return Clip(
        inputs=_pad(content.inputs, absent * len(content.inputs) // steps),
        mask=mask if absent else None,
        motion=None if content.motion is None else _pad(content.motion, absent),
        target=torch.tensor(video.target, dtype=torch.int64 if isinstance(video.target, int) else torch.float32),
        index=index,
        id=f"{video.id}@{start:.2f}",
        damaged=bool(content.substituted.any()),
        from_codec=None if content.from_codec is None else content.from_codec.float().mean().item(),
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
        damaged=torch.tensor([clip.damaged for clip in clips]),
        from_codec=torch.tensor([clip.from_codec for clip in clips]) if motions else None,
    )


def clip_generator(clip: str) -> torch.Generator:
    """Seed the noise of one clip by its id, on the CPU: the same on every device and in every batch."""
    seed = int.from_bytes(hashlib.sha256(clip.encode(errors="surrogateescape")).digest()[:8], "big")
    return torch.Generator().manual_seed(seed)


def _pad(values: Tensor, count: int) -> Tensor:
    """Append zeros to the first axis."""
    return torch.cat([values, values.new_zeros(count, *values.shape[1:])]) if count else values

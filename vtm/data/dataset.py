"""The data set of clips, and the batches that clips are collated into."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vtm.data.sampling import ClipProtocol, Dense
from vtm.data.source import Source, StepData, Video


class Clip(NamedTuple):
    """One example: the fields of `Batch` without the batch axis."""

    inputs: Tensor  # (T * f, 3, S, S) or (T, H, W, C)
    mask: Tensor | None  # (T,)
    motion: Tensor | None  # (T, H, W)
    target: Tensor  # ()
    index: int  # type: ignore[assignment]  # tuple has a method of this name
    id: str
    damaged: bool
    from_codec: float | None


class Batch(NamedTuple):
    """Clips of one step of training or evaluation."""

    inputs: Tensor  # (B, T * f, 3, S, S) uint8 frames, or (B, T, H, W, C) features
    mask: Tensor | None  # (B, T) bool, True for real steps, False for padding; None if there is no padding
    motion: Tensor | None  # (B, T, H, W) pixels per frame
    target: Tensor  # (B,) int64 class index or float32 value
    index: Tensor  # type: ignore[assignment]  # (B,) int64, index of the clip's video in its split
    id: list[str]  # ids of the clips, unique in a split and the same in every run
    damaged: Tensor  # (B,) bool, True if some of the frames could not be decoded and were replaced
    from_codec: Tensor | None  # (B,) share of the steps whose motion is from the codec; None without motion


class VideoDataset(Dataset[Clip]):
    """Data set of the clips of a split: one random clip per video for training, all clips of the protocol otherwise.

    Args:
        videos: videos of the split; `Clip.index` is an index into this list.
        protocol: clip protocol, which chooses the sampled times.
        source: source of the frames or features at these times.
        train: draw a new clip of the video each time an item is read.
    """

    def __init__(self, videos: Sequence[Video], protocol: ClipProtocol, source: Source, *, train: bool) -> None:
        self.videos = list(videos)
        self.protocol = protocol
        self.source = source
        self._clips: list[tuple[int, float | None, float]] = []
        short = 0
        for index, video in enumerate(self.videos):
            if train:
                self._clips.append((index, None, 0.5))
                continue
            length = source.length(video)
            self._clips += [(index, start, crop) for start in protocol.starts(length) for crop in protocol.crops]
            short += isinstance(protocol, Dense) and protocol.is_short(length)
        if short:
            warnings.warn(
                f"{short} of {len(self.videos)} videos are shorter than a clip, so their clips repeat the last frame",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._clips)

    def __getitem__(self, item: int) -> Clip:
        """Read one clip; steps after the end of the region of interest are zero and masked.

        Raises:
            VideoError: if the video cannot be read.
            FeatureError: if the stored features cannot be read.
        """
        index, start, crop = self._clips[item]
        video = replace(self.videos[index], crop=crop)
        length = self.source.length(video)
        times = self.protocol.draw(length) if start is None else self.protocol.times(start, length)
        content = self.source.read(video, [video.start + time for time in times])
        begin = video.start + (times[0] if start is None else start)
        return make_clip(video, index, begin, content, num_frames=self.protocol.num_frames)


def make_clip(video: Video, index: int, start: float, content: StepData, *, num_frames: int) -> Clip:
    """Make a clip from the steps inside the video; steps after its end are zero and masked.

    Args:
        video: video of the clip.
        index: index of the video in its split.
        start: start of the clip in seconds from the first frame of the file; part of the clip's id.
        content: data of the T' steps inside the video, 0 < T' <= T.
        num_frames: T, number of steps of the clip.
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
        id=f"{video.id}@{start:.2f}" + ("" if video.crop == 0.5 else f"@{video.crop:g}"),
        damaged=bool(content.substituted.any()),
        from_codec=None if content.from_codec is None else content.from_codec.float().mean().item(),
    )


def collate(clips: Sequence[Clip]) -> Batch:
    """Stack clips into a batch.

    The mask is None if no step is masked, because attention has faster kernels without a mask.

    Raises:
        ValueError: if some clips have motion and others do not.
    """
    masks = [clip.mask for clip in clips if clip.mask is not None and not clip.mask.all()]
    motions = [clip.motion for clip in clips if clip.motion is not None]
    if motions and len(motions) < len(clips):
        without = [clip.id for clip in clips if clip.motion is None]
        raise ValueError(f"expected motion in all {len(clips)} clips or in none, got {without[:3]} without motion")
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
    """Return a CPU generator seeded with the id of a clip, so that its noise is the same on any device and batch."""
    seed = int.from_bytes(hashlib.sha256(clip.encode(errors="surrogateescape")).digest()[:8], "big")
    return torch.Generator().manual_seed(seed)


def _pad(values: Tensor, count: int) -> Tensor:
    """Append zeros to the first axis."""
    return torch.cat([values, values.new_zeros(count, *values.shape[1:])]) if count else values

"""The clips and steps of a video that a model sees, decoded and encoded in parts, so that long videos fit in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vtm.data.dataset import Clip, make_clip
from vtm.data.sampling import ClipProtocol
from vtm.data.source import StepData, Video, VideoFiles
from vtm.encoders import Encoder, Pixels, Precomputed
from vtm.system.names import explain_path
from vtm.video.scanning import packet_table

_FRAMES_AT_ONCE = 128  # decoded and encoded together


class Step(NamedTuple):
    """One step of a video: its time in seconds, its features and what belongs to them."""

    time: float
    content: StepData


class EncodedVideo:
    """A video that is decoded and encoded on demand.

    Args:
        path: video file.
        encoder: encoder of the frames.
        protocol: protocol that chooses the clips.
        motion: whether to also measure how fast each token moves; "difference" to measure it by frame differences.
        device: device of the encoder.

    Attributes:
        seconds: length of the video.

    Raises:
        FileNotFoundError: if the file does not exist.
        VideoError: if the video cannot be read.
        ValueError: if the encoder takes features, not frames.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder | Pixels | Precomputed,
        protocol: ClipProtocol,
        *,
        motion: bool | Literal["difference"],
        device: torch.device,
    ) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file{explain_path(path)}")
        if encoder.frames is None:
            raise ValueError(
                f"this model was trained on features ({encoder.key}) and cannot read {path}; call it with features "
                "(B, T, H, W, C)"
            )
        self.encoder = encoder
        self._frames_per_step = encoder.frames.frames_per_step
        self.protocol = protocol
        self.device = device
        self._video = Video(id=path.name, path=path, target=0)
        self._source = VideoFiles(
            root=path.parent,
            encoder=encoder,
            sampling=protocol.sampling,
            motion=bool(motion),
            motion_source="difference" if motion == "difference" else "codec",
        )
        self.seconds = self._source.length(self._video)

    def is_short(self, times: Sequence[float]) -> bool:
        """Return whether the video has fewer distinct frames at the given times than a clip has steps."""
        return len(set(packet_table(self._video.path).rows(times).tolist())) < self.protocol.num_frames

    def clips(self) -> Iterator[tuple[float, Clip]]:
        """Yield all clips with their starts in seconds, for one crop of the frames after the other."""
        for crop in self.protocol.crops:
            self._video = replace(self._video, crop=crop)
            yield from self._clips()

    def _clips(self) -> Iterator[tuple[float, Clip]]:
        """Yield all clips of a crop; each step is encoded once and kept until its last clip."""
        waiting = deque(self.protocol.starts(self.seconds))
        wanted = {time for start in waiting for time in self.protocol.times(start, self.seconds)}
        held: dict[float, Step] = {}
        for steps in self.steps(sorted(wanted)):
            held |= {step.time: step for step in steps}
            while waiting and (times := self.protocol.times(waiting[0], self.seconds))[-1] <= steps[-1].time:
                start = waiting.popleft()
                yield start, self._clip(start, [held[time] for time in times])
                held = {time: step for time, step in held.items() if waiting and time >= waiting[0]}

    def clip(self, start: float) -> tuple[Clip, Tensor]:
        """Return the clip at `start` and its frames (T * f, 3, S, S) uint8, without padding."""
        times = self.protocol.times(start, self.seconds)
        content = self._source.read(self._video, times)
        return self._clip(start, self._encode(times, content)), content.inputs

    def steps(self, times: Sequence[float]) -> Iterator[list[Step]]:
        """Decode and encode the steps at ascending times in parts; while one is encoded, the next is decoded."""
        size = max(1, _FRAMES_AT_ONCE // self._frames_per_step)
        parts = [list(times[first : first + size]) for first in range(0, len(times), size)]
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming = reader.submit(self._source.read, self._video, parts[0])
            for part, after in zip(parts, [*parts[1:], None], strict=True):
                content = coming.result()
                if after is not None:
                    coming = reader.submit(self._source.read, self._video, after)
                yield self._encode(part, content)

    def _encode(self, times: Sequence[float], content: StepData) -> list[Step]:
        features = self.encoder(content.inputs[None].to(self.device))[0]
        motion = None if content.motion is None else content.motion.to(self.device)
        encoded = StepData(features, motion, content.from_codec, content.substituted)
        columns = [[None] * len(times) if column is None else column.split(1) for column in encoded]
        return [Step(time, StepData(*row)) for time, row in zip(times, zip(*columns, strict=True), strict=True)]

    def _clip(self, start: float, steps: Sequence[Step]) -> Clip:
        content = StepData.join([step.content for step in steps])
        return make_clip(self._video, 0, start, content, num_frames=self.protocol.num_frames)

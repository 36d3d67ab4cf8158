"""The frames of a video that a video LLM is asked about, with their true times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vtm.data.sampling import spread
from vtm.video.reading import read_whole_frames
from vtm.video.scanning import duration

# Pixels to which a longer shortest side of a frame is scaled down. It bounds the memory of many frames, 2.8 MB each at
# 16:9, and is more than the processors of all families take with their default settings.
SHORTEST_SIDE = 720


@dataclass(frozen=True)
class VideoClip:
    """Frames of a video.

    Attributes:
        path: video file.
        frames: (T, 3, H, W) uint8, upright, with square pixels.
        times: T time stamps of the frames in seconds from the first frame of the file, ascending.
        seconds: length of the video.
        substituted: number of damaged frames that the nearest clean frame replaces.
    """

    path: Path
    frames: Tensor
    times: list[float]
    seconds: float
    substituted: int = 0


def read_clip(path: Path | str, num_frames: int) -> VideoClip:
    """Read the frames at the centers of equal parts of a video.

    Each frame of the file is taken once, so the clip has fewer frames if the video has. The shortest side of a frame
    has at most 720 pixels.

    Args:
        path: video file.
        num_frames: number of parts, at least 1.

    Raises:
        VideoError: if the file cannot be read as a video.
        ValueError: if `num_frames` is not positive.
    """
    if num_frames < 1:
        raise ValueError(f"expected at least 1 frame, got {num_frames}")
    seconds = duration(path)
    read = read_whole_frames(path, spread(seconds, num_frames), shortest_side=SHORTEST_SIDE)
    return VideoClip(Path(path), read.pixels, read.times, seconds, read.substituted)

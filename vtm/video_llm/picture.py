"""Draw which frames of a clip a compressor has kept, and which tokens it has merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vtm.pictures.contact import TokenView, write_contact_sheet
from vtm.video_llm.compress import Compression
from vtm.video_llm.frames import VideoClip
from vtm.video_llm.loading import VideoLLM


def draw_compression(
    path: Path, llm: VideoLLM, clip: VideoClip, compression: Compression, *, lines: Sequence[str] = ()
) -> None:
    """Write a contact sheet as a PNG file.

    Args:
        path: file to write.
        llm: video LLM that has encoded the clip.
        clip: frames of a video.
        compression: prompt with this one video.
        lines: text at the top, such as the question.
    """
    (before,), (after,) = compression.clips, compression.compressed
    frames, times = seen_frames(llm.processor, clip, len(before.tokens))
    view = TokenView(frames, times, clip.seconds, after.index.cpu().view(before.grid))
    if (covered := -(-len(clip.frames) // len(frames))) > 1:
        lines = [*lines, f"Each picture is the first of {covered} frames that share tokens; its time is their mean."]
    title = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in clip.path.name)
    write_contact_sheet(path, view, title=title, lines=lines)


def seen_frames(processor: Any, clip: VideoClip, num_steps: int) -> tuple[Tensor, list[float]]:
    """Return a picture and a time for each frame of tokens: what the model sees of it.

    Where a frame of tokens covers several frames of the clip, the picture is the first of them, and the time is their
    mean.

    Args:
        processor: processor of the model, which may crop the center of the frames.
        clip: frames of a video.
        num_steps: t, number of frames of tokens.

    Returns:
        pictures (t, 3, Y, X) uint8, and t times in seconds.
    """
    step = -(-len(clip.frames) // num_steps)
    frames = clip.frames[::step]
    groups = [clip.times[first : first + step] for first in range(0, len(clip.times), step)]
    times = [sum(group) / len(group) for group in groups]
    video_processor = processor.video_processor
    shortest = (video_processor.size or {}).get("shortest_edge")
    if getattr(video_processor, "do_center_crop", False) and shortest:
        height, width = frames.shape[2:]
        crop = (video_processor.crop_size["height"], video_processor.crop_size["width"])
        rows, columns = (
            min(side, round(part * min(height, width) / shortest))
            for side, part in zip((height, width), crop, strict=True)
        )
        top, left = (height - rows) // 2, (width - columns) // 2
        frames = frames[:, :, top : top + rows, left : left + columns]
    return frames, times

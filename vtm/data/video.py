"""Read the frames of a video that are on screen at given times, measure its duration, write a video.

The only file that imports PyAV. What it knows of a file comes from one pass over the packets: headers lie about the
duration of damaged and live-recorded files, and a frame rate says nothing about variable rates.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, groupby, pairwise
from math import floor
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

# Matroska rounds time stamps to whole milliseconds, so a frame may be stamped up to half of one too late.
_CLOCK_ERROR = 0.0005

# Annotations give lengths in whole seconds: how long after the end a frame may be asked for.
_LATE = 1.5

# Decoders that leave out exactly the pictures no other picture needs. libdav1d (AV1) drops delayed ones as well.
_SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp9"})


class VideoError(Exception):
    """Say that a file is not a video which can be read whole, and which file it is."""


def read_frames(path: Path | str, times: Sequence[float], *, size: int, frames_per_step: int = 1) -> Tensor:
    """Read the frames on screen at the given times as squares, (T * f, 3, S, S) uint8.

    The frame at time t is the last one with a time stamp not after t, counted from the first frame; up to 1.5 s after
    the end it is the last frame. The shortest side is scaled to S by area averaging, and the centre is cut out.

    Args:
        path: The video file.
        times: Seconds from the first frame, not negative, in any order; repeats are fine.
        size: S, the side of the frames that come back, in pixels.
        frames_per_step: f, how many consecutive frames of the file to read from each time on. The last frame of the
            file stands in for those after the end.

    Raises:
        VideoError: The file cannot be opened, is damaged, has no video stream, no frames or no time stamps, or ends
            more than 1.5 s before one of the times.
    """
    if not times or min(times) < 0:
        raise ValueError(f"{path}: expected one or more times that are not negative, got {list(times)[:3]}")
    table = _read_packet_table(path)
    last = len(table.pts) - 1
    length = float((table.end - table.pts[0]) * table.tick)
    if max(times) > length + _LATE:
        raise VideoError(f"{path}: expected a frame at {max(times):.2f} s, but the file ends at {length:.2f} s")
    first = [table.find(time) for time in times]
    order = [table.pts[min(row + step, last)] for row in first for step in range(frames_per_step)]
    places: dict[int, list[int]] = {}
    for place, pts in enumerate(order):
        places.setdefault(pts, []).append(place)
    frames = np.empty((len(order), 3, size, size), np.uint8)  # torch would start threads for these small copies
    reformatter = VideoReformatter()
    for pts, frame in _decode(path, table, sorted(places)):
        frames[places[pts]] = _to_square(frame, size, reformatter)
    return torch.from_numpy(frames)


def duration(path: Path | str) -> float:
    """Measure how long a video is on screen, in seconds, from its packets.

    Raises:
        VideoError: As for `read_frames`.
    """
    table = _read_packet_table(path)
    return float((table.end - table.pts[0]) * table.tick)


def write_video(
    path: Path | str,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
) -> None:
    """Write frames as a video file that appears under its name only when it is complete.

    Args:
        path: Where to write; the suffix chooses the container.
        frames: Pictures (H, W, 3) in RGB, all of one size, H and W even. Read one at a time.
        fps: Frames per second.
        codec: FFmpeg's name of the encoder.
        options: The encoder's options, such as `{"crf": "23", "g": "16"}`.

    Raises:
        ValueError: There is no frame, or a frame is not (H, W, 3) uint8 with even sides.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    pictures = iter(frames)
    head = next(pictures, None)
    if head is None or head.ndim != 3 or head.shape[0] % 2 or head.shape[1] % 2:
        found = None if head is None else head.shape
        raise ValueError(f"{path}: expected one or more frames (H, W, 3) with even H and W, got {found}")
    try:
        with av.open(str(partial), "w") as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=dict(options or {})))
            stream.height, stream.width = head.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # libx264 gives other bytes with another number of threads
            for picture in chain((head,), pictures):
                expected, found = ((*head.shape[:2], 3), np.dtype(np.uint8)), (picture.shape, picture.dtype)
                if expected != found:
                    raise ValueError(f"{path}: expected all frames to be {expected}, got {found}")
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _PacketTable(NamedTuple):
    """Hold what the packets of a video stream tell; times are in ticks of the stream's clock."""

    pts: list[int]  # of every frame, ascending
    keys: list[int]  # of the frames where decoding can start, ascending
    end: int  # when the last frame leaves the screen
    tick: Fraction  # seconds

    def find(self, time: float) -> int:
        """Find the number of the frame on screen at a time in seconds."""
        ticks = floor((time + _CLOCK_ERROR) / self.tick)
        return max(bisect_right(self.pts, self.pts[0] + ticks) - 1, 0)


@contextmanager
def _open(path: Path | str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream for decoding; every failure of FFmpeg inside becomes a VideoError."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")  # which is never a cover picture
            if not isinstance(stream, VideoStream):
                raise VideoError(f"{path}: has no video stream")
            stream.thread_type = "NONE"  # frame threads can hang on an early stop; workers are the parallelism
            stream.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video ({error}); fetch or encode it again") from error


def _read_packet_table(path: Path | str) -> _PacketTable:
    stamps: dict[int, tuple[bool, int | None]] = {}  # without the packets, which hold the whole file
    with _open(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.pts is None:
                    raise VideoError(f"{path}: has frames without time stamps; remux it into mp4 or mkv")
                stamps[packet.pts] = packet.is_keyframe, packet.duration
        tick, rate = stream.time_base, stream.average_rate
        ordered = all(before < after for before, after in pairwise(stamps))
        if container.format.name == "avi" and stream.codec_context.has_b_frames and ordered:
            # AVI stores no display times, and for H.264 FFmpeg hands out the storage order in their place.
            raise VideoError(f"{path}: is an AVI file whose B-frames have no display times; encode it as mp4 or mkv")
    if not stamps or tick is None:
        raise VideoError(f"{path}: has no frames; fetch or encode it again")
    pts = sorted(stamps)
    keys = [stamp for stamp in pts if stamps[stamp][0]] or pts[:1]
    gap = (pts[-1] - pts[0]) // (len(pts) - 1) if len(pts) > 1 else round(1 / rate / tick) if rate else 1
    return _PacketTable(pts, keys, pts[-1] + (stamps[pts[-1]][1] or gap), tick)


def _decode(path: Path | str, table: _PacketTable, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames with the wanted time stamps (ascending), with one seek for each group of pictures."""
    left: set[int] = set()
    with _open(path) as (container, stream):
        for row, stamps in groupby(wanted, key=lambda pts: max(bisect_right(table.keys, pts) - 1, 0)):
            group = set(stamps)
            container.seek(table.keys[row], stream=stream)
            yield from _decode_group(container, stream, group, start=table.keys[row])
            left |= group
    if left:  # MPEG-TS seeks may land behind the key frame: decode once from the beginning
        with _open(path) as (container, stream):
            yield from _decode_group(container, stream, left, start=None)
    if left:
        first = float((min(left) - table.pts[0]) * table.tick)
        raise VideoError(
            f"{path}: {len(left)} of {len(wanted)} frames cannot be decoded, the first at {first:.2f} s; "
            "fetch or encode it again"
        )


def _decode_group(
    container: InputContainer, stream: VideoStream, left: set[int], *, start: int | None
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield frames and take them out of `left`; give up when the first packet lies behind `start`, the key frame."""
    last = max(left)
    context = stream.codec_context
    for packet in container.demux(stream):
        if start is not None and packet.pts is not None:
            if packet.pts > start:
                return
            start = None
        if context.name in _SKIPS_EXACTLY:
            context.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
        for frame in packet.decode():
            if frame.pts in left:
                left.remove(frame.pts)
                yield frame.pts, frame
            if frame.pts is not None and frame.pts >= last:
                return


def _to_square(frame: VideoFrame, size: int, reformatter: VideoReformatter) -> NDArray[Any]:
    """Scale the shortest side to S, cut out the centre and turn it upright: (3, S, S)."""
    scale = size / min(frame.width, frame.height)
    width, height = max(size, round(frame.width * scale)), max(size, round(frame.height * scale))
    scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1)
    top, left = (height - size) // 2, (width - size) // 2
    square = scaled.to_ndarray()[top : top + size, left : left + size]
    upright = np.rot90(square, round(frame.rotation / 90))  # the container's rotation, counter-clockwise
    return upright.transpose(2, 0, 1)

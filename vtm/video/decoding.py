"""Open a video and decode it in order of display, whatever in it is damaged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vtm.video.packets import PacketTable

# Decoders that leave out exactly the pictures no other picture needs. libdav1d (AV1) drops delayed ones as well.
_SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp9"})

# Containers whose seeks go by the time of decoding: to land before a key frame, aim at the one before.
SEEKS_LATE = frozenset({"mpeg", "mpegts"})


class VideoError(Exception):
    """Say that a file is not a video from which the wanted frames can be read, and which file it is."""


class TooShortError(VideoError):
    """Say that a video ends before a time at which it is to be read."""


class Decoded(NamedTuple):
    """Hold what came of a packet."""

    pts: int | None
    frame: VideoFrame | None  # None: it could not be decoded
    place: int  # of the packet in the order of decoding

    @property
    def bad(self) -> bool:
        """Tell whether the packet could not be decoded, or only in part."""
        return self.frame is None or self.frame.is_corrupt


@contextmanager
def open_video(path: Path | str, vectors: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream for decoding; every failure of FFmpeg inside becomes a VideoError."""
    try:
        with av.open(local(path)) as container:
            try:
                stream = container.streams.best("video")  # which is never a cover picture
            except IndexError:  # PyAV did not take over all streams of a damaged header
                stream = None
            if not isinstance(stream, VideoStream):
                raise VideoError(f"{path}: has no video stream")
            if getattr(stream, "codec_context", None) is None:
                raise VideoError(f"{path}: FFmpeg has no decoder for its video stream; encode it as H.264")
            stream.thread_type = "NONE"  # frame threads can hang on an early stop; workers are the parallelism
            stream.thread_count = 1
            if vectors:
                stream.codec_context.options = {"flags2": "+export_mvs"}
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise VideoError(f"{path}: cannot be read as a video ({reason}); fetch or encode it again") from error


def local(path: Path | str) -> str:
    """Name a file for FFmpeg, which takes what stands before a colon for a protocol, as in "12:30 talk.mp4"."""
    return f"file:{path}"


def read_packets(
    container: InputContainer, stream: VideoStream, stamps: Sequence[int] | None = None
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets up to where the file ends or breaks off.

    Args:
        stamps: Time stamps to give to the packets, counted from the beginning of the file.
    """
    number = 0
    with suppress(av.error.InvalidDataError):  # but not errors of the disk or the network
        for packet in container.demux(stream):
            if stamps is not None and packet.size:
                packet.pts = stamps[number]
                number += 1
            yield packet


def decode_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    stamps: Sequence[int] | None = None,
    key: int | None = None,
    until: int | None = None,
    wanted: Collection[int] | None = None,
) -> Iterator[Decoded]:
    """Decode in order of display, going on after damaged packets.

    Args:
        stamps: As for `read_packets`.
        key: Begin at the key frame with this time stamp; yield nothing if the container stands behind it. None begins
            with the next packet.
        until: End before the first packet with a later time stamp; None ends with the file.
        wanted: The time stamps of the frames that matter; others are left out where that is cheap. None: all.
    """
    context = stream.codec_context
    skips = context.name in _SKIPS_EXACTLY
    places: dict[int | None, int] = {}
    for place, packet in enumerate(read_packets(container, stream, stamps)):
        if key is not None:
            if packet.pts is not None and packet.pts > key:
                return
            if packet.pts != key:
                continue
            key = None
        if until is not None and packet.pts is not None and packet.pts > until:
            break
        if wanted is not None and skips:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        places[packet.pts] = place
        try:
            for frame in packet.decode():
                yield Decoded(frame.pts, frame, places.get(frame.pts, place))
        except av.error.FFmpegError:
            yield Decoded(packet.pts, None, place)
    for frame in drain(stream):
        yield Decoded(frame.pts, frame, places.get(frame.pts, max(places.values(), default=0)))


def drain(stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder holds back until their turn."""
    with suppress(av.error.FFmpegError):
        yield from stream.codec_context.decode(None)


def decode_from(
    path: Path | str,
    table: PacketTable,
    start: int,
    number: int,
    *,
    wanted: Collection[int] | None = None,
    vectors: bool = False,
) -> Iterator[Decoded]:
    """Decode afresh from the key frame with the number `start` to the end of the group `number`."""
    until = int(table.keys[number + 1]) if number + 1 < len(table.keys) else None
    with open_video(path, vectors) as (container, stream):
        if start:
            aim = start - (container.format.name in SEEKS_LATE)
            try:
                container.seek(int(table.keys[aim]), stream=stream)
            except av.error.FFmpegError:
                return
        key = int(table.keys[start]) if start else None
        yield from decode_frames(container, stream, stamps=table.stamps, key=key, until=until, wanted=wanted)

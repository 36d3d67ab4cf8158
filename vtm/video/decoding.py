"""Open a video and decode its frames in display order, continuing after damaged packets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vtm.video.packets import Entry, PacketTable

# Decoders that skip exactly the frames that no other frame references. libdav1d (AV1) also drops delayed frames.
_SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp9"})

# Containers that seek by decoding time: to land before a key frame, seek to the key frame before it.
SEEKS_LATE = frozenset({"mpeg", "mpegts"})

# Brands of MP4 files that contain a picture.
_PICTURE_BRANDS = frozenset({"avif", "heic", "heix", "heim", "heis", "mif1"})

# Containers that do not store the shape of pixels, which may then change within the stream.
_NO_PIXEL_ASPECT = frozenset({"h264", "hevc", "m4v", "mpeg", "mpegts", "mpegvideo"})

# Widest pixels in use are about 4:1; beyond this, the value is damaged.
_MAX_PIXEL_ASPECT = 16


class VideoError(Exception):
    """Error for a file from which the requested frames cannot be read; the message names the file."""


class TooShortError(VideoError):
    """Error for a video that ends before a requested time."""


class Decoded(NamedTuple):
    """Result of decoding a packet."""

    pts: int | None
    frame: VideoFrame | None  # None if the packet could not be decoded
    position: int  # index of the packet in decoding order
    pixel_aspect: float = 1.0  # width of a pixel divided by its height

    @property
    def bad(self) -> bool:
        """Whether the packet could not be decoded completely."""
        return self.frame is None or self.frame.is_corrupt


@contextmanager
def open_video(path: Path | str, vectors: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its best video stream for decoding.

    Args:
        path: video file.
        vectors: export motion vectors with the frames.

    Raises:
        VideoError: if FFmpeg fails, while opening the file or inside the block.
    """
    try:
        with av.open(local(path)) as container:
            try:
                stream = container.streams.best("video")
            except IndexError:  # with a damaged header, PyAV may not list all streams
                stream = None
            if not isinstance(stream, VideoStream):
                raise VideoError(f"{path}: has no video stream")
            if stream.disposition & Disposition.attached_pic:  # the best stream only if there is no other
                raise VideoError(f"{path}: has no video stream, only a cover picture; give a video file")
            if _is_picture(container):
                raise VideoError(f"{path}: is a picture, not a video; give a video file")
            if getattr(stream, "codec_context", None) is None:
                raise VideoError(f"{path}: FFmpeg has no decoder for its video stream; encode it as H.264")
            stream.thread_type = "NONE"  # frame threads can hang on an early stop; worker processes run in parallel
            stream.thread_count = 1
            if vectors:
                stream.codec_context.options = {"flags2": "+export_mvs"}
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or error
        raise VideoError(f"{path}: cannot be read as a video ({reason}); fetch or encode it again") from error


def _is_picture(container: InputContainer) -> bool:
    """Return whether an open file is a single picture, such as JPEG, PNG or HEIF."""
    brand = container.metadata.get("major_brand")
    return container.format.name.endswith("_pipe") or container.format.name == "image2" or brand in _PICTURE_BRANDS


def local(path: Path | str) -> str:
    """Return the URL of a local file, since FFmpeg reads "12:30 talk.mp4" as a protocol and a path."""
    return f"file:{path}"


def read_packets(
    container: InputContainer,
    stream: VideoStream,
    stamps: Sequence[int | None] | None = None,
    entry: Entry | None = None,
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream up to the end of the file, or to where it is cut off.

    Args:
        container: open container; if `stamps` are passed, at its beginning or before `entry`.
        stream: video stream.
        stamps: time stamps to assign to the packets, in file order; None keeps the time stamps of the packets.
        entry: packet to start at; None starts at the next packet.
    """
    number = entry.number if entry else 0
    with suppress(av.error.InvalidDataError):  # errors of the disk or the network are raised
        for packet in container.demux(stream):
            if entry is not None:
                if (packet.pos, packet.size) != (entry.position, entry.size):
                    continue
                entry = None
            if stamps is not None and packet.size and not packet.is_discard:
                packet.pts = stamps[number] if number < len(stamps) else None
                number += 1
            yield packet


def decode_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    stamps: Sequence[int | None] | None = None,
    entry: Entry | None = None,
    key: int | None = None,
    until: int | None = None,
    wanted: Collection[int] | None = None,
) -> Iterator[Decoded]:
    """Decode frames in display order, continuing after damaged packets.

    Args:
        container: open container.
        stream: video stream.
        stamps: see `read_packets`.
        entry: see `read_packets`.
        key: time stamp of the key frame to start at; nothing is yielded if the container is already past it. None
            starts at the next packet.
        until: stop before the first packet with a later time stamp; None decodes to the end of the file.
        wanted: time stamps of the requested frames; other frames may be skipped. None requests all frames.
    """
    context = stream.codec_context
    skips = context.name in _SKIPS_EXACTLY
    positions: dict[int | None, int] = {}
    aspects: dict[int | None, float] = {}
    aspect = 1.0
    for position, packet in enumerate(read_packets(container, stream, stamps, entry)):
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
        positions[packet.pts] = position
        try:
            frames = packet.decode()
            aspects[packet.pts] = aspect = _pixel_aspect(container, stream)
            for frame in frames:
                yield Decoded(frame.pts, frame, positions.get(frame.pts, position), aspects.get(frame.pts, aspect))
        except av.error.FFmpegError:
            yield Decoded(packet.pts, None, position)
    for frame in drain(stream):
        position = positions.get(frame.pts, max(positions.values(), default=0))
        yield Decoded(frame.pts, frame, position, aspects.get(frame.pts, aspect))


def _pixel_aspect(container: InputContainer, stream: VideoStream) -> float:
    """Return the width of a pixel divided by its height, as the container or else the last decoded packet declares it.

    Without a plausible declaration, pixels are square.
    """
    declared: list[Fraction | None] = [stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio]
    if container.format.name in _NO_PIXEL_ASPECT:
        declared.reverse()
    plausible = (aspect for aspect in declared if aspect and 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT)
    return float(next(plausible, 1))


def drain(stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames that are still buffered in the decoder."""
    with suppress(av.error.FFmpegError):
        yield from stream.codec_context.decode(None)


def seek_key(container: InputContainer, stream: VideoStream, table: PacketTable, number: int) -> bool:
    """Seek to the key frame with index `number` or before it, and return whether the seek succeeded.

    Index 0 leaves the container where it is, at the beginning.
    """
    late = container.format.name in SEEKS_LATE
    try:
        if number and table.entries is None:
            container.seek(int(table.keys[number - late]), stream=stream)
        elif number and table.entries is not None:
            if late:  # the time stamps of the file may repeat
                container.seek(table.entries[number - 1].position, unsupported_byte_offset=True)
            else:
                container.seek(table.entries[number].pts, stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def decode_from(
    path: Path | str,
    table: PacketTable,
    start: int,
    number: int,
    *,
    wanted: Collection[int] | None = None,
    vectors: bool = False,
) -> Iterator[Decoded]:
    """Open the file and decode from the key frame with index `start` to the end of the group with index `number`."""
    until = int(table.keys[number + 1]) if number + 1 < len(table.keys) else None
    with open_video(path, vectors) as (container, stream):
        if seek_key(container, stream, table, start):
            key = int(table.keys[start]) if start else None
            yield from decode_frames(
                container, stream, stamps=table.stamps, entry=table.entry(start), key=key, until=until, wanted=wanted
            )

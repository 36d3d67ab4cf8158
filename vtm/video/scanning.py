"""Scan the packets of a video file without decoding, to find its duration and when each frame is shown.

Headers are wrong about the duration of damaged and live-recorded files, and a frame rate does not describe videos of
variable rate.
"""

from __future__ import annotations

import os
import re
import warnings
from array import array
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtm.video.clock import Timeline, arrange, running_clock, unwrap
from vtm.video.decoding import SEEKS_LATE, VideoError, decode_frames, open_video, read_packets
from vtm.video.packets import Entry, PacketTable

_UNSTAMPED = -(1 << 63)  # FFmpeg's AV_NOPTS_VALUE

# Seconds after which the next frame of an MPEG stream belongs to another recording, as in the `ffmpeg` command.
_JUMP = 10

# Number of frames that may be left out without a warning.
_FEW = 3

# Containers of which files can be joined as bytes, and the number of bytes that may follow the last frame.
_JOINABLE = SEEKS_LATE | {"flv", "asf"}
_PADDING = 8192

# Number of packets to decode to compare the order of the frames with their time stamps.
_SAMPLE = 64

# The mark of MPEG-4 streams that store a P-frame and a B-frame in one packet, and where in the first packet to look.
_PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")
_HEAD = 1024


def duration(path: Path | str) -> float:
    """Measure the duration of a video in seconds from its packets.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
    """
    return packet_table(path).length


def frame_rate(path: Path | str) -> float:
    """Measure the mean number of frames per second of a video from its packets.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
    """
    table = packet_table(path)
    return len(table.pts) / table.length


def packet_table(path: Path | str) -> PacketTable:
    """Return the packet table of a file, from memory unless the file has changed.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read as a video ({error.strerror}); fetch or encode it again") from error
    if not S_ISREG(status.st_mode):  # opening a pipe would block forever
        raise VideoError(f"{path}: cannot be read as a video (it is not a regular file); give a regular file")
    return _read_packet_table(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # the windows of a video are read one after another
def _read_packet_table(path: str, size: int, changed_ns: int) -> PacketTable:
    packets = _scan(path)
    number, tick = len(packets.pts), packets.tick
    stamped = packets.pts != _UNSTAMPED
    if 2 * np.count_nonzero(stamped) < number:
        tick, hold = 1 / (packets.rate or Fraction(25)), np.ones(number, np.int64)
        pts, plausible, parts, end = np.argsort(_display_order(path, number)), np.ones(number, np.bool_), 1, None
        key = np.zeros(number, np.bool_)
    else:
        hold, key = packets.hold, packets.key
        timeline = _timeline(packets, stamped)
        pts, plausible, parts, end = packets.pts.copy(), stamped.copy(), timeline.parts, timeline.end
        pts[stamped], plausible[stamped] = timeline.pts, timeline.plausible
        if _is_misordered(path, packets, pts, plausible):
            order = np.array(_display_order(path, number))
            pts[order[plausible[order]]] = np.sort(pts[plausible])
    (rows,) = np.nonzero(plausible)
    if not len(rows):
        raise VideoError(f"{path}: its time stamps jump back and forth; remux or encode it again")
    shown, last = np.unique(pts[rows][::-1], return_index=True)
    rows = rows[::-1][last]  # of packets with the same time stamp, the last in the file
    if (dropped := int(np.count_nonzero(stamped)) - len(rows)) > _FEW:
        warnings.warn(
            f"{path}: {dropped} of {number} frames are left out because their time stamps are damaged or a part of the "
            "recording does not start with a key frame; remux or encode it again",
            stacklevel=2,
        )
    if end is None:
        count = len(shown) - 1
        gap = int(shown[-1] - shown[0]) // count if count else round(1 / packets.rate / tick) if packets.rate else 1
        end = int(shown[-1]) + (int(hold[rows[-1]]) or gap)
    if np.array_equal(pts[plausible], packets.pts[plausible]):
        keys = shown[key[rows]]
        return PacketTable(shown, keys if len(keys) else shown[:1], end, tick, packets.codec, None)
    stamps = [int(stamp) if usable else None for stamp, usable in zip(pts, plausible, strict=True)]
    entries = None
    if packets.container in SEEKS_LATE or parts == 1:
        entries = _entries(packets, rows[key[rows]])
    keys = pts[[entry.number for entry in entries]] if entries else shown[:1]
    return PacketTable(shown, keys, end, tick, packets.codec, stamps, entries or None)


class _Packets(NamedTuple):
    """Packets of a video stream in file order (N,), as the file stores them."""

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    hold: NDArray[np.int64]  # duration
    key: NDArray[np.bool_]
    places: dict[int, tuple[int, int]]  # index of a key frame to the position and size of its packet in bytes
    tick: Fraction
    rate: Fraction | None
    codec: str
    container: str
    delayed: bool  # whether the decoder reorders frames
    packed: bool  # whether the stream claims to store two frames in a packet, as DivX does


def _scan(path: str) -> _Packets:
    """Read the packets of a file.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
    """
    times, clocks, holds, marks = array("q"), array("q"), array("q"), bytearray()  # 25 bytes per frame, for long videos
    places, read = dict[int, tuple[int, int]](), 0
    with open_video(path) as (container, stream):
        context = stream.codec_context
        head = context.extradata or b""
        for packet in read_packets(container, stream):
            if packet.size and not packet.is_discard:
                pts, dts, position, is_key = packet.pts, packet.dts, packet.pos, packet.is_keyframe
                if position is not None:
                    read = position + packet.size
                    if is_key:
                        places[len(times)] = position, packet.size
                if not times:
                    head += bytes(packet)[:_HEAD]
                times.append(_UNSTAMPED if pts is None else pts)
                clocks.append(_UNSTAMPED if dts is None else dts)
                holds.append(packet.duration or 0)
                marks.append(is_key)
        if not times or stream.time_base is None:
            raise VideoError(f"{path}: has no frames; fetch or encode it again")
        if container.format.name in _JOINABLE and container.size - read > max(_PADDING, container.size // 10):
            warnings.warn(
                f"{path}: the video ends after {read / container.size:.0%} of the file, and what follows is left out; "
                "if recordings were joined, remux each of them and join them again",
                stacklevel=2,
            )
        return _Packets(
            np.frombuffer(times, np.int64),
            np.frombuffer(clocks, np.int64),
            np.frombuffer(holds, np.int64),
            np.frombuffer(marks, np.bool_),
            places,
            stream.time_base,
            stream.guessed_rate or stream.average_rate,
            context.name,
            container.format.name,
            bool(context.has_b_frames),
            context.name == "mpeg4" and _PACKED.search(head) is not None,
        )


def _timeline(packets: _Packets, stamped: NDArray[np.bool_]) -> Timeline:
    """Put the packets with time stamps on one clock."""
    mpeg, jump = packets.container in SEEKS_LATE, round(_JUMP / packets.tick)
    pts, clock = packets.pts[stamped], _clock(packets, stamped)
    if mpeg and packets.tick == Fraction(1, 90_000):
        pts, clock = unwrap(pts, clock, jump)
    return arrange(pts, clock, packets.key[stamped], jump=jump, gaps=not mpeg)


def _clock(packets: _Packets, stamped: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return time stamps that ascend in a single recording, for the packets with presentation times."""
    dts = packets.dts[stamped]
    (known,) = np.nonzero(dts != _UNSTAMPED)
    if packets.container == "matroska,webm" or 2 * len(known) < len(dts):  # Matroska stores no decoding times
        return running_clock(packets.pts[stamped], packets.key[stamped])
    if len(known) == len(dts):
        return dts
    clock: NDArray[np.int64] = dts[known[np.searchsorted(known, np.arange(len(dts)), "right").clip(min=1) - 1]]
    return clock


def _is_misordered(path: str, packets: _Packets, pts: NDArray[np.int64], plausible: NDArray[np.bool_]) -> bool:
    """Return whether the decoder shows the frames in another order than their time stamps."""
    stamps = pts[plausible]
    ascending = bool((stamps[:-1] <= stamps[1:]).all())
    if not packets.delayed or not (ascending or packets.packed):
        return False
    if packets.container == "avi" and ascending:
        return True  # AVI stores no presentation times: for H.264, FFmpeg returns decoding times instead
    stored = [int(stamp) if usable else None for stamp, usable in zip(pts[:_SAMPLE], plausible, strict=False)]
    with open_video(path) as (container, stream):
        frames = islice(decode_frames(container, stream, stamps=stored), _SAMPLE - 1)
        shown = [frame.pts for _, frame, *_ in frames if frame is not None and not frame.is_corrupt]
    order = [stamp for stamp in shown if stamp is not None]
    return order != sorted(order)


def _entries(packets: _Packets, rows: NDArray[np.int64]) -> list[Entry]:
    """List the packets of key frames with the given indices, except for those that cannot be told from others."""
    counts = Counter(packets.places.values())
    return [
        Entry(row, *packets.places[row], int(packets.pts[row]))
        for row in rows.tolist()
        if counts.get(packets.places.get(row, (-1, 0))) == 1
    ]


def _display_order(path: str, count: int) -> list[int]:
    """Decode a file whose packets have no valid presentation times; return the packet indices in display order."""
    with open_video(path) as (container, stream):
        frames = decode_frames(container, stream, stamps=range(count))
        shown = [pts for pts, frame, *_ in frames if frame is not None and pts is not None]
    for number in sorted({*range(count)}.difference(shown)):  # packets that cannot be decoded keep their position
        shown.insert(next((position for position, other in enumerate(shown) if other > number), len(shown)), number)
    return shown

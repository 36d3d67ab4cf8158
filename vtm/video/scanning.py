"""Scan the packets of a video file without decoding, to find its duration and when each frame is shown.

Headers are wrong about the duration of damaged and live-recorded files, and a frame rate does not describe videos of
variable rate.
"""

from __future__ import annotations

import os
from array import array
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

import numpy as np

from vtm.video.decoding import VideoError, decode_frames, open_video, read_packets
from vtm.video.packets import PacketTable, in_order

_UNSTAMPED = -(1 << 63)  # FFmpeg's AV_NOPTS_VALUE


def duration(path: Path | str) -> float:
    """Measure the duration of a video in seconds from its packets.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
    """
    return packet_table(path).length


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
    with open_video(path) as (container, stream):
        times, holds, marks = array("q"), array("q"), bytearray()  # 17 bytes per frame, for videos of many hours
        for packet in read_packets(container, stream):
            if packet.size and not packet.is_discard:
                times.append(_UNSTAMPED if packet.pts is None else packet.pts)
                holds.append(packet.duration or 0)
                marks.append(packet.is_keyframe)
        tick, rate, codec = stream.time_base, stream.guessed_rate or stream.average_rate, stream.codec_context.name
        delayed = container.format.name == "avi" and stream.codec_context.has_b_frames
    if not times or tick is None:
        raise VideoError(f"{path}: has no frames; fetch or encode it again")
    pts, hold, key = np.array(times), np.array(holds), np.array(marks, np.bool_)
    stamped, number = pts != _UNSTAMPED, len(pts)
    pts, hold, key = pts[stamped], hold[stamped], key[stamped]
    stamps: list[int] | None = None
    # AVI stores no presentation times: for H.264 FFmpeg returns decoding times instead, which always ascend.
    if 2 * len(pts) < number or (delayed and (pts[:-1] < pts[1:]).all()):
        if len(pts) < number:
            tick, pts, hold = 1 / (rate or Fraction(25)), np.arange(number), np.ones(number, np.int64)
        order = _display_order(path, number)
        stamps, key = pts[np.argsort(order)].tolist(), np.zeros(number, np.bool_)
    plausible = in_order(pts)
    if not plausible.any():
        raise VideoError(f"{path}: its time stamps jump back and forth; remux or encode it again")
    pts, hold, key = pts[plausible][::-1], hold[plausible][::-1], key[plausible][::-1]
    pts, last = np.unique(pts, return_index=True)  # of packets with the same time stamp, the last in the file
    end, count = int(pts[-1]), len(pts) - 1
    gap = (end - int(pts[0])) // count if count else round(1 / rate / tick) if rate else 1
    keys = pts[key[last]]
    return PacketTable(pts, keys if len(keys) else pts[:1], end + (int(hold[last[-1]]) or gap), tick, codec, stamps)


def _display_order(path: str, count: int) -> list[int]:
    """Decode a file whose packets have no presentation times; return the packet indices in display order."""
    with open_video(path) as (container, stream):
        frames = decode_frames(container, stream, stamps=range(count))
        shown = [pts for pts, frame, _ in frames if frame is not None and pts is not None]
    for number in sorted({*range(count)}.difference(shown)):  # packets that cannot be decoded keep their position
        shown.insert(next((position for position, other in enumerate(shown) if other > number), len(shown)), number)
    return shown

"""Scan the packets of a file once, without decoding: when each frame is shown, and how long the video is.

Headers lie about the duration of damaged and live-recorded files, and a frame rate says nothing about variable rates.
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

_UNSTAMPED = -(1 << 63)  # FFmpeg's own mark, which is no time stamp


def duration(path: Path | str) -> float:
    """Measure how long a video is on screen, in seconds, from its packets.

    Raises:
        VideoError: As for `read_frames`.
    """
    return packet_table(path).length


def packet_table(path: Path | str) -> PacketTable:
    """Take the table of a file from memory, unless the file has changed."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read as a video ({error.strerror}); fetch or encode it again") from error
    if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise VideoError(f"{path}: cannot be read as a video (it is no regular file); give a file")
    return _read_packet_table(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # windows of one video are read one after the other
def _read_packet_table(path: str, size: int, changed_ns: int) -> PacketTable:
    with open_video(path) as (container, stream):
        times, holds, marks = array("q"), array("q"), bytearray()  # some bytes for each frame of many hours
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
    # AVI stores no times of display: for H.264 FFmpeg hands out those of decoding, which always ascend, in their place.
    if 2 * len(pts) < number or (delayed and (pts[:-1] < pts[1:]).all()):
        if len(pts) < number:
            tick, pts, hold = 1 / (rate or Fraction(25)), np.arange(number), np.ones(number, np.int64)
        order = _display_order(path, number)
        stamps, key = pts[np.argsort(order)].tolist(), np.zeros(number, np.bool_)
    sound = in_order(pts)
    if not sound.any():
        raise VideoError(f"{path}: its time stamps jump back and forth; remux or encode it again")
    pts, hold, key = pts[sound][::-1], hold[sound][::-1], key[sound][::-1]
    pts, last = np.unique(pts, return_index=True)  # of packets with one time stamp, the last in the file
    end, count = int(pts[-1]), len(pts) - 1
    gap = (end - int(pts[0])) // count if count else round(1 / rate / tick) if rate else 1
    keys = pts[key[last]]
    return PacketTable(pts, keys if len(keys) else pts[:1], end + (int(hold[last[-1]]) or gap), tick, codec, stamps)


def _display_order(path: str, count: int) -> list[int]:
    """Decode a file whose packets carry no times: their numbers, in the order in which the frames are displayed."""
    with open_video(path) as (container, stream):
        frames = decode_frames(container, stream, stamps=range(count))
        shown = [pts for pts, frame, _ in frames if frame is not None and pts is not None]
    for number in sorted({*range(count)}.difference(shown)):  # cannot be decoded: keeps its place, as others theirs
        shown.insert(next((place for place, other in enumerate(shown) if other > number), len(shown)), number)
    return shown

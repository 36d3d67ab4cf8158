"""Scan the packets of a file once, without decoding: when each frame is shown, and how long the video is.

Headers lie about the duration of damaged and live-recorded files, and a frame rate says nothing about variable rates.
"""

from __future__ import annotations

import os
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from vtm.data.video.decoding import VideoError, decode_frames, open_video, read_packets
from vtm.data.video.packets import PacketTable, in_order


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
        raise VideoError(f"{path}: cannot be read as a video ({error}); fetch or encode it again") from error
    return _read_packet_table(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # windows of one video are read one after the other
def _read_packet_table(path: str, size: int, changed_ns: int) -> PacketTable:
    with open_video(path) as (container, stream):
        packets = [  # without their content, which is the whole file
            (packet.pts, packet.is_keyframe, packet.duration or 0)
            for packet in read_packets(container, stream)
            if packet.size and not packet.is_discard
        ]
        tick, rate, codec = stream.time_base, stream.guessed_rate or stream.average_rate, stream.codec_context.name
        delayed = container.format.name == "avi" and stream.codec_context.has_b_frames
    if not packets or tick is None:
        raise VideoError(f"{path}: has no frames; fetch or encode it again")
    stamped = [(pts, key, hold) for pts, key, hold in packets if pts is not None]
    stamps: list[int] | None = None
    # AVI stores no times of display: for H.264 FFmpeg hands out those of decoding, which always ascend, in their place.
    if 2 * len(stamped) < len(packets) or (delayed and all(one[0] < two[0] for one, two in pairwise(stamped))):
        if len(stamped) < len(packets):
            tick, stamped = 1 / (rate or Fraction(25)), [(number, False, 1) for number in range(len(packets))]
        order = _display_order(path, len(packets))
        stamps = [stamped[place][0] for place in np.argsort(order)]
        stamped = [(pts, False, hold) for pts, _, hold in stamped]
    sound = in_order([pts for pts, _, _ in stamped])
    if not sound.any():
        raise VideoError(f"{path}: its time stamps jump back and forth; remux or encode it again")
    found = {pts: (key, hold) for (pts, key, hold), good in zip(stamped, sound, strict=True) if good}
    pts = np.array(sorted(found))
    keys = np.array([time for time in pts.tolist() if found[time][0]] or pts[:1])
    last, count = int(pts[-1]), len(pts) - 1
    gap = (last - int(pts[0])) // count if count else round(1 / rate / tick) if rate else 1
    return PacketTable(pts, keys, last + (found[last][1] or gap), tick, codec, stamps)


def _display_order(path: str, count: int) -> list[int]:
    """Decode a file whose packets carry no times: their numbers, in the order in which the frames are displayed."""
    with open_video(path) as (container, stream):
        frames = decode_frames(container, stream, stamps=range(count))
        shown = [pts for pts, frame, _ in frames if frame is not None and pts is not None]
    for number in sorted({*range(count)}.difference(shown)):  # cannot be decoded: keeps its place, as others theirs
        shown.insert(next((place for place, other in enumerate(shown) if other > number), len(shown)), number)
    return shown

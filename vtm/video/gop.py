"""Decode the requested frames of a video, one group of pictures (GOP) at a time, and collect their motion vectors."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vtm.video.damage import Survey, nearest_frame, survey_group
from vtm.video.decoding import decode_frames, decode_from, drain, open_video, seek_key
from vtm.video.motion import VectorMotion
from vtm.video.packets import PacketTable


def decode_wanted(
    path: Path | str,
    table: PacketTable,
    wanted: list[int],
    surveys: dict[int, Survey],
    vectors: VectorMotion | None,
) -> Iterator[tuple[int, VideoFrame, float, bool]]:
    """Yield each requested time stamp with its frame and the shape of its pixels, and False for a replacement.

    Each group of pictures takes one seek. A group that turns out to be damaged is surveyed and all of its frames are
    yielded again: clean frames unchanged, and for each damaged frame the nearest clean frame of the file. A later
    yield for a time stamp supersedes an earlier one.

    Args:
        path: video file.
        table: packet table of the file.
        wanted: requested time stamps, ascending.
        surveys: surveys of this file by group; new ones are added.
        vectors: collects the motion vectors of the decoded frames; invalid for the groups that are in `surveys`
            afterwards. None to skip.
    """
    groups, left = deque(table.groups(wanted)), list[int]()
    while groups:
        with open_video(path, vectors is not None) as (container, stream):
            intact = True
            while groups and intact:  # after damage, open a new decoder: the state of the old one may be corrupt
                number, group = groups.popleft()
                intact = yield from _decode_group(container, stream, table, number, group, vectors)
                left += () if intact else group
    sources: dict[int, dict[int, list[int]]] = {}
    for want in left:
        number, nearest = nearest_frame(path, table, want, surveys)
        sources.setdefault(number, {}).setdefault(nearest, []).append(want)
    for number, chosen in sources.items():
        for pts, frame, _, aspect in decode_from(path, table, surveys[number].start, number):
            if frame is not None and pts in chosen:
                for want in chosen.pop(pts):
                    yield want, frame, aspect, want == pts and pts in surveys[number].clean


def show_clean(
    path: Path | str, table: PacketTable, numbers: Iterable[int], surveys: dict[int, Survey], vectors: VectorMotion
) -> None:
    """Pass the clean frames of the groups with the given indices to `vectors`."""
    for number in numbers:
        if number not in surveys:
            surveys[number] = survey_group(path, table, number)
        vectors.restart()
        for pts, frame, _, aspect in decode_from(path, table, surveys[number].start, number, vectors=True):
            if frame is not None and pts in surveys[number].clean:
                _show(pts, frame, aspect, table, vectors)


def _decode_group(
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    number: int,
    group: set[int],
    vectors: VectorMotion | None,
) -> Generator[tuple[int, VideoFrame, float, bool], None, bool]:
    """Yield the requested frames of a group until damage is found; return whether all were yielded without damage."""
    key, last, left, entered = int(table.keys[number]), max(group), set(group), number == 0
    if not seek_key(container, stream, table, number):
        return False
    if vectors:
        vectors.restart()
    frames = decode_frames(
        container,
        stream,
        stamps=table.stamps,
        entry=table.entry(number),
        key=key if number else None,
        wanted=group,
    )
    for decoded in frames:
        pts, frame, _, aspect = decoded
        if decoded.bad and (pts is None or pts >= key):
            return False
        if pts is None or frame is None:
            continue
        entered = entered or (pts == key and frame.pict_type != PictureType.P)
        if pts >= key and not entered:
            return False  # decoding cannot start here: the key frame is damaged or the stream uses intra refresh
        _show(pts, frame, aspect, table, vectors)
        if pts in left:
            left.remove(pts)
            yield pts, frame, aspect, True
        if pts >= last and not (vectors and vectors.awaits(table.row(last))):
            break
    damaged = [frame for frame in drain(stream) if frame.is_corrupt and (frame.pts is None or frame.pts >= key)]
    return not left and not damaged


def _show(pts: int, frame: VideoFrame, pixel_aspect: float, table: PacketTable, vectors: VectorMotion | None) -> None:
    """Pass a frame to `vectors` unless it is a B-frame."""
    if vectors is None or frame.pict_type == PictureType.B:
        return
    row = table.row(pts)
    if frame.pict_type == PictureType.I:
        vectors.see_intra(row)
    else:
        # frame.side_data would keep the frame alive until the next garbage collection
        stored = SideDataContainer(frame).get("MOTION_VECTORS")  # type: ignore[call-arg]  # stub has no __init__
        blocks = None if stored is None else stored.to_ndarray()
        vectors.see_predicted(
            row,
            blocks,
            _luma(frame),
            depth=frame.format.components[0].bits,
            turns=round(frame.rotation / 90),
            pixel_aspect=pixel_aspect,
        )


def _luma(frame: VideoFrame) -> NDArray[Any]:
    """Return the first component of a frame (height, width), without copying it."""
    plane, bits = frame.planes[0], frame.format.components[0].bits
    kind = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    lines: NDArray[Any] = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    return lines[: frame.height, : frame.width]

"""Decode the frames that are wanted, one group of pictures after the other, and show them to who measures motion."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from vtm.video.damage import Survey, nearest_frame, survey_group
from vtm.video.decoding import SEEKS_LATE, decode_frames, decode_from, drain, open_video
from vtm.video.motion import VectorMotion
from vtm.video.packets import PacketTable


def decode_wanted(
    path: Path | str,
    table: PacketTable,
    wanted: list[int],
    surveys: dict[int, Survey],
    vectors: VectorMotion | None,
) -> Iterator[tuple[int, VideoFrame, bool]]:
    """Yield frames for the wanted time stamps, and whether each is that frame or a stand-in.

    There is one seek for each group of pictures. A group that shows damage is surveyed, and the frames that come from
    it then replace those that came before: for damaged ones, the nearest clean one of the file.

    Args:
        wanted: Time stamps, ascending.
        surveys: Those made so far of this file; new ones are added.
        vectors: What is to see the frames; not to be trusted at groups that are in `surveys` afterwards.
    """
    groups, left = deque(table.groups(wanted)), list[int]()
    while groups:
        with open_video(path, vectors is not None) as (container, stream):
            sound = True
            while groups and sound:  # damage may stay in a decoder, which is not used again
                number, group = groups.popleft()
                sound = yield from _decode_group(container, stream, table, number, group, vectors)
                left += () if sound else group
    sources: dict[int, dict[int, list[int]]] = {}
    for want in left:
        number, nearest = nearest_frame(path, table, want, surveys)
        sources.setdefault(number, {}).setdefault(nearest, []).append(want)
    for number, chosen in sources.items():
        for pts, frame, _ in decode_from(path, table, surveys[number].start, number):
            if frame is not None and pts in chosen:
                for want in chosen.pop(pts):
                    yield want, frame, want == pts and pts in surveys[number].clean


def show_clean(
    path: Path | str, table: PacketTable, numbers: Iterable[int], surveys: dict[int, Survey], vectors: VectorMotion
) -> None:
    """Show the clean frames of some groups to `vectors`."""
    for number in numbers:
        if number not in surveys:
            surveys[number] = survey_group(path, table, number)
        vectors.restart()
        for pts, frame, _ in decode_from(path, table, surveys[number].start, number, vectors=True):
            if frame is not None and pts in surveys[number].clean:
                _show(pts, frame, table, vectors)


def _decode_group(
    container: InputContainer,
    stream: VideoStream,
    table: PacketTable,
    number: int,
    group: set[int],
    vectors: VectorMotion | None,
) -> Generator[tuple[int, VideoFrame, bool], None, bool]:
    """Yield the frames of a group as long as it shows no damage; return whether all have come and none was seen."""
    key, last, left, entered = int(table.keys[number]), max(group), set(group), number == 0
    try:
        if number:
            aim = number - (container.format.name in SEEKS_LATE)
            container.seek(int(table.keys[aim]), stream=stream)
    except av.error.FFmpegError:
        return False
    if vectors:
        vectors.restart()
    for one in decode_frames(container, stream, stamps=table.stamps, key=key if number else None, wanted=group):
        pts, frame, _ = one
        if one.bad and (pts is None or pts >= key):
            return False
        if pts is None or frame is None:
            continue
        entered = entered or (pts == key and frame.pict_type != PictureType.P)
        if pts >= key and not entered:
            return False  # no place to enter after all: damaged, or a stream that refreshes bit by bit
        _show(pts, frame, table, vectors)
        if pts in left:
            left.remove(pts)
            yield pts, frame, True
        if pts >= last and not (vectors and vectors.awaits(table.row(last))):
            break
    spoilt = [frame for frame in drain(stream) if frame.is_corrupt and (frame.pts is None or frame.pts >= key)]
    return not left and not spoilt


def _show(pts: int, frame: VideoFrame, table: PacketTable, vectors: VectorMotion | None) -> None:
    """Show a frame to `vectors` if it is no B-frame."""
    if vectors is None or frame.pict_type == PictureType.B:
        return
    row = table.row(pts)
    if frame.pict_type == PictureType.I:
        vectors.see_intra(row)
    else:
        # frame.side_data would keep the frame alive until the next garbage collection
        stored = SideDataContainer(frame).get("MOTION_VECTORS")  # type: ignore[call-arg]  # stub has no __init__
        blocks = None if stored is None else stored.to_ndarray()
        vectors.see_predicted(row, blocks, frame.height, frame.width, round(frame.rotation / 90))

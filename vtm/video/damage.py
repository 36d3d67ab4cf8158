"""Find the damaged frames of a video and the clean frames that replace them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from av.video.frame import PictureType

from vtm.video.decoding import VideoError, decode_from
from vtm.video.packets import PacketTable


class Survey(NamedTuple):
    """Clean and damaged frames of a group of pictures that was decoded completely."""

    start: int  # index of the key frame from which to decode
    clean: set[int]  # time stamps of the clean frames
    damaged: set[int]  # time stamps of the damaged frames


def survey_group(path: Path | str, table: PacketTable, number: int) -> Survey:
    """Decode a group of pictures and divide its frames into clean and damaged ones.

    The result depends on the file only, not on what was read before. A damaged packet damages its own frame and, unless
    no other frame references it, all later packets up to the next clean I-frame at which decoding can start. If
    decoding cannot start at the group's key frame, it starts two groups earlier, which is enough for streams with
    gradual intra refresh instead of I-frames; if that seek fails, it starts at the beginning of the file.
    """
    keys = table.keys.tolist()
    for start in (number, max(number - 2, 0), 0):
        since = keys[min(start + 1, number)] if start else keys[0]  # earlier frames may lack their references
        damaged: list[int] = []  # positions of damaged packets
        intra: list[tuple[int, int]] = []  # time stamps and positions of clean key frames
        reached = entered = False
        for decoded in decode_from(path, table, start, number, wanted=()):
            pts, frame, position, _ = decoded
            reached = reached or (pts is not None and pts >= keys[number])
            entered = entered or (frame is not None and pts == keys[start] and frame.pict_type != PictureType.P)
            if decoded.bad:
                damaged += [position] if pts is None or pts >= since else []
            elif frame and pts is not None and pts in keys and frame.pict_type == PictureType.I:
                intra.append((pts, position))
            if start == number and number and reached and not entered:
                break
        if start == 0 or (entered if start == number else reached):
            break
    survey = Survey(start, set(), set())
    for decoded in decode_from(path, table, start, number):
        pts, frame, position, _ = decoded
        if frame is not None and pts is not None:
            entry = max((begin for stamp, begin in intra if stamp <= pts), default=0)
            affected = decoded.bad or any(entry <= other <= position for other in damaged)
            (survey.damaged if affected else survey.clean).add(pts)
    return survey


def nearest_frame(path: Path | str, table: PacketTable, want: int, surveys: dict[int, Survey]) -> tuple[int, int]:
    """Find the clean frame nearest to a time stamp; if the file has no clean frame, the nearest damaged one.

    Returns:
        The index of the frame's group of pictures, and the frame's time stamp.

    Raises:
        VideoError: if no frame of the file can be decoded.
    """
    keys = table.keys.tolist()
    ends = [*(int(table.pts[table.row(key) - 1]) for key in keys[1:]), int(table.pts[-1])]
    begins = [min(keys[0], int(table.pts[0])), *keys[1:]]
    away = [max(begin - want, want - end, 0) for begin, end in zip(begins, ends, strict=True)]
    for clean in (True, False):
        best: tuple[int, int, int] | None = None  # distance, negative time stamp, index of the group
        for number in sorted(range(len(keys)), key=away.__getitem__):
            if best and away[number] > best[0]:
                break
            if number not in surveys:
                surveys[number] = survey_group(path, table, number)
            frames = surveys[number].clean if clean else surveys[number].damaged
            inside = [(abs(pts - want), -pts, number) for pts in frames if begins[number] <= pts <= ends[number]]
            best = min([*inside, *([best] if best else [])], default=None)
        if best:
            return best[2], -best[1]
    raise VideoError(f"{path}: no frame can be decoded; fetch or encode it again")

"""Find out which frames damage has reached, and which clean ones stand in for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from av.video.frame import PictureType

from vtm.video.decoding import VideoError, decode_from
from vtm.video.packets import PacketTable


class Survey(NamedTuple):
    """Say which frames come out when a group of pictures is decoded completely."""

    start: int  # the number of the key frame from which to decode
    clean: set[int]  # time stamps of the frames that no damage has reached
    damaged: set[int]  # those of the others


def survey_group(path: Path | str, table: PacketTable, number: int) -> Survey:
    """Find out which frames of a group are clean, whatever else is read of the file.

    A damaged packet damages itself and, unless no other picture needs it, all packets behind it up to the next clean
    I-frame at which decoding can start. A group that cannot be entered at its key frame is decoded from two groups
    before, which is enough where streams have no I-frames but refresh bit by bit, or if no seek leads there, from the
    beginning.
    """
    keys = table.keys.tolist()
    for start in (number, max(number - 2, 0), 0):
        since = keys[min(start + 1, number)] if start else keys[0]  # what comes before may lack its references
        spoilt: list[int] = []
        fresh: list[tuple[int, int]] = []  # time stamps and places of clean key frames
        met = entered = False
        for one in decode_from(path, table, start, number, wanted=()):
            pts, frame, place = one
            met = met or (pts is not None and pts >= keys[number])
            entered = entered or (frame is not None and pts == keys[start] and frame.pict_type != PictureType.P)
            if one.bad:
                spoilt += [place] if pts is None or pts >= since else []
            elif frame and pts is not None and pts in keys and frame.pict_type == PictureType.I:
                fresh.append((pts, place))
            if start == number and number and met and not entered:
                break
        if start == 0 or (entered if start == number else met):
            break
    survey = Survey(start, set(), set())
    for one in decode_from(path, table, start, number):
        pts, frame, place = one
        if frame is not None and pts is not None:
            entry = max((begin for stamp, begin in fresh if stamp <= pts), default=0)
            hurt = one.bad or any(entry <= other <= place for other in spoilt)
            (survey.damaged if hurt else survey.clean).add(pts)
    return survey


def nearest_frame(path: Path | str, table: PacketTable, want: int, surveys: dict[int, Survey]) -> tuple[int, int]:
    """Find the clean frame nearest to a time stamp, or if the file has none, the nearest damaged one.

    Returns:
        The number of its group, and its time stamp.
    """
    keys = table.keys.tolist()
    ends = [*(int(table.pts[table.row(key) - 1]) for key in keys[1:]), int(table.pts[-1])]
    begins = [min(keys[0], int(table.pts[0])), *keys[1:]]
    away = [max(begin - want, want - end, 0) for begin, end in zip(begins, ends, strict=True)]
    for clean in (True, False):
        best: tuple[int, int, int] | None = None  # how far, minus the time stamp, the number of the group
        for number in sorted(range(len(keys)), key=away.__getitem__):
            if best and away[number] > best[0]:
                break
            if number not in surveys:
                surveys[number] = survey_group(path, table, number)
            found = surveys[number].clean if clean else surveys[number].damaged
            inside = [(abs(pts - want), -pts, number) for pts in found if begins[number] <= pts <= ends[number]]
            best = min([*inside, *([best] if best else [])], default=None)
        if best:
            return best[2], -best[1]
    raise VideoError(f"{path}: no frame can be decoded; fetch or encode it again")

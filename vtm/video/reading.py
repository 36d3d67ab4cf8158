"""Read the frames of a video that are on screen at given times, and how fast their parts move."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vtm.video.damage import Survey
from vtm.video.decoding import TooShortError
from vtm.video.gop import decode_wanted, show_clean
from vtm.video.motion import VectorMotion, View, difference_motion
from vtm.video.packets import PacketTable
from vtm.video.scanning import packet_table

# Annotations give lengths in whole seconds: how long after the end a frame may be asked for.
_LATE = 1.5

# Decoders that tell the motion vectors of P-frames.
_HAS_VECTORS = frozenset({"h264", "mpeg2video", "mpeg4"})


class VideoFrames(NamedTuple):
    """Hold the frames at T times and how fast they move."""

    pixels: Tensor  # (T * f, 3, S, S) uint8
    motion: Tensor | None  # (T, H, W) float32, pixels per frame at the size S
    from_codec: Tensor | None  # (T,) bool: motion from the codec's vectors; False: from the difference of two frames
    substituted: Tensor  # (T,) frames that damage has reached, for which the nearest clean one stands in


def read_frames(
    path: Path | str,
    times: Sequence[float],
    *,
    size: int,
    frames_per_step: int = 1,
    squash: bool = False,
    motion_grid: tuple[int, int] | None = None,
) -> VideoFrames:
    """Read the frames on screen at the given times as upright squares, and how fast their parts move.

    The frame at time t is the last one with a time stamp not after t, counted from the first frame; up to 1.5 s after
    the end it is the last frame. Frames are scaled by area averaging. Damage that the decoder notices reaches all
    frames up to the next clean key frame, and what is read at a time does not depend on the other times.

    Motion comes from the codec's vectors (see `VectorMotion`). Codecs that have none (all but H.264, MPEG-4, MPEG-2),
    and steps without P-frames around them, take the difference between the frame and the next one of the file (see
    `difference_motion`); if one of the two is damaged, nothing moves.

    Args:
        path: The video file.
        times: Seconds from the first frame, not negative, in any order; repeats are fine.
        size: S, the side of the frames that come back, in pixels.
        frames_per_step: f, how many consecutive frames of the file to read from each time on. The last frame of the
            file stands in for those after the end.
        squash: Scale both sides to S; otherwise the shortest one, and cut out the centre.
        motion_grid: H and W of the tokens for which to measure motion; None to leave it out, which is cheaper.

    Raises:
        VideoError: The file cannot be opened, has no video stream or no frame that can be decoded.
        TooShortError: It ends more than 1.5 s before one of the times.
    """
    if not times or min(times) < 0:
        raise ValueError(f"{path}: expected one or more times that are not negative, got {list(times)[:3]}")
    table = packet_table(path)
    if max(times) > table.length + _LATE:
        raise TooShortError(
            f"{path}: expected a frame at {max(times):.2f} s, but the file ends at {table.length:.2f} s"
        )
    first = table.rows(times)  # (T,)
    last = np.minimum(first + frames_per_step - 1, len(table.pts) - 1)
    places: dict[int, list[int]] = {}
    for place, row in enumerate(np.minimum(first[:, None] + np.arange(frames_per_step), last[:, None]).flat):
        places.setdefault(int(row), []).append(place)
    before = np.minimum(first, max(len(table.pts) - 2, 0))
    pairs = np.stack([before, np.minimum(before + 1, len(table.pts) - 1)], 1)  # (T, 2), whose difference is the motion
    vectors: VectorMotion | None = None
    if motion_grid and table.codec in _HAS_VECTORS:
        vectors = VectorMotion(first, last, motion_grid, size=size, squash=squash)
    partners = set(pairs.flat) if motion_grid and not vectors else set()

    pixels = np.empty((len(times) * frames_per_step, 3, size, size), np.uint8)  # torch would start threads for copies
    kept: dict[int, NDArray[np.uint8]] = {}
    exact: dict[int, bool] = {}
    surveys: dict[int, Survey] = {}
    for row, square, found in _read_squares(
        path, table, places.keys() | partners, surveys, size=size, squash=squash, vectors=vectors
    ):
        exact[row] = found
        if row in places:
            pixels[places[row]] = square
        if row in partners:
            kept[row] = square
    substituted = torch.zeros(len(times), dtype=torch.int64)
    for place in (place for row in places if not exact[row] for place in places[row]):
        substituted[place // frames_per_step] += 1
    if motion_grid is None:
        return VideoFrames(torch.from_numpy(pixels), None, None, substituted)

    motion = vectors.speed() if vectors else np.full((len(times), *motion_grid), np.nan, np.float32)
    if vectors and surveys and motion_grid:
        spans = [(np.searchsorted(table.keys, table.pts[rows], "right") - 1).clip(min=0) for rows in (first, last)]
        groups = np.stack(spans, 1)  # (T, 2): the groups of pictures at which each step begins and ends
        for begin, end in np.unique(groups, axis=0).tolist():
            span = range(begin, end + 1)
            if not surveys.keys().isdisjoint(span):
                steps = (groups == (begin, end)).all(1)
                again = VectorMotion(first[steps], last[steps], motion_grid, size=size, squash=squash)
                show_clean(path, table, span, surveys, again)
                motion[steps] = again.speed()
    absent = np.isnan(motion).any((1, 2))
    if vectors:
        exact = {}
        for row, square, found in _read_squares(
            path, table, set(pairs[absent].flat), surveys, size=size, squash=squash
        ):
            kept[row], exact[row] = square, found
    for step in np.flatnonzero(absent):
        pair = [kept[row] for row in pairs[step] if exact[row]]
        motion[step] = difference_motion(pair[0], pair[1], motion_grid) if len(pair) == 2 else 0
    return VideoFrames(torch.from_numpy(pixels), torch.from_numpy(motion), torch.from_numpy(~absent), substituted)


def _read_squares(
    path: Path | str,
    table: PacketTable,
    rows: Collection[int],
    surveys: dict[int, Survey],
    *,
    size: int,
    squash: bool,
    vectors: VectorMotion | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
    """Yield frames by number as upright squares (3, S, S), and whether each is that frame or a stand-in.

    If a frame comes twice, the second counts.
    """
    reformatter = VideoReformatter()
    stamps = {int(table.pts[row]): row for row in sorted(rows)}
    for pts, frame, exact in decode_wanted(path, table, list(stamps), surveys, vectors):
        turns = round(frame.rotation / 90)  # the container's rotation, counter-clockwise
        view = View.of(frame.height, frame.width, size=size, squash=squash, turns=turns)
        scaled = reformatter.reformat(
            frame, view.scaled[1], view.scaled[0], "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        yield stamps[pts], view.cut(scaled.to_ndarray()).transpose(2, 0, 1), exact

"""Read the frames of a video at given times, as squares with the speed of their parts or in their own shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtm.video.damage import Survey
from vtm.video.decoding import TooShortError, VideoError, decode_frames, open_video
from vtm.video.gop import decode_wanted, show_clean
from vtm.video.motion import MotionSource, VectorMotion, difference_motion
from vtm.video.packets import PacketTable
from vtm.video.scanning import packet_table
from vtm.video.view import Scaler, View, whole_shape

# Seconds after the end at which a frame may still be requested, because annotations round lengths to whole seconds.
_LATE = 1.5

# Number of frames that show whether the frames of a video are marked as interlaced.
_FIRST_FRAMES = 8

# Decoders that export the motion vectors of P-frames.
_HAS_VECTORS = frozenset({"h264", "mpeg2video", "mpeg4"})


class VideoFrames(NamedTuple):
    """Frames at T times and the motion in them."""

    pixels: Tensor  # (T * f, 3, S, S) uint8
    motion: Tensor | None  # (T, H, W) float32, pixels per frame at size S
    from_codec: Tensor | None  # (T,) bool, True if the motion is from motion vectors, False if from frame differences
    substituted: Tensor  # (T,) int64, number of damaged frames that the nearest clean frame replaces


class WholeFrames(NamedTuple):
    """N frames of a video in their own shape."""

    pixels: Tensor  # (N, 3, H, W) uint8
    times: list[float]  # time stamps in seconds from the first frame of the file, ascending
    substituted: int  # number of damaged frames that the nearest clean frame replaces


def read_frames(
    path: Path | str,
    times: Sequence[float],
    *,
    size: int,
    frames_per_step: int = 1,
    squash: bool = False,
    crop: float = 0.5,
    motion_grid: tuple[int, int] | None = None,
    motion_source: MotionSource = "codec",
) -> VideoFrames:
    """Read the frames on screen at the given times as upright squares, and optionally the speed of their parts.

    The frame at time t is the last one with a time stamp not after t, or the last frame up to 1.5 s after the end.
    Frames are scaled by area averaging, to square pixels, and interlaced frames like all others. Damage that the
    decoder reports affects all frames up to the next clean key frame; the nearest clean frame replaces them. The frame
    at a time does not depend on the other requested times.

    Motion comes from the codec's motion vectors (see `VectorMotion`). For codecs without vectors (all but H.264,
    MPEG-4 and MPEG-2) and for steps without P-frames near them, it is the difference between the frame and the next
    one of the file (see `difference_motion`), or zero if one of the two is damaged.

    Args:
        path: video file.
        times: T times in seconds from the first frame, not negative, in any order, possibly repeated.
        size: S, side of the returned frames in pixels.
        frames_per_step: f, number of consecutive frames of the file to read from each time on. After the end, the last
            frame is repeated.
        squash: scale both sides to S; otherwise scale the shortest side to S and crop a square.
        crop: where the square lies along the longer side of the upright frame, from 0, the left or top, to 1; motion is
            that of the center, 0.5.
        motion_grid: H and W of the tokens for which to measure motion; None to skip it, which is faster.
        motion_source: "difference" takes the difference of frames for all codecs and steps.

    Raises:
        VideoError: if the file cannot be opened, has no video stream or no frame can be decoded.
        TooShortError: if the file ends more than 1.5 s before one of the times.
        ValueError: if there are no times, or one is negative.
    """
    table, first = _find(path, times)
    last = np.minimum(first + frames_per_step - 1, len(table.pts) - 1)
    indices: dict[int, list[int]] = {}  # frame of the file to its indices in `pixels`
    for index, row in enumerate(np.minimum(first[:, None] + np.arange(frames_per_step), last[:, None]).flat):
        indices.setdefault(int(row), []).append(index)
    before = np.minimum(first, max(len(table.pts) - 2, 0))
    pairs = np.stack([before, np.minimum(before + 1, len(table.pts) - 1)], 1)  # (T, 2), frames for `difference_motion`
    vectors: VectorMotion | None = None
    if motion_grid and motion_source == "codec" and table.codec in _HAS_VECTORS:
        vectors = VectorMotion(first, last, motion_grid, size=size, squash=squash)
    partners = set(pairs.flat) if motion_grid and not vectors else set()

    pixels = np.empty((len(times) * frames_per_step, 3, size, size), np.uint8)  # torch would start threads for copies
    kept: dict[int, NDArray[np.uint8]] = {}
    exact: dict[int, bool] = {}
    surveys: dict[int, Survey] = {}
    for row, square, is_exact in _read_squares(
        path, table, indices.keys() | partners, surveys, size=size, squash=squash, crop=crop, vectors=vectors
    ):
        exact[row] = is_exact
        if row in indices:
            pixels[indices[row]] = square
        if row in partners:
            kept[row] = square
    substituted = torch.zeros(len(times), dtype=torch.int64)
    for index in (index for row in indices if not exact[row] for index in indices[row]):
        substituted[index // frames_per_step] += 1
    if motion_grid is None:
        return VideoFrames(torch.from_numpy(pixels), None, None, substituted)

    motion = vectors.speed() if vectors else np.full((len(times), *motion_grid), np.nan, np.float32)
    if vectors and surveys and motion_grid:
        spans = [(np.searchsorted(table.keys, table.pts[rows], "right") - 1).clip(min=0) for rows in (first, last)]
        groups = np.stack(spans, 1)  # (T, 2), the first and last group of pictures of each step
        for begin, end in np.unique(groups, axis=0).tolist():
            span = range(begin, end + 1)
            if not surveys.keys().isdisjoint(span):
                steps = (groups == (begin, end)).all(1)
                clean = VectorMotion(first[steps], last[steps], motion_grid, size=size, squash=squash)
                show_clean(path, table, span, surveys, clean)
                motion[steps] = clean.speed()
    absent = np.isnan(motion).any((1, 2))
    if vectors:
        exact = {}
        for row, square, is_exact in _read_squares(
            path, table, set(pairs[absent].flat), surveys, size=size, squash=squash
        ):
            kept[row], exact[row] = square, is_exact
    for step in np.flatnonzero(absent):
        pair = [kept[row] for row in pairs[step] if exact[row]]
        motion[step] = difference_motion(pair[0], pair[1], motion_grid) if len(pair) == 2 else 0
    return VideoFrames(torch.from_numpy(pixels), torch.from_numpy(motion), torch.from_numpy(~absent), substituted)


def read_whole_frames(path: Path | str, times: Sequence[float], *, shortest_side: int | None = None) -> WholeFrames:
    """Read the frames on screen at the given times as upright pictures of square pixels, each frame once.

    The frames are those of `read_frames`, and damage and interlaced frames are treated alike. If the size changes
    within the file, all frames are scaled to the size of the first of them.

    Args:
        path: video file.
        times: times in seconds from the first frame, not negative, in any order, possibly repeated.
        shortest_side: pixels to which a longer shortest side is scaled down by area averaging; None to keep the size.

    Raises:
        VideoError: if the file cannot be opened, has no video stream or no frame can be decoded.
        TooShortError: if the file ends more than 1.5 s before one of the times.
        ValueError: if there are no times, or one is negative.
    """
    table, found = _find(path, times)
    stamps = [int(table.pts[row]) for row in np.unique(found)]
    scaler, shape, exact = Scaler(), None, dict[int, bool]()
    pixels = np.empty((0, 3, 0, 0), np.uint8)
    for pts, frame, aspect, is_exact in decode_wanted(path, table, stamps, {}, None):
        turns = round(frame.rotation / 90)  # rotation of the container, counter-clockwise
        if shape is None:
            shape = whole_shape(
                frame.height, frame.width, shortest_side=shortest_side, turns=turns, pixel_aspect=aspect
            )
            pixels = np.empty((len(stamps), 3, *shape), np.uint8)
        pixels[stamps.index(pts)] = scaler.whole(frame, shape, turns=turns)
        exact[pts] = is_exact
    seconds = [float((pts - int(table.pts[0])) * table.tick) for pts in stamps]
    return WholeFrames(torch.from_numpy(pixels), seconds, sum(not is_exact for is_exact in exact.values()))


def has_plain_pixels(path: Path | str) -> bool:
    """Return whether a video has square pixels and frames that are not marked as interlaced, going by its first frames.

    Without `PIXEL_RULE`, only such videos were read as they are now. A file that cannot be read counts as such.
    """
    with suppress(VideoError), open_video(path) as (container, stream):
        for _, frame, _, aspect in islice(decode_frames(container, stream), _FIRST_FRAMES):
            if aspect != 1 or (frame is not None and frame.interlaced_frame):
                return False
    return True


def _find(path: Path | str, times: Sequence[float]) -> tuple[PacketTable, NDArray[np.int64]]:
    """Return the packet table of a file, and the indices of the frames on screen at the times.

    Raises:
        VideoError: if the file cannot be opened or has no video frames.
        TooShortError: if the file ends more than 1.5 s before one of the times.
        ValueError: if there are no times, or one is negative.
    """
    if not times or min(times) < 0:
        raise ValueError(f"{path}: expected one or more times that are not negative, got {list(times)[:3]}")
    table = packet_table(path)
    if max(times) > table.length + _LATE:
        raise TooShortError(
            f"{path}: expected a frame at {max(times):.2f} s, but the file ends at {table.length:.2f} s"
        )
    return table, table.rows(times)


def _read_squares(
    path: Path | str,
    table: PacketTable,
    rows: Collection[int],
    surveys: dict[int, Survey],
    *,
    size: int,
    squash: bool,
    crop: float = 0.5,
    vectors: VectorMotion | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8], bool]]:
    """Yield the index of each frame, its upright square (3, S, S), and False if a replacement is yielded instead.

    If a frame is yielded twice, the second one counts.
    """
    scaler = Scaler()
    stamps = {int(table.pts[row]): row for row in sorted(rows)}
    for pts, frame, aspect, exact in decode_wanted(path, table, list(stamps), surveys, vectors):
        turns = round(frame.rotation / 90)  # rotation of the container, counter-clockwise
        view = View.of(frame.height, frame.width, size=size, squash=squash, turns=turns, pixel_aspect=aspect, crop=crop)
        yield stamps[pts], scaler.square(frame, view), exact

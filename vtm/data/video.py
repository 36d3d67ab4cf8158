"""Read the frames of a video that are on screen at given times, measure its duration, write a video.

The only file that imports PyAV. What it knows of a file comes from one pass over the packets: headers lie about the
duration of damaged and live-recorded files, and a frame rate says nothing about variable rates.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from vtm.data.motion import VectorMotion, View, difference_motion
from vtm.data.packets import PacketTable, in_order

# Annotations give lengths in whole seconds: how long after the end a frame may be asked for.
_LATE = 1.5

# Decoders that leave out exactly the pictures no other picture needs. libdav1d (AV1) drops delayed ones as well.
_SKIPS_EXACTLY = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp9"})

# Containers whose seeks go by the time of decoding: to land before a key frame, aim at the one before.
_SEEKS_LATE = frozenset({"mpeg", "mpegts"})

# Decoders that tell the motion vectors of P-frames.
_HAS_VECTORS = frozenset({"h264", "mpeg2video", "mpeg4"})


class VideoError(Exception):
    """Say that a file is not a video from which the wanted frames can be read, and which file it is."""


class TooShortError(VideoError):
    """Say that a video ends before a time at which it is to be read."""


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
    table = _packet_table(path)
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
                _show_clean(path, table, span, surveys, again)
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


def duration(path: Path | str) -> float:
    """Measure how long a video is on screen, in seconds, from its packets.

    Raises:
        VideoError: As for `read_frames`.
    """
    return _packet_table(path).length


def write_video(
    path: Path | str,
    frames: Iterable[NDArray[np.uint8]],
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
) -> None:
    """Write frames as a video file that appears under its name only when it is complete.

    Args:
        path: Where to write; the suffix chooses the container.
        frames: Pictures (H, W, 3) in RGB, all of one size, H and W even. Read one at a time.
        fps: Frames per second.
        codec: FFmpeg's name of the encoder.
        options: The encoder's options, such as `{"crf": "23", "g": "16"}`.

    Raises:
        ValueError: There is no frame, or a frame is not (H, W, 3) uint8 with even sides.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    pictures = iter(frames)
    head = next(pictures, None)
    if head is None or head.ndim != 3 or head.shape[0] % 2 or head.shape[1] % 2:
        found = None if head is None else head.shape
        raise ValueError(f"{path}: expected one or more frames (H, W, 3) with even H and W, got {found}")
    try:
        with av.open(str(partial), "w") as container:
            rate = Fraction(fps).limit_denominator(1001)
            same_bytes = {"x264-params": "mbtree=0"} if codec == "libx264" else {}  # with AVX-512 its mbtree varies
            stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=same_bytes | dict(options or {})))
            stream.height, stream.width = head.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # libx264 gives other bytes with another number of threads
            for picture in chain((head,), pictures):
                expected, found = ((*head.shape[:2], 3), np.dtype(np.uint8)), (picture.shape, picture.dtype)
                if expected != found:
                    raise ValueError(f"{path}: expected all frames to be {expected}, got {found}")
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _open(path: Path | str, vectors: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream for decoding; every failure of FFmpeg inside becomes a VideoError."""
    try:
        with av.open(str(path)) as container:
            try:
                stream = container.streams.best("video")  # which is never a cover picture
            except IndexError:  # PyAV did not take over all streams of a damaged header
                stream = None
            if not isinstance(stream, VideoStream):
                raise VideoError(f"{path}: has no video stream")
            if getattr(stream, "codec_context", None) is None:
                raise VideoError(f"{path}: FFmpeg has no decoder for its video stream; encode it as H.264")
            stream.thread_type = "NONE"  # frame threads can hang on an early stop; workers are the parallelism
            stream.thread_count = 1
            if vectors:
                stream.codec_context.options = {"flags2": "+export_mvs"}
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video ({error}); fetch or encode it again") from error


def _packet_table(path: Path | str) -> PacketTable:
    """Take the table of a file from memory, unless the file has changed."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: cannot be read as a video ({error}); fetch or encode it again") from error
    return _read_packet_table(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)  # windows of one video are read one after the other
def _read_packet_table(path: str, size: int, changed_ns: int) -> PacketTable:
    with _open(path) as (container, stream):
        packets = [  # without their content, which is the whole file
            (packet.pts, packet.is_keyframe, packet.duration or 0)
            for packet in _packets(container, stream)
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
    with _open(path) as (container, stream):
        frames = _frames(container, stream, stamps=range(count))
        shown = [pts for pts, frame, _ in frames if frame is not None and pts is not None]
    for number in sorted({*range(count)}.difference(shown)):  # cannot be decoded: keeps its place, as others theirs
        shown.insert(next((place for place, other in enumerate(shown) if other > number), len(shown)), number)
    return shown


def _packets(
    container: InputContainer, stream: VideoStream, stamps: Sequence[int] | None = None
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets up to where the file ends or breaks off.

    Args:
        stamps: Time stamps to give to the packets, counted from the beginning of the file.
    """
    number = 0
    with suppress(av.error.InvalidDataError):  # but not errors of the disk or the network
        for packet in container.demux(stream):
            if stamps is not None and packet.size:
                packet.pts = stamps[number]
                number += 1
            yield packet


class Decoded(NamedTuple):
    """Hold what came of a packet."""

    pts: int | None
    frame: VideoFrame | None  # None: it could not be decoded
    place: int  # of the packet in the order of decoding

    @property
    def bad(self) -> bool:
        """Tell whether the packet could not be decoded, or only in part."""
        return self.frame is None or self.frame.is_corrupt


class Survey(NamedTuple):
    """Say which frames come out when a group of pictures is decoded completely."""

    start: int  # the number of the key frame from which to decode
    clean: set[int]  # time stamps of the frames that no damage has reached
    damaged: set[int]  # those of the others


def _frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    stamps: Sequence[int] | None = None,
    key: int | None = None,
    until: int | None = None,
    wanted: Collection[int] | None = None,
) -> Iterator[Decoded]:
    """Decode in order of display, going on after damaged packets.

    Args:
        stamps: As for `_packets`.
        key: Begin at the key frame with this time stamp; yield nothing if the container stands behind it. None begins
            with the next packet.
        until: End before the first packet with a later time stamp; None ends with the file.
        wanted: The time stamps of the frames that matter; others are left out where that is cheap. None: all.
    """
    context = stream.codec_context
    skips = context.name in _SKIPS_EXACTLY
    places: dict[int | None, int] = {}
    for place, packet in enumerate(_packets(container, stream, stamps)):
        if key is not None:
            if packet.pts is not None and packet.pts > key:
                return
            if packet.pts != key:
                continue
            key = None
        if until is not None and packet.pts is not None and packet.pts > until:
            break
        if wanted is not None and skips:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        places[packet.pts] = place
        try:
            for frame in packet.decode():
                yield Decoded(frame.pts, frame, places.get(frame.pts, place))
        except av.error.FFmpegError:
            yield Decoded(packet.pts, None, place)
    for frame in _drain(stream):
        yield Decoded(frame.pts, frame, places.get(frame.pts, max(places.values(), default=0)))


def _drain(stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames that the decoder holds back until their turn."""
    with suppress(av.error.FFmpegError):
        yield from stream.codec_context.decode(None)


def _decode(
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
        with _open(path, vectors is not None) as (container, stream):
            sound = True
            while groups and sound:  # damage may stay in a decoder, which is not used again
                number, group = groups.popleft()
                sound = yield from _decode_group(container, stream, table, number, group, vectors)
                left += () if sound else group
    sources: dict[int, dict[int, list[int]]] = {}
    for want in left:
        number, nearest = _nearest(path, table, want, surveys)
        sources.setdefault(number, {}).setdefault(nearest, []).append(want)
    for number, chosen in sources.items():
        for pts, frame, _ in _decode_from(path, table, surveys[number].start, number):
            if frame is not None and pts in chosen:
                for want in chosen.pop(pts):
                    yield want, frame, want == pts and pts in surveys[number].clean


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
            aim = number - (container.format.name in _SEEKS_LATE)
            container.seek(int(table.keys[aim]), stream=stream)
    except av.error.FFmpegError:
        return False
    if vectors:
        vectors.restart()
    for one in _frames(container, stream, stamps=table.stamps, key=key if number else None, wanted=group):
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
    spoilt = [frame for frame in _drain(stream) if frame.is_corrupt and (frame.pts is None or frame.pts >= key)]
    return not left and not spoilt


def _decode_from(
    path: Path | str,
    table: PacketTable,
    start: int,
    number: int,
    *,
    wanted: Collection[int] | None = None,
    vectors: bool = False,
) -> Iterator[Decoded]:
    """Decode afresh from the key frame with the number `start` to the end of the group `number`."""
    until = int(table.keys[number + 1]) if number + 1 < len(table.keys) else None
    with _open(path, vectors) as (container, stream):
        if start:
            aim = start - (container.format.name in _SEEKS_LATE)
            try:
                container.seek(int(table.keys[aim]), stream=stream)
            except av.error.FFmpegError:
                return
        key = int(table.keys[start]) if start else None
        yield from _frames(container, stream, stamps=table.stamps, key=key, until=until, wanted=wanted)


def _survey(path: Path | str, table: PacketTable, number: int) -> Survey:
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
        for one in _decode_from(path, table, start, number, wanted=()):
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
    for one in _decode_from(path, table, start, number):
        pts, frame, place = one
        if frame is not None and pts is not None:
            entry = max((begin for stamp, begin in fresh if stamp <= pts), default=0)
            hurt = one.bad or any(entry <= other <= place for other in spoilt)
            (survey.damaged if hurt else survey.clean).add(pts)
    return survey


def _nearest(path: Path | str, table: PacketTable, want: int, surveys: dict[int, Survey]) -> tuple[int, int]:
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
                surveys[number] = _survey(path, table, number)
            found = surveys[number].clean if clean else surveys[number].damaged
            inside = [(abs(pts - want), -pts, number) for pts in found if begins[number] <= pts <= ends[number]]
            best = min([*inside, *([best] if best else [])], default=None)
        if best:
            return best[2], -best[1]
    raise VideoError(f"{path}: no frame can be decoded; fetch or encode it again")


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


def _show_clean(
    path: Path | str, table: PacketTable, numbers: Iterable[int], surveys: dict[int, Survey], vectors: VectorMotion
) -> None:
    """Show the clean frames of some groups to `vectors`."""
    for number in numbers:
        if number not in surveys:
            surveys[number] = _survey(path, table, number)
        vectors.restart()
        for pts, frame, _ in _decode_from(path, table, surveys[number].start, number, vectors=True):
            if frame is not None and pts in surveys[number].clean:
                _show(pts, frame, table, vectors)


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
    for pts, frame, exact in _decode(path, table, list(stamps), surveys, vectors):
        turns = round(frame.rotation / 90)  # the container's rotation, counter-clockwise
        view = View.of(frame.height, frame.width, size=size, squash=squash, turns=turns)
        scaled = reformatter.reformat(
            frame, view.scaled[1], view.scaled[0], "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        yield stamps[pts], view.cut(scaled.to_ndarray()).transpose(2, 0, 1), exact

"""Find the parts of joined recordings, in each of which the clock starts again, and put them on one clock."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vtm.video.packets import in_order

# Period of the clock of MPEG transport and program streams.
_PERIOD = 1 << 33

# Number of packets on each side with which the clock of a packet is compared, to ignore single damaged time stamps.
_NEAR = 3

# Number of frames by which the clock of a packet differs from its neighbors if it is damaged.
_FAR = 8


class Timeline(NamedTuple):
    """Time stamps of N packets on one clock, in file order."""

    pts: NDArray[np.int64]  # (N,)
    plausible: NDArray[np.bool_]  # (N,) False for damaged time stamps
    parts: int  # number of joined recordings
    end: int | None  # end of the last frame; None for a single recording


def unwrap(pts: NDArray[np.int64], dts: NDArray[np.int64], jump: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Continue the time stamps of an MPEG stream where its clock of 33 bits starts again from 0.

    Args:
        pts: presentation time stamps in file order (N,).
        dts: decoding time stamps (N,).
        jump: largest gap in ticks at such a place.

    >>> last = (1 << 33) - 1
    >>> [(stamps - last).tolist() for stamps in unwrap(np.array([last, 2, 1]), np.array([last - 1, last, 0]), 9)]
    [[0, 3, 2], [-1, 0, 1]]
    """
    clock = dts + _PERIOD * np.concatenate([[0], np.cumsum(_wraps(np.diff(dts), jump))])
    delays = pts - dts
    return clock + delays + _PERIOD * _wraps(delays, jump), clock


def _wraps(steps: NDArray[np.int64], jump: int) -> NDArray[np.int64]:
    """Return 1 for differences of about minus a period, -1 for those of about a period, and 0 for others."""
    wraps: NDArray[np.int64] = np.where(abs(abs(steps) - _PERIOD) <= jump, -np.sign(steps), 0)
    return wraps


def arrange(
    pts: NDArray[np.int64], clock: NDArray[np.int64], key: NDArray[np.bool_], *, jump: int, gaps: bool
) -> Timeline:
    """Put the parts of a joined recording on one clock, one after another, and find the damaged time stamps.

    The frames of a later part before its first key frame count as damaged, because they cannot be decoded.

    Args:
        pts: presentation time stamps in file order (N,).
        clock: time stamps that ascend within a part (N,).
        key: whether decoding can start at each packet (N,).
        jump: gap in ticks that is long for a recording.
        gaps: keep long gaps, which the camera may have paused for; otherwise they start another part.
    """
    numbers = part_numbers(clock, jump=jump, gaps=gaps)
    if numbers is None:
        return Timeline(pts, _plausible(pts, jump), 1, None)
    parts = int(numbers[-1]) + 1
    moved, plausible = pts.copy(), np.zeros(len(pts), np.bool_)
    begin: int | None = None
    bounds = np.searchsorted(numbers, np.arange(parts + 1)).tolist()
    for first, last in pairwise(bounds):
        stamps, delays = pts[first:last].copy(), pts[first:last] - clock[first:last]
        sound = _plausible(stamps, jump) & (abs(delays - np.median(delays)) <= jump)
        opens = np.flatnonzero(sound & key[first:last])
        if begin is not None and len(opens):
            sound &= stamps >= stamps[opens[0]]
            sound[: opens[0]] = False
        if not sound.any():
            continue
        shown = np.unique(stamps[sound])
        step = int(np.median(np.diff(shown))) if len(shown) > 1 else 1
        if last < len(pts):  # FFmpeg assumes that the last P-frame of a part is shown when the next part starts
            final = ~sound & (stamps == clock[last])
            stamps[final], sound[final] = shown[-1] + step, np.count_nonzero(final) == 1
        moved[first:last] = stamps + (0 if begin is None else begin - shown[0])
        plausible[first:last] = sound
        begin = int(moved[first:last][sound].max()) + step
    return Timeline(moved, plausible, parts, begin)


def _plausible(pts: NDArray[np.int64], jump: int) -> NDArray[np.bool_]:
    """Return which time stamps of a recording are near their position in the file and near their neighbors."""
    plausible = in_order(pts)
    steps = abs(np.diff(pts))
    if len(pts) > 2 * _NEAR and steps.max() > jump:
        away = abs(pts - _nearby(pts)) > max(jump, 2 * _FAR * int(np.median(steps)))
        plausible[_NEAR:-_NEAR] &= ~away[_NEAR:-_NEAR]  # the first and last frames may be shown for long
    return plausible


def part_numbers(clock: NDArray[np.int64], *, jump: int, gaps: bool) -> NDArray[np.int64] | None:
    """Number the parts of a joined recording from 0; return the number of each packet (N,), or None for one part.

    A part starts where the clock goes back, unless only a few time stamps are damaged. A jump ahead also starts one if
    `gaps` is False, or if the clock later comes back to where it was. See `arrange` for the arguments.

    >>> part_numbers(np.array([*range(5), 900, *range(6, 10), *range(6)]), jump=100, gaps=True).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    """
    steps = np.diff(clock)
    if len(steps) < 2 * _NEAR or (steps.min() > 0 and (gaps or steps.max() <= jump)):
        return None
    step = int(np.median(steps[steps > 0])) if (steps > 0).any() else 1
    jump = max(jump, 10 * step)
    (sound,) = np.nonzero(abs(clock - _nearby(clock)) <= _FAR * step)
    if 2 * len(sound) < len(clock):
        return None
    times = clock[sound]
    steps = np.diff(times)
    back, ahead = steps < -1.5 * step, steps > jump
    if gaps:
        returns = times[1:][back]
        for index in np.flatnonzero(ahead).tolist():
            later = returns[np.count_nonzero(back[:index]) :]
            ahead[index] = ((later > times[index]) & (later <= times[index] + jump)).any()
    counted = np.concatenate([[0], np.cumsum(back | ahead)])
    if not counted[-1]:
        return None
    numbers: NDArray[np.int64] = counted[np.searchsorted(sound, np.arange(len(clock)), "right").clip(min=1) - 1]
    return numbers


def running_clock(pts: NDArray[np.int64], key: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the latest presentation time in each group of pictures so far, for packets without decoding times.

    >>> running_clock(np.array([0, 3, 1, 2, 4, 6, 5, 0, 2, 1]), np.arange(10) % 4 == 0).tolist()
    [0, 3, 3, 3, 4, 6, 6, 6, 2, 2]
    """
    latest = np.maximum.accumulate(pts)
    (starts,) = np.nonzero(key)
    if len(pts) <= _NEAR or (pts[starts] == latest[starts]).all():
        return latest
    step = max(int(np.median(abs(np.diff(pts)))), 1)
    nearby = _nearby(pts)
    clock = np.where(abs(pts - nearby) <= _FAR * step, pts, nearby)
    for first, last in pairwise([0, *starts.tolist(), len(pts)]):
        np.maximum.accumulate(clock[first:last], out=clock[first:last])
    return clock


def _nearby(clock: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the median of each time stamp and its neighbors."""
    windows = sliding_window_view(np.pad(clock, _NEAR, mode="reflect"), 2 * _NEAR + 1)
    return np.partition(windows, _NEAR, 1)[:, _NEAR]

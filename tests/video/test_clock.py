"""Joined recordings, in each part of which the clock starts again, are read completely and in the order of the file."""

import warnings

import numpy as np
import pytest
import torch

from tests.video.files import join, packets, remux, retime
from vtm.video.clock import arrange
from vtm.video.reading import read_frames
from vtm.video.scanning import duration, packet_table
from vtm.video.writing import write_video

WRAP = (1 << 33) / 90_000  # seconds until the clock of a transport or program stream starts again
MPEG2 = {"codec": "mpeg2video", "g": "12", "bf": "2"}


@pytest.fixture
def write_part(stamps, tmp_path):
    """Write the pictures from one number to another as a recording whose clock starts at a time."""

    def write_part(name, first, last, *, start=0.0, fps=20, codec="libx264", **options):
        source = tmp_path / f"source.{'mkv' if codec == 'mpeg2video' else 'mp4'}"
        options = options or {"g": "24", "bf": "2"}
        write_video(
            source, (stamps.picture(number) for number in range(first, last)), fps=fps, codec=codec, options=options
        )
        path = tmp_path / name
        small = {"packetsize": "128"} if path.suffix == ".mpg" else {}  # FFmpeg guesses times if frames share a packet
        remux(source, str(path), options={"output_ts_offset": str(start)} | small)
        return path

    return write_part


def check(stamps, path, count, times=None):
    """Check that a video shows the pictures 0 .. count - 1, whether read together or one by one, and with motion."""
    times = times or [(number + 0.3) / 20 for number in range(count)]
    together = read_frames(path, times, size=stamps.size, motion_grid=(3, 3))
    assert stamps.read(together.pixels) == list(range(count))
    assert together.substituted.sum() == 0
    for number in range(3, count, 9):
        alone = read_frames(path, times[number : number + 1], size=stamps.size, motion_grid=(3, 3))
        assert torch.equal(alone.pixels[0], together.pixels[number])
        assert torch.equal(alone.motion[0], together.motion[number])


JOINED = {
    "two.ts": [(0, 40, {}), (40, 80, {})],
    "four.ts": [(30 * part, 30 * part + 30, {}) for part in range(4)],
    "one_second.ts": [(0, 20, {}), (20, 90, {}), (90, 110, {})],
    "without_b_frames.ts": [(0, 40, {"g": "24", "bf": "0"}), (40, 80, {"g": "24", "bf": "0"})],
    "all_intra.ts": [(0, 30, {"g": "1"}), (30, 60, {"g": "1"})],
    "mpeg2.ts": [(0, 40, MPEG2), (40, 80, MPEG2)],
    "cells.vob": [(0, 40, MPEG2), (40, 80, MPEG2), (80, 100, MPEG2)],
    "hours_ahead.ts": [(0, 40, {}), (40, 80, {"start": 7200})],
    "hours_ahead.mpg": [(0, 40, MPEG2), (40, 80, MPEG2 | {"start": 7200})],
    "hours_back.ts": [(0, 40, {"start": 36_000}), (40, 80, {})],
    "wraps_in_a_part.ts": [(0, 40, {"start": 5}), (40, 100, {"start": WRAP - 1.5})],
    "wraps_in_both.ts": [(0, 40, {"start": WRAP - 1}), (40, 100, {"start": WRAP - 1})],
    "segments.mkv": [(0, 40, {}), (40, 80, {})],
}


@pytest.mark.parametrize("name", JOINED)
def test_all_parts_of_a_joined_recording_are_read(stamps, write_part, tmp_path, name):
    suffix = name.partition(".")[2]
    parts = [
        write_part(f"part{number}.{suffix}", first, last, **options)
        for number, (first, last, options) in enumerate(JOINED[name])
    ]
    path = join(tmp_path / name, *parts)
    count = JOINED[name][-1][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert duration(path) == pytest.approx(count / 20, abs=0.01)
        check(stamps, path, count)


@pytest.mark.parametrize(("name", "options"), [("late.ts", {}), ("late.mpg", MPEG2)])
def test_a_clock_that_wraps_is_one_recording(stamps, write_part, name, options):
    path = write_part(name, 0, 100, start=WRAP - 2, **options)
    assert duration(path) == pytest.approx(5, abs=0.01)
    check(stamps, path, 100)


def test_parts_keep_their_frame_rates(stamps, write_part, tmp_path):
    rates = [20, 10, 40]
    parts = [write_part(f"{fps}.ts", 30 * part, 30 * part + 30, fps=fps) for part, fps in enumerate(rates)]
    path = join(tmp_path / "rates.ts", *parts)
    starts = np.cumsum([0.0, *(30 / fps for fps in rates)])
    times = [
        float(start) + (number + 0.3) / fps for start, fps in zip(starts, rates, strict=False) for number in range(30)
    ]
    assert duration(path) == pytest.approx(starts[-1], abs=0.01)
    check(stamps, path, 90, times)


def test_a_damaged_time_stamp_in_a_joined_recording_costs_one_frame(stamps, write_part, tmp_path):
    parts = [write_part(f"{part}.ts", 40 * part, 40 * part + 40, g="20", bf="0") for part in range(2)]
    content = bytearray(parts[1].read_bytes())
    position, _ = packets(parts[1])[30]
    content[content.index(b"\0\0\1\xe0", position) + 9] ^= 0x04  # adds or removes a quarter of the period
    parts[1].write_bytes(content)
    path = join(tmp_path / "joined.ts", *parts)
    assert duration(path) == pytest.approx(4, abs=0.01)
    frames = read_frames(path, [(number + 0.3) / 20 for number in range(80)], size=stamps.size)
    assert stamps.read(frames.pixels) == [*range(70), 69, *range(71, 80)]


@pytest.mark.parametrize("name", ["gap.mkv", "gap.mp4", "gap.flv"])
def test_a_pause_of_the_camera_is_kept(stamps, tmp_path, name):
    whole = stamps.write(tmp_path / "whole.mp4", 80, fps=20, g="20", bf="0")
    ticks = packet_table(whole).tick.denominator
    pause = lambda index, pts, dts: (pts + 3600 * ticks * (index >= 40), dts + 3600 * ticks * (index >= 40))  # noqa: E731
    path = retime(whole, tmp_path / name, pause)
    assert duration(path) == pytest.approx(3604, abs=0.1)
    frames = read_frames(path, [1.0, 1.96, 1800.0, 3602.01, 3603.96], size=stamps.size)
    assert stamps.read(frames.pixels) == [20, 39, 39, 40, 79]


def test_many_damaged_time_stamps_are_reported_with_their_number(stamps, write_part):
    path = write_part("damaged.ts", 0, 200, g="20", bf="0")
    content = bytearray(path.read_bytes())
    for position, _ in packets(path)[20:180:20]:
        content[content.index(b"\0\0\1\xe0", position) + 9] ^= 0x04
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"damaged\.ts: 8 of 200 frames are left out because their time stamps"):
        assert duration(path) == pytest.approx(10, abs=0.01)


def test_a_part_is_read_from_its_first_key_frame(stamps, write_part, tmp_path):
    first, second = (
        write_part(f"{part}.ts", 40 * part, 40 * part + 40, g="20", bf="2", sc_threshold="0") for part in range(2)
    )
    content = second.read_bytes()
    position = packets(second)[8][0]
    (tmp_path / "cut.ts").write_bytes(content[position:])
    path = join(tmp_path / "joined.ts", first, tmp_path / "cut.ts")
    with pytest.warns(UserWarning, match=r"joined\.ts: \d+ of \d+ frames are left out .* start with a key frame"):
        assert duration(path) == pytest.approx(3, abs=0.01)
    frames = read_frames(path, [(number + 0.3) / 20 for number in range(60)], size=stamps.size)
    assert stamps.read(frames.pixels) == [*range(40), *range(60, 80)]


@pytest.mark.parametrize("name", ["second_stream.ts", "second_header.flv"])
def test_a_part_that_cannot_be_read_is_reported(write_part, tmp_path, name):
    parts = []
    for number in range(2):
        source = write_part(f"{number}.mp4", 0, 80, g="1", crf="0")
        options = {"mpegts_start_pid": str(256 + 16 * number)} if name.endswith(".ts") else {}
        parts.append(tmp_path / f"{number}.{name}")
        remux(source, str(parts[-1]), options=options)
    path = join(tmp_path / name, *parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert duration(parts[0]) == pytest.approx(4, abs=0.01)
    with pytest.warns(UserWarning, match=rf"{name}: the video ends after (49|50)% of the file"):
        assert duration(path) == pytest.approx(4, abs=0.01)


def test_a_few_damaged_time_stamps_do_not_start_another_part():
    steps = np.arange(0, 3000, 10)
    for wrong in (90_000, -90_000, 1700, 1300, 25):
        pts = steps.copy()
        pts[[100, 150, 151]] += wrong
        for gaps in (True, False):
            timeline = arrange(pts, pts, pts % 250 == 0, jump=1000, gaps=gaps)
            assert timeline.parts == 1


def test_an_excursion_of_the_clock_is_a_part_of_its_own():
    clock = np.concatenate([np.arange(100), np.arange(50_000, 50_050), np.arange(150, 300)])
    for gaps in (True, False):
        timeline = arrange(clock, clock, np.ones(300, np.bool_), jump=1000, gaps=gaps)
        assert timeline.parts == 3
        assert timeline.pts.tolist() == list(range(300))
    alone = np.concatenate([np.arange(100), np.arange(50_000, 50_050)])
    assert arrange(alone, alone, np.ones(150, np.bool_), jump=1000, gaps=True).pts.tolist() == alone.tolist()
    assert arrange(alone, alone, np.ones(150, np.bool_), jump=1000, gaps=False).pts.tolist() == list(range(150))

"""Damaged frames are counted and replaced by the nearest clean frame."""

import numpy as np
import pytest
import torch

from tests.video.files import flip, moving, packets, spoil
from vtm.video.decoding import VideoError
from vtm.video.reading import read_frames
from vtm.video.scanning import duration


@pytest.mark.parametrize("make", [bytes, np.random.default_rng(0).bytes], ids=["zeroed", "noise"])
def test_the_nearest_frame_stands_in_for_a_damaged_one(stamps, tmp_path, make):
    whole = stamps.write(tmp_path / "whole.mp4", 60, g="1")
    spoil(whole, tmp_path / "damaged.mp4", [7, 30, 31, 32, 33, 59], make)
    frames = read_frames(tmp_path / "damaged.mp4", [number / 10 for number in range(60)], size=stamps.size)
    found = stamps.read(frames.pixels)
    assert frames.substituted.nonzero().flatten().tolist() == [7, 30, 31, 32, 33, 59]
    assert frames.substituted.sum() == 6
    assert found[7] in (6, 8)
    assert found[30:34] == [29, 29, 34, 34]
    assert found[59] == 58
    assert [found[number] for number in range(60) if number not in (7, 30, 31, 32, 33, 59)] == [
        number for number in range(60) if number not in (7, 30, 31, 32, 33, 59)
    ]
    few = read_frames(tmp_path / "damaged.mp4", [3.2, 0.2, 3.3, 5.9], size=stamps.size, frames_per_step=2)
    assert stamps.read(few.pixels) == [34, 34, 2, 3, 34, 34, 58, 58]
    assert few.substituted.tolist() == [2, 0, 1, 2]


def test_a_group_without_its_key_frame_never_shows_another_time(stamps, tmp_path):
    whole = stamps.write(tmp_path / "whole.mp4", 72, fps=24, g="24", bf="2", sc_threshold="0")
    spoil(whole, tmp_path / "damaged.mp4", range(24, 48))
    frames = read_frames(tmp_path / "damaged.mp4", [number / 24 for number in range(72)], size=stamps.size)
    found = stamps.read(frames.pixels)
    assert found[:24] == list(range(24))
    assert found[48:] == list(range(48, 72))
    assert frames.substituted.tolist() == [0] * 24 + [1] * 24 + [0] * 24
    assert set(found[24:48]) == {23, 48}


def test_the_nearest_frame_may_be_several_groups_away(stamps, tmp_path):
    options = {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=0:scenecut=0"}
    whole = stamps.write(tmp_path / "whole.mp4", 96, fps=12, codec="libx265", **options)
    spoil(whole, tmp_path / "damaged.mp4", range(12, 72))
    for wanted, nearest in (([40], [11]), ([44], [72]), ([14, 40, 44, 70], [11, 11, 72, 72])):
        frames = read_frames(tmp_path / "damaged.mp4", [number / 12 for number in wanted], size=stamps.size)
        assert stamps.read(frames.pixels) == nearest


def test_a_file_in_which_no_frame_can_be_decoded_is_an_error(stamps, tmp_path):
    whole = stamps.write(tmp_path / "whole.mp4", 30, g="10")
    spoil(whole, tmp_path / "noise.mp4", range(30))
    assert duration(tmp_path / "noise.mp4") == pytest.approx(3.0)
    with pytest.raises(VideoError, match=r"noise\.mp4: no frame can be decoded"):
        read_frames(tmp_path / "noise.mp4", [0.0, 2.0], size=16)


@pytest.mark.parametrize("make", [bytes, np.random.default_rng(0).bytes], ids=["zeroed", "noise"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"g": "60", "bf": "0", "sc_threshold": "0"}),
        ("a.mp4", "libx265", {"x265-params": "log-level=none:keyint=60:min-keyint=60:bframes=0:scenecut=0"}),
        ("a.mp4", "mpeg4", {"g": "60", "bf": "0", "sc_threshold": "1000000000"}),
    ],
    ids=["h264", "hevc", "mpeg4"],
)
def test_damage_counts_up_to_the_next_key_frame(tmp_path, name, codec, options, make):
    whole = moving(tmp_path / name, 120, codec=codec, **options)
    times = [number / 10 for number in range(120)]
    sound = read_frames(whole, times, size=32).pixels
    spoil(whole, tmp_path / "damaged.mp4", [10], make)
    frames = read_frames(tmp_path / "damaged.mp4", times, size=32)
    assert frames.substituted.tolist() == [0] * 10 + [1] * 50 + [0] * 60
    nearest = [*range(10), *[9] * 25, *[60] * 25, *range(60, 120)]
    assert torch.equal(frames.pixels, sound[nearest])


def test_most_frames_spoilt_by_flipped_bits_are_counted(tmp_path):
    times = [number / 25 for number in range(120)]
    wrong = counted = 0
    for seed in range(8):
        path = moving(tmp_path / "a.mp4", 120, codec="libx264", fps=25, g="60")
        sound = read_frames(path, times, size=32).pixels.float()
        flip(path, seed, 3)
        frames = read_frames(path, times, size=32)
        differs = (frames.pixels.float() - sound).abs().mean((1, 2, 3)) > 10
        wrong += int(differs.sum())
        counted += int((differs & (frames.substituted > 0)).sum())
    assert wrong > 200
    assert counted > 0.8 * wrong


def test_damaged_frames_are_shown_and_counted_if_there_are_no_others(tmp_path):
    whole = moving(tmp_path / "whole.mp4", 30, codec="libx264", g="30", bf="0", sc_threshold="0")
    position, size = packets(whole)[0]
    content = bytearray(whole.read_bytes())
    content[position + 3 * size // 4 : position + size] = bytes(size - 3 * size // 4)
    whole.write_bytes(content)
    frames = read_frames(whole, [number / 10 for number in range(30)], size=32)
    assert frames.substituted.tolist() == [1] * 30
    assert frames.pixels.float().std() > 30

"""The frames of a group of pictures do not depend on what else is read, even in damaged files."""

import pytest
import torch

from tests.video.files import flip, moving, packets, spoil
from vtm.video.reading import read_frames


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"g": "1"}), ("libx265", {"x265-params": "log-level=none:keyint=1"})]
)
def test_a_damaged_frame_does_not_move(stamps, tmp_path, codec, options):
    whole = stamps.write(tmp_path / "whole.mp4", 20, codec=codec, **options)
    spoil(whole, tmp_path / "damaged.mp4", [7])
    times = [number / 10 for number in (3, 6, 7, 8)]
    motion = read_frames(tmp_path / "damaged.mp4", times, size=stamps.size, motion_grid=(3, 3)).motion
    assert (motion.amax((1, 2)) > 0.1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("name", ["flipped.mp4", "flipped.mkv", "flipped.ts", "flipped.avi"])
def test_flipped_bytes_cost_frames_but_not_the_file(stamps, tmp_path, name):
    path = stamps.write(tmp_path / name, 100, fps=25, g="1")
    content = bytearray(path.read_bytes())
    for position, length in packets(path)[40:60:4]:
        for byte in range(position + length // 2, position + length - 4, 5):
            content[byte] ^= 255
    path.write_bytes(content)
    frames = read_frames(path, [number / 25 for number in (*range(40), *range(57, 100))], size=stamps.size)
    assert (stamps.read(frames.pixels), frames.substituted.sum()) == ([*range(40), *range(57, 100)], 0)
    assert read_frames(path, [number / 25 for number in range(100)], size=16).pixels.shape[0] == 100


FRAGILE = [
    ("a.mp4", "libx264", {"g": "20", "bf": "2"}),
    ("a.mkv", "libx264", {"g": "20", "x264-params": "open-gop=1:bframes=3"}),
    ("a.ts", "libx264", {"g": "60", "bf": "2"}),
    ("a.avi", "mpeg4", {"g": "20", "bf": "2"}),
    ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    ("refreshed.mp4", "libx264", {"g": "20", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0"}),
    ("without_times.avi", "libx264", {"g": "20", "bf": "2"}),
    ("a.webm", "libvpx-vp9", {"g": "20", "cpu-used": "8"}),
]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "codec", "options"), FRAGILE)
def test_frames_of_a_damaged_file_do_not_depend_on_the_others(tmp_path, name, codec, options, seed):
    path = moving(tmp_path / name, codec=codec, fps=25, **options)
    flip(path, seed)
    times = [number / 25 for number in range(0, 56, 5)]
    together = read_frames(path, times, size=32, motion_grid=(2, 2))
    for step in (1, 4):
        parts = [
            read_frames(path, times[start : start + step], size=32, motion_grid=(2, 2))
            for start in range(0, len(times), step)
        ]
        for part, expected in zip(zip(*parts, strict=True), together, strict=True):
            assert torch.equal(torch.cat(part), expected)

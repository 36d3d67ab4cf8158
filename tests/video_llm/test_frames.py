"""The frames of a clip are those at the centers of equal parts, with their true times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtm.video.decoding import VideoError
from vtm.video.writing import write_video
from vtm.video_llm.frames import SHORTEST_SIDE, read_clip


def numbers(frames: torch.Tensor, stamps) -> list[int]:
    return stamps.read(frames[..., 8:56])  # the stamps are read in the center crop


def test_frames_are_at_the_centers_of_equal_parts(stamps, tmp_path):
    clip = read_clip(stamps.write(tmp_path / "a.mp4", 100, fps=10), 5)
    assert clip.frames.shape == (5, 3, 48, 64)
    assert clip.frames.dtype == torch.uint8
    assert numbers(clip.frames, stamps) == [10, 30, 50, 70, 90]
    assert clip.times == pytest.approx([1.0, 3.0, 5.0, 7.0, 9.0])
    assert (clip.path.name, clip.seconds, clip.substituted) == ("a.mp4", pytest.approx(10.0), 0)


def test_times_are_those_of_the_frames(stamps, tmp_path):
    clip = read_clip(stamps.write(tmp_path / "a.mp4", 4, fps=1), 3)  # centers at 0.67, 2 and 3.33 s
    assert clip.times == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_short_video_has_each_frame_once(stamps, tmp_path, count):
    clip = read_clip(stamps.write(tmp_path / "a.mp4", count, fps=10), 8)
    assert numbers(clip.frames, stamps) == list(range(count))
    assert clip.times == pytest.approx([number / 10 for number in range(count)])


def test_identical_frames_are_two(tmp_path):
    write_video(tmp_path / "same.mp4", [np.full((32, 32, 3), 99, np.uint8)] * 2, fps=2)
    clip = read_clip(tmp_path / "same.mp4", 32)
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert clip.times == [0.0, 0.5]


def test_hours_are_read_by_seeking_and_large_frames_are_scaled_down(tmp_path):
    picture = np.zeros((810, 1440, 3), np.uint8)
    pictures = (picture + np.uint8(20 * number) for number in range(12))
    write_video(tmp_path / "long.mp4", pictures, fps=1 / 1000, options={"preset": "ultrafast", "g": "1"})
    clip = read_clip(tmp_path / "long.mp4", 4)
    assert clip.seconds == pytest.approx(12_000)  # more than three hours
    assert clip.frames.shape == (4, 3, SHORTEST_SIDE, 1280)
    assert clip.times == pytest.approx([1000.0, 4000.0, 7000.0, 10_000.0])
    assert clip.frames.float().mean((1, 2, 3)).tolist() == pytest.approx([20, 80, 140, 200], abs=3)


def test_mistakes(tmp_path, stamps):
    with pytest.raises(ValueError, match="expected at least 1 frame, got 0"):
        read_clip(stamps.write(tmp_path / "a.mp4", 3), 0)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be read as a video"):
        read_clip(tmp_path / "text.mp4", 4)

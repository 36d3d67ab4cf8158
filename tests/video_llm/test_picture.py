"""A clip is drawn as the model sees it: cropped where the processor crops, one picture for each frame of tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.video_llm.tiny import FAMILIES, build, video
from vtm.compressors import dyto
from vtm.video_llm.answering import generate_answer
from vtm.video_llm.frames import VideoClip
from vtm.video_llm.loading import VideoLLM
from vtm.video_llm.picture import draw_compression, seen_frames

TIMES = [0.5, 1.5, 2.5, 4.5, 5.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families_are_drawn(family, tmp_path):
    tiny = build(family)
    llm = VideoLLM(family, tiny.model, tiny.processor)
    clip = VideoClip(Path("a\n.mp4"), video(5), TIMES, 6.0)
    answer = generate_answer(llm, clip, "Why?", partial(dyto, budget=2.0), max_new_tokens=1)
    draw_compression(tmp_path / "a.png", llm, clip, answer.compression, lines=["Question: Why?"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] == 1920


def test_pictures_are_the_first_of_their_frames_at_the_mean_time():
    clip = VideoClip(Path("a.mp4"), video(5), TIMES, 6.0)
    frames, times = seen_frames(build("qwen3_vl").processor, clip, 3)
    assert torch.equal(frames, clip.frames[[0, 2, 4]])
    assert times == [1.0, 3.5, 5.0]


def test_a_cropped_center_is_what_the_model_sees():
    clip = VideoClip(Path("a.mp4"), video(5, height=32, width=64), TIMES, 6.0)
    frames, times = seen_frames(build("llava_next_video").processor, clip, 5)
    assert torch.equal(frames, clip.frames[..., 16:48])
    assert times == TIMES
    frames, _ = seen_frames(build("llava_onevision").processor, clip, 5)
    assert torch.equal(frames, clip.frames)

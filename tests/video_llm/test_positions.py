"""Positions of the tokens that are left, text between the frames, and features for deeper layers."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from tests.video_llm.tiny import Tiny, build, video
from vtm.compressors import Clip, Compressed, dyntok, tome
from vtm.compressors.clip import compressed
from vtm.video_llm import compress, compress_videos

TEXT = "user\nV What happens in it?"
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
STAMPED = ["qwen3_vl", "internvl", "smolvlm"]  # families with text between the frames


def keep_frames(kept: list[int], *, tokens: int | None = None) -> Any:
    """Keep the first tokens of some frames, all of them by default."""

    def compressor(clip: Clip) -> Compressed:
        token = torch.arange(clip.num_tokens).view(len(clip.tokens), -1)[kept, :tokens].flatten()
        index = torch.full((clip.num_tokens,), -1)
        index[token] = torch.arange(len(token))
        return compressed(clip, index, token)

    return compressor


def shuffled(clip: Clip) -> Compressed:
    """Keep some tokens of each frame, not in raster order."""
    per_frame = clip.num_tokens // len(clip.tokens)
    token = (torch.arange(len(clip.tokens))[:, None] * per_frame + torch.tensor([5, 2, 9])).flatten()
    index = torch.full((clip.num_tokens,), -1)
    index[token] = torch.arange(len(token))
    return compressed(clip, index, token)


def full_positions(tiny: Tiny, inputs: dict[str, Any]) -> torch.Tensor:
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    arguments = {name: inputs[name] for name in names if name in inputs}
    return tiny.model.model.get_rope_index(**arguments)[0]


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("compressor", [partial(dyntok, threshold=0.9), partial(tome, budget=20), shuffled])
def test_tokens_have_the_positions_of_their_anchors_and_text_its_own(family, compressor):
    tiny = build(family)
    inputs = tiny.inputs(TEXT, [video(8)], fps=1.0)
    done = compress_videos(tiny.model, inputs, compressor)
    (after,) = done.compressed
    full, position = full_positions(tiny, inputs)[:, 0], done.inputs["position_ids"]
    ids, short = inputs["input_ids"][0], done.inputs["input_ids"][0]
    token = tiny.model.config.video_token_id
    grid = full[:, ids == token].view(3, *done.clips[0].grid)
    t, y, x = after.position.unbind(1)
    assert position.shape == (4, 1, len(short))
    assert position[0, 0].equal(torch.arange(len(short)))
    assert position[1:, 0, short == token].equal(grid[:, t, y, x])
    assert position[1:, 0, short != token].equal(full[:, ids != token])


@pytest.mark.parametrize("family", QWEN)
def test_positions_of_a_padded_batch(family):
    tiny = build(family)
    texts, films = [TEXT, "Watch this film. Watch this film. V Why?"], [video(8), video(4, seed=1)]
    inputs = tiny.inputs(texts, films)
    budgets = iter([30, 9])
    both = compress(tiny.model, inputs, lambda clip: tome(clip, budget=next(budgets), per="clip"))
    mask = both["attention_mask"].bool()
    assert not mask.all()
    assert (both["position_ids"][:, ~mask] == 0).all()
    for row, count in enumerate(mask.sum(1).tolist()):
        assert both["position_ids"][0, row, mask[row]].equal(torch.arange(count))


def test_qwen2_5_counts_the_seconds_between_frames():
    tiny = build("qwen2_5_vl")
    slow, fast = (
        compress(tiny.model, tiny.inputs(TEXT, [video(8)], fps=fps), keep_frames([0, 1])) for fps in (0.5, 2.0)
    )
    video_columns = slow["input_ids"][0] == tiny.model.config.video_token_id
    assert slow["position_ids"][1, 0, video_columns].unique().diff().tolist() == [16]  # 4 positions a second
    assert fast["position_ids"][1, 0, video_columns].unique().diff().tolist() == [4]


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video", "internvl", "smolvlm"])
def test_one_dimensional_positions_are_consecutive(family):
    tiny = build(family)
    inputs = tiny.inputs(TEXT, [video(4)])
    assert "position_ids" not in compress(tiny.model, inputs, keep_frames([0, 2]))
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None]
    short = compress(tiny.model, inputs, keep_frames([0, 2]))
    assert short["position_ids"].equal(torch.arange(short["input_ids"].shape[1])[None])


@pytest.mark.parametrize("family", QWEN)
def test_positions_of_the_caller_are_taken(family):
    tiny = build(family)
    inputs = tiny.inputs(TEXT, [video(4)])
    given = full_positions(tiny, inputs) + 7
    expected = compress(tiny.model, inputs, shuffled)["position_ids"][1:] + 7
    assert compress(tiny.model, {**inputs, "position_ids": given}, shuffled)["position_ids"][1:].equal(expected)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_deepstack_features_are_reduced_like_the_tokens(reduce):
    tiny = build("qwen3_vl")
    inputs = tiny.inputs("V then V Why?", [video(8), video(4, seed=1)])
    with torch.no_grad():
        full = tiny.model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    done = compress_videos(tiny.model, inputs, partial(dyntok, threshold=0.8, reduce=reduce))
    features = done.inputs["mm_encoder_outputs"]["video"].deepstack_features
    assert len(features) == len(full.deepstack_features) == 2
    for short, long in zip(features, full.deepstack_features, strict=True):
        for video_short, video_long, clip, after in zip(short, long, done.clips, done.compressed, strict=True):
            assert len(video_short) == len(after.tokens) < len(video_long)
            assert video_short.equal(after.apply(video_long.view(*clip.grid, -1)))


def test_qwen3_keeps_true_times_if_the_processor_does_not_sample():
    tiny = build("qwen3_vl")
    inputs = tiny.inputs(TEXT, [video(8)], frames=[[0, 10, 20, 30, 100, 110, 200, 210]], fps=10.0)
    done = compress_videos(tiny.model, inputs, keep_frames([0, 2, 3], tokens=3))
    assert done.clips[0].grid == (4, 4, 4)
    text = tiny.processor.tokenizer.decode(done.inputs["input_ids"][0])
    assert re.findall(r"<([\d.]+) seconds>", text) == ["0.5", "10.5", "20.5"]


def expected_ids(tiny: Tiny, film: Any, frames: list[int], kept: list[int]) -> list[int]:
    """Return the ids for the kept frames alone, with their true times and numbers."""
    if tiny.family == "qwen3_vl":
        chosen = [2 * step + i for step in kept for i in range(2)]
        inputs = tiny.inputs(TEXT, [film[chosen]], frames=[[frames[i] for i in chosen]])
        return inputs["input_ids"][0].tolist()
    if tiny.family == "internvl":
        one = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"
        return tiny.ids(TEXT.replace("V", "\n".join(f"Frame{i + 1}: {one}" for i in kept) + "\n"))
    text = tiny.processor.tokenizer.decode(tiny.inputs(TEXT, [film], frames=[frames])["input_ids"][0])
    parts = re.split(r"(?=\nFrame from )", text)  # the introduction counts all frames, since they were sampled
    last, rest = parts[-1].split("<fake>\n\n")
    parts[-1] = last + "<fake>"
    return tiny.ids("".join([parts[0], *(parts[1 + i] for i in kept)]) + "\n\n" + rest)


@pytest.mark.parametrize("family", STAMPED)
@pytest.mark.parametrize("kept", [[1], [0], [3], [0, 3], [1, 2], [2, 3], [0, 1, 2], [0, 2, 3]])
def test_frames_without_tokens_lose_their_text_and_the_others_keep_theirs(family, kept):
    tiny = build(family)
    film, frames = video(4 * tiny.frames_per_step), [17, 18, 20, 30, 95, 96, 2000, 2001][: 4 * tiny.frames_per_step]
    inputs = tiny.inputs(TEXT, [film], frames=[frames])
    done = compress_videos(tiny.model, inputs, keep_frames(kept))
    assert done.inputs["input_ids"][0].tolist() == expected_ids(tiny, film, frames, kept)
    gone = inputs["input_ids"].shape[1] - done.inputs["input_ids"].shape[1]
    assert done.text_ids == gone - (done.tokens_before - done.tokens_after) > 0


@pytest.mark.parametrize("kept", [[1], [3], [0, 2]])
def test_text_that_is_joined_with_the_number_of_the_first_frame(kept):
    """After a space, `Frame` is another id than after a line break."""
    tiny = build("internvl")
    text = "Watch this: V Why?"
    inputs = tiny.inputs(text, [video(4)])
    assert tiny.ids(" Frame")[0] != tiny.ids("Frame")[0]
    one = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"
    expected = text.replace("V", "\n".join(f"Frame{i + 1}: {one}" for i in kept) + "\n")
    short = compress(tiny.model, inputs, keep_frames(kept))["input_ids"]
    assert short[0].tolist() == tiny.ids(expected)


def test_text_of_the_first_frame_that_is_not_found_raises():
    tiny = build("internvl")
    inputs = tiny.inputs("V Why?", [video(4)])
    first = int((inputs["input_ids"][0] == tiny.processor.image_token_id).nonzero()[0])
    inputs["input_ids"][0, first - 5 : first - 1] = tiny.ids("a")[0]
    videos = [(0, 0, 4)]
    assert compress(tiny.model, inputs, keep_frames([0, 2]), videos=videos)
    with pytest.raises(ValueError, match="first frame of a video has no tokens left"):
        compress(tiny.model, inputs, keep_frames([1, 2]), videos=videos)


@pytest.mark.parametrize("family", STAMPED)
def test_text_between_the_frames_stays_between_them(family):
    tiny = build(family)
    inputs = tiny.inputs(TEXT, [video(4 * tiny.frames_per_step)])
    done = compress_videos(tiny.model, inputs, keep_frames([0, 1, 2, 3], tokens=2))
    assert done.text_ids == 0

    def between(ids: torch.Tensor) -> str:
        text = tiny.processor.tokenizer.decode(ids[0])
        return re.sub(r"(<video>|<image>|<IMG_CONTEXT>)+", "*", text)

    assert between(done.inputs["input_ids"]) == between(inputs["input_ids"])
    assert between(inputs["input_ids"]).count("*") == 4


@pytest.mark.parametrize("family", STAMPED)
def test_more_frames_than_ten_have_longer_numbers(family):
    tiny = build(family)
    count = 12
    film, frames = video(count * tiny.frames_per_step), [70 * i for i in range(count * tiny.frames_per_step)]
    kept = [1, 8, 9, 11]
    done = compress_videos(tiny.model, tiny.inputs(TEXT, [film], frames=[frames]), keep_frames(kept))
    assert done.inputs["input_ids"][0].tolist() == expected_ids(tiny, film, frames, kept)


@pytest.mark.parametrize("family", STAMPED)
def test_the_text_of_the_second_of_two_videos(family):
    tiny = build(family)
    films = [video(2 * tiny.frames_per_step, seed=seed) for seed in (0, 1)]
    videos = None if family == "qwen3_vl" else [(0, 0, 2), (0, 2, 2)]
    inputs = tiny.inputs("V then V Why?", films)
    done = compress_videos(tiny.model, inputs, keep_frames([1]), videos=videos)
    text = tiny.processor.tokenizer.decode(done.inputs["input_ids"][0])
    text = re.sub(r"(<video>|<image>|<IMG_CONTEXT>)+", "*", text)
    assert " then " in text
    assert text.count("*") == 2
    stamps = {"qwen3_vl": r"<1\.2 seconds>", "internvl": "Frame2: ", "smolvlm": "Frame from 00:00:"}
    assert len(re.findall(stamps[family], text)) == 2
    assert len(re.findall(r" seconds>|Frame\d|Frame from", text)) == 2


@pytest.mark.parametrize("family", QWEN[:2])
def test_frames_without_tokens_have_no_text_in_other_families(family):
    tiny = build(family)
    done = compress_videos(tiny.model, tiny.inputs(TEXT, [video(8)]), keep_frames([3]))
    assert done.text_ids == 0
    assert tiny.processor.tokenizer.decode(done.inputs["input_ids"][0]).count("<|vision_start|>") == 1

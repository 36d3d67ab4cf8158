"""Mistakes end in one sentence before the model generates anything."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, Tiny, build, image, video
from vtm.compressors import Clip, Compressed, dyto, keep_all, tome
from vtm.compressors.clip import compressed
from vtm.video_llm import FAMILIES as SUPPORTED
from vtm.video_llm import compress

some = partial(tome, budget=20, per="clip")


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return build(request.param)


def clip_of(tokens: list[int]) -> Any:
    def compressor(clip: Clip) -> Compressed:
        kept = torch.tensor(tokens, dtype=torch.long)
        index = torch.full((clip.num_tokens,), -1)
        index[kept] = torch.arange(len(kept))
        return compressed(clip, index, kept)

    return compressor


def test_all_families_of_the_tests_are_supported():
    assert set(SUPPORTED) == set(FAMILIES)


@pytest.mark.parametrize("name", ["llava_next", "video_llama_3"])
def test_an_unsupported_family_raises_with_the_list(name):
    model = SimpleNamespace(config=SimpleNamespace(model_type=name))
    with pytest.raises(ValueError, match=rf"llava_onevision, .*smolvlm, got {name}"):
        compress(model, {}, keep_all)


def test_a_module_without_a_config_raises():
    with pytest.raises(ValueError, match="got Linear"):
        compress(torch.nn.Linear(1, 1), {}, keep_all)


def test_a_version_of_transformers_that_takes_no_encoded_videos_raises():
    class Old:
        config = SimpleNamespace(model_type="qwen2_vl")

        def forward(self, input_ids: Any) -> None: ...

    with pytest.raises(ValueError, match=r"install transformers 5\.24"):
        compress(Old(), {"input_ids": torch.zeros(1, 1), "pixel_values_videos": torch.zeros(1)}, keep_all)


def test_a_prompt_without_a_placeholder_raises(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    plain = {**inputs, "input_ids": torch.tensor([tiny.ids("Why?")])}
    with pytest.raises(ValueError, match="the prompt has no placeholder of a video"):
        compress(tiny.model, plain, some)


def test_inputs_without_a_video_raise(tiny):
    with pytest.raises(ValueError, match="the inputs hold no pixel_values"):
        compress(tiny.model, tiny.inputs("Why?"), some)
    with pytest.raises(ValueError, match="the inputs hold no input_ids"):
        compress(tiny.model, {"inputs_embeds": torch.zeros(1, 2, 32)}, some)


def test_a_placeholder_too_many_raises(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    token = inputs["input_ids"].mode().values
    inputs["input_ids"] = torch.cat([inputs["input_ids"], token[:, None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(ValueError, match=r"expected \d+ placeholders for .*, got "):
        compress(tiny.model, inputs, some)


def test_cls_of_an_encoder_without_it_raises(tiny):
    released = partial(
        dyto, budget=2.0, level="second_largest", few_clusters=6, few_frames=12, few_pick="first", max_frames=25,
        partition="halves", metric="head_mean", heads=16, reduce="max", order="score", descriptor="cls",
    )  # fmt: skip
    inputs = tiny.inputs("V Why?", [video(8)])
    if tiny.family in ("llava_next_video", "internvl"):
        assert compress(tiny.model, inputs, released)
    else:
        with pytest.raises(ValueError, match="CLS"):
            compress(tiny.model, inputs, released)


def test_a_context_that_is_too_short_raises_with_the_numbers(tiny):
    inputs = tiny.inputs("V Why?", [video(8)])
    short = compress(tiny.model, inputs, some)["input_ids"].shape[1]
    text, limit = tiny.model.config.get_text_config(), 2048
    try:
        text.max_position_embeddings = short
        assert compress(tiny.model, inputs, some)
        text.max_position_embeddings = short - 1
        with pytest.raises(ValueError, match=rf"{short} tokens are left, 2[01] of them visual, .* {short - 1}; "):
            compress(tiny.model, inputs, some)
    finally:
        text.max_position_embeddings = limit


def test_a_compressor_that_changed_nothing_says_so(tiny):
    inputs = tiny.inputs("V Why?", [video(8)])
    total = 64 if tiny.frames_per_step == 2 else 128
    with pytest.warns(UserWarning, match=f"0 of {total} tokens merged"):
        compress(tiny.model, inputs, keep_all)


@pytest.mark.filterwarnings("error")
def test_a_compressor_that_merged_tokens_says_nothing(tiny):
    compress(tiny.model, tiny.inputs("V Why?", [video(8)]), some)


def test_positions_that_are_not_those_of_distinct_tokens_raise(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    for tokens in ([], [3, 3]):
        with pytest.raises(ValueError, match=r"expected .*position"):
            compress(tiny.model, inputs, clip_of(tokens))


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "smolvlm"])
def test_tokens_out_of_the_order_of_the_frames_raise_where_text_is_between_them(family):
    tiny = build(family)
    with pytest.raises(ValueError, match="frame by frame"):
        compress(tiny.model, tiny.inputs("V Why?", [video(4)]), clip_of([20, 3]))


def test_tokens_in_any_order_are_fine_where_no_text_is_between_the_frames():
    tiny = build("llava_onevision")
    assert compress(tiny.model, tiny.inputs("V Why?", [video(4)]), clip_of([20, 3]))


def test_which_images_are_videos_must_be_said_where_a_row_holds_several():
    tiny = build("internvl")
    for text, films, images in (("V V Why?", 2, None), ("V Look. I Why?", 1, [image(size=32)])):
        inputs = tiny.inputs(text, [video(4, seed=i) for i in range(films)], images=images)
        with pytest.raises(ValueError, match="videos="):
            compress(tiny.model, inputs, some)


@pytest.mark.parametrize("videos", [[(0, 2, 3)], [(1, 0, 1)], [(0, 0, 0)], [(0, 0, 3), (0, 2, 2)], [(0, -1, 2)]])
def test_videos_that_do_not_exist_or_overlap_raise(videos):
    tiny = build("internvl")
    with pytest.raises(ValueError, match="without overlap among"):
        compress(tiny.model, tiny.inputs("V Why?", [video(4)]), some, videos=videos)


def test_videos_are_not_said_where_they_have_placeholders_of_their_own():
    tiny = build("qwen2_vl")
    with pytest.raises(ValueError, match="videos= is for models whose frames are images"):
        compress(tiny.model, tiny.inputs("V Why?", [video(4)]), some, videos=[(0, 0, 4)])

"""Answers equal what the models themselves would say, in all families; their costs are counted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, build, video
from vtm.compressors import dyntok, dyto, keep_all
from vtm.video_llm import compress
from vtm.video_llm.answering import choose_option, generate_answer
from vtm.video_llm.frames import VideoClip
from vtm.video_llm.loading import VideoLLM
from vtm.video_llm.prompts import encode_question, letter_ids, multiple_choice

pytestmark = pytest.mark.filterwarnings("ignore:0 of")
TIMES = [0.5, 1.25, 61.0, 62.5, 75.0, 80.25, 81.0, 88.0]
CLIP = VideoClip(Path("a.mp4"), video(8), TIMES, 90.0)
HALF = partial(dyntok, target_ratio=0.5)


@pytest.fixture(params=FAMILIES)
def llm(request) -> VideoLLM:
    tiny = build(request.param)
    return VideoLLM(request.param, tiny.model, tiny.processor)


def encode(llm: VideoLLM, question: str, *, clip: VideoClip = CLIP, prefill: str = "") -> dict:
    options = {"times": clip.times, "seconds": clip.seconds, "question": question, "prefill": prefill}
    return encode_question(llm.processor, clip.frames, **options)


def everything(llm: VideoLLM, inputs: dict) -> list | None:
    """Return which images are frames, for families that need it."""
    return [(0, 0, 8)] if llm.name in ("internvl", "smolvlm") else None


def test_the_identity_answers_like_the_model(llm):
    inputs = encode(llm, "Why?", prefill="The")
    with torch.no_grad():
        ids = llm.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    expected = llm.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answer = generate_answer(llm, CLIP, "Why?", keep_all, prefill="The", max_new_tokens=6)
    assert answer.text == expected.strip()
    assert answer.cost.context == inputs["input_ids"].shape[1]
    assert answer.cost.new_tokens == ids.shape[1] - inputs["input_ids"].shape[1]


def test_a_shorter_prompt_is_answered_like_compressed_inputs(llm):
    inputs = encode(llm, "Why?")
    shorter = compress(llm.model, inputs, HALF, videos=everything(llm, inputs))
    length = shorter["input_ids"].shape[1]
    with torch.no_grad():
        ids = llm.model.generate(**shorter, do_sample=False, num_beams=2, max_new_tokens=6)
    expected = llm.processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    answer = generate_answer(llm, CLIP, "Why?", HALF, max_new_tokens=6, num_beams=2)
    assert answer.text == expected.strip()
    cost = answer.cost
    assert cost.tokens_before == 8 // build(llm.name).frames_per_step * 16 > cost.tokens_after
    assert cost.tokens_after == sum(len(one.tokens) for one in answer.compression.compressed)
    assert cost.newlines == (llm.name == "llava_onevision")
    assert cost.context == length == cost.tokens_after + cost.newlines + cost.text
    assert cost.generation is not None
    phases = [cost.encoding, cost.prefill, cost.generation]
    assert all(phase.seconds > 0 and (phase.peak_bytes is None or phase.peak_bytes > 1e7) for phase in phases)


@pytest.mark.parametrize("prefill", ["", "("])
def test_the_option_is_the_letter_with_the_largest_logit(llm, prefill):
    options = ["a dog", "a cat", "<video>", "nothing"]
    inputs = encode(llm, multiple_choice("Who wins?", options), prefill=prefill)
    shorter = compress(llm.model, inputs, HALF, videos=everything(llm, inputs))
    with torch.no_grad():
        logits = llm.model(**shorter).logits[0, -1, letter_ids(llm.processor, 4, prefill=prefill)]
    choice = choose_option(llm, CLIP, "Who wins?", options, HALF, prefill=prefill)
    assert torch.allclose(choice.logits, logits, atol=1e-5)
    assert choice.index == int(logits.argmax())
    assert torch.allclose(choice.probabilities, logits.softmax(0), atol=1e-6)
    assert (choice.cost.new_tokens, choice.cost.generation) == (0, None)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_and_still_videos_are_answered(llm, frames):
    clip = VideoClip(Path("a.mp4"), video(1).expand(frames, -1, -1, -1), TIMES[:frames], 90.0)
    steps = -(-frames // build(llm.name).frames_per_step)
    for compressor in (HALF, partial(dyto, budget=1.0)):
        answer = generate_answer(llm, clip, "Why?", compressor, max_new_tokens=2)
        assert answer.compression.clips[0].grid[0] == steps
        assert choose_option(llm, clip, "Why?", ["a", "b"], compressor).index in (0, 1)


def test_half_precision_runs(llm):
    tiny = build(llm.name)
    try:
        tiny.model.bfloat16()
        assert choose_option(llm, CLIP, "Why?", ["a", "b"], HALF).logits.isfinite().all()
    finally:
        tiny.model.float()


def test_sampling_is_passed_through():
    tiny = build("qwen3_vl")
    llm = VideoLLM("qwen3_vl", tiny.model, tiny.processor)
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        answers.add(generate_answer(llm, CLIP, "Why?", HALF, max_new_tokens=8, do_sample=True).text)
    assert len(answers) > 1


def test_mistakes(llm):
    with pytest.raises(ValueError, match="expected 2 to 26 options, got 27"):
        choose_option(llm, CLIP, "Why?", ["a"] * 27, HALF)
    with pytest.raises(ValueError, match="tokens of the prompt and 3000 new ones do not fit into the context"):
        generate_answer(llm, CLIP, "Why?", HALF, max_new_tokens=3000)
    with pytest.raises(ValueError, match=r"tokens are left, .* but the context of the model holds 2048"):
        choose_option(llm, CLIP, "Why? " * 2000, ["a", "b"], HALF)

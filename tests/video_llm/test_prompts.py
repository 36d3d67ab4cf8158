"""Questions about videos: true times in all families, special tokens as text, letters of options."""

from __future__ import annotations

import re

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, Tiny, build, video
from vtm.compressors import keep_all
from vtm.video_llm import compress_videos
from vtm.video_llm.prompts import encode_question, letter_ids, multiple_choice

pytestmark = pytest.mark.filterwarnings("ignore:0 of")
TIMES = [0.5, 1.25, 61.0, 62.5, 75.0, 80.2]


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return build(request.param)


def encode(tiny: Tiny, question: str, **options) -> dict:
    return encode_question(tiny.processor, video(6), times=TIMES, seconds=90.0, question=question, **options)


def end(tiny: Tiny) -> str:
    """Return what follows a question; SmolVLM has a template of its own for videos."""
    return "<end_of_utterance>\nAssistant:" if tiny.family == "smolvlm" else "<eos>\nassistant\n"


def test_all_frames_are_taken_at_their_true_times(tiny):
    inputs = encode(tiny, "Why?")
    text = tiny.processor.tokenizer.decode(inputs["input_ids"][0])
    (clip,) = compress_videos(tiny.model, inputs, keep_all).clips
    assert len(clip.tokens) == 6 // tiny.frames_per_step
    if tiny.family == "qwen3_vl":
        assert re.findall(r"<([\d.]+) seconds>", text) == ["0.9", "61.8", "77.6"]
    if tiny.family == "smolvlm":
        assert re.findall(r"Frame from ([\d:]+):<", text) == ["00:00", "00:01", "01:01", "01:02", "01:15", "01:20"]
        assert "six frames from a 0:01:30 [H:MM:SS] video" in text
    if tiny.family == "qwen2_5_vl":
        assert inputs["second_per_grid_ts"][0] == pytest.approx(2 * (TIMES[-1] - TIMES[0]) / 5, rel=1e-3)


def test_special_tokens_in_a_question_are_text(tiny):
    plain = encode(tiny, "Why?")
    question = f"Is {tiny.video} or <|vision_end|> or <eos> seen?"
    inputs = encode(tiny, question)
    for token in ("<video>", "<image>", "<IMG_CONTEXT>", "<|vision_end|>", "<eos>"):
        id = tiny.processor.tokenizer.convert_tokens_to_ids(token)
        assert (inputs["input_ids"] == id).sum() == (plain["input_ids"] == id).sum()
    text = tiny.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith(question + end(tiny))
    with torch.no_grad():
        assert tiny.model(**inputs).logits.shape[1] == inputs["attention_mask"].shape[1]
    assert compress_videos(tiny.model, inputs, keep_all).inputs


def test_the_parts_of_a_prompt_are_encoded_as_one_text(tiny):
    inputs = encode(tiny, "Why?", prefill="(")
    text = tiny.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith("Why?" + end(tiny) + "(")
    assert inputs["input_ids"][0].tolist() == tiny.ids(text)


def test_letters_are_the_ids_that_follow_the_prompt(tiny):
    ids = letter_ids(tiny.processor, 4)
    assert tiny.processor.tokenizer.convert_ids_to_tokens(ids) == ["A", "B", "C", "D"]
    with pytest.raises(ValueError, match="expected the letter A to be one token behind"):
        letter_ids(tiny.processor, 4, prefill=" ")


def test_options_have_letters():
    assert multiple_choice("Who?", ["me", "you", "they"]) == "Who?\nA. me\nB. you\nC. they"


def test_mistakes_raise(tiny):
    with pytest.raises(ValueError, match="expected a time for each of 6 frames, got 2"):
        encode_question(tiny.processor, video(6), times=[0.0, 1.0], seconds=9.0, question="Why?")
    template, tiny.processor.chat_template = tiny.processor.chat_template, None
    try:
        with pytest.raises(ValueError, match="has no chat template"):
            encode(tiny, "Why?")
        for wrong in (
            "{{ messages[0].content[1].text }}",
            tiny.video,
            "{{ messages[0].content[1].text }}" + tiny.video,
            tiny.video + "{{ messages[0].content[1].text }}" * 2,
        ):
            tiny.processor.chat_template = wrong
            if tiny.family != "smolvlm":  # which has a template of its own for videos
                with pytest.raises(ValueError, match=f"a chat template that writes {tiny.processor.video_token} and"):
                    encode(tiny, "Why?")
        for broken in ("{{ raise_exception('no system') }}", "{% for part in %}", "{{ messages[0].content + '' }}"):
            tiny.processor.chat_template = broken
            if tiny.family != "smolvlm":
                with pytest.raises(ValueError, match="the chat template cannot be applied to a video and a question"):
                    encode(tiny, "Why?")
    finally:
        tiny.processor.chat_template = template

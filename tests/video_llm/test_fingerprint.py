import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.normalizers import Lowercase

from tests.video_llm.tiny import FAMILIES, build
from vtm.video_llm.fingerprint import hash_parts, weights_sha256
from vtm.video_llm.questions.question import Question

QUESTIONS = [Question("q", "v", Path("v"), "Why?", ("yes", "no"), 0)]


def parts(questions=QUESTIONS, *, prefill="", frames=8, compressor=None):
    tiny = build("qwen2_vl")
    return hash_parts(
        tiny.model,
        tiny.processor,
        questions,
        prefill=prefill,
        frames=frames,
        compressor=compressor or {"threshold": 0.6},
    )


def test_each_part_depends_on_its_own_settings():
    first = parts()
    assert first == parts()
    for changed, part in (
        (parts(prefill="("), "prompt"),
        (parts([replace(QUESTIONS[0], text="How?")]), "prompt"),
        (parts([replace(QUESTIONS[0], options=("no", "yes"))]), "prompt"),
        (parts([replace(QUESTIONS[0], video="w")]), "prompt"),
        (parts(frames=9), "frames"),
        (parts(compressor={"threshold": 0.5}), "compressor"),
    ):
        assert {name for name in first if first[name] != changed[name]} == {part}
    assert parts([replace(QUESTIONS[0], answer=1)]) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_configuration_and_processor_count_but_not_their_place(family, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tiny = build(family)
    digest = weights_sha256(tiny.model, tiny.processor)
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert weights_sha256(loaded, processor) == digest
    processor.chat_template += " "
    assert weights_sha256(loaded, processor) != digest
    processor.chat_template = tiny.processor.chat_template
    normalizer = processor.tokenizer.backend_tokenizer.normalizer
    processor.tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert weights_sha256(loaded, processor) != digest
    processor.tokenizer.backend_tokenizer.normalizer = normalizer
    processor.tokenizer(["a", "a b c"], padding=True)
    assert weights_sha256(loaded, processor) == digest
    changed = copy.deepcopy(loaded)
    largest = max(changed.parameters(), key=torch.Tensor.numel)
    with torch.no_grad():
        largest[-1] += 1
    assert weights_sha256(changed, processor) != digest
    assert weights_sha256(loaded.to(torch.bfloat16), processor) != digest

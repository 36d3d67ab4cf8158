"""Rows of a batch: as short as their tokens allow, padded on the left, labels cut alike."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, Tiny, build, video
from vtm.compressors import keep_all, tome
from vtm.video_llm import compress

pytestmark = pytest.mark.filterwarnings("ignore:0 of .* tokens merged")
some = partial(tome, budget=20, per="clip")


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return build(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_identity_in_a_padded_batch_changes_no_logit(tiny, side):
    tiny.processor.tokenizer.padding_side = side
    try:
        inputs = tiny.inputs(["V Why?", "Watch this film. V And here?"], [video(4), video(4, seed=1)])
    finally:
        tiny.processor.tokenizer.padding_side = "left"
    assert (inputs["attention_mask"] == 0).any()
    short = compress(tiny.model, inputs, keep_all)
    with torch.no_grad():
        assert tiny.model(**short).logits.equal(tiny.model(**inputs).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_as_short_as_their_tokens_allow_and_padded_on_the_left(tiny, side):
    tiny.processor.tokenizer.padding_side = side
    try:
        inputs = tiny.inputs(["V Why?", "Watch this film. V And here?"], [video(8), video(8, seed=1)])
    finally:
        tiny.processor.tokenizer.padding_side = "left"
    budgets = iter([30, 17])
    short = compress(tiny.model, inputs, lambda clip: tome(clip, budget=next(budgets), per="clip"))
    counts = short["attention_mask"].sum(1)
    assert short["attention_mask"].shape[1] == counts.max() > counts.min()
    assert (short["attention_mask"].diff() >= 0).all()
    padding = short["input_ids"][short["attention_mask"] == 0]
    assert (padding == tiny.processor.tokenizer.pad_token_id).all()


def test_labels_are_cut_like_the_ids(tiny):
    inputs = tiny.inputs(["V Why?", "Watch this film. V And here?"], [video(4), video(4, seed=1)])
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    short = compress(tiny.model, inputs, some)
    assert short["labels"].equal(short["input_ids"].masked_fill(short["attention_mask"] == 0, -100))
    assert tiny.model(**short).loss.isfinite()

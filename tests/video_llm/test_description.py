"""What is printed about an answer says what was merged, left out or damaged."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.video_llm.tiny import build, video
from vtm.compressors import random_frames, random_tokens
from vtm.video_llm.answering import Cost, Phase, generate_answer
from vtm.video_llm.description import describe, tokens_text
from vtm.video_llm.frames import VideoClip
from vtm.video_llm.loading import VideoLLM

CLIP = VideoClip(Path("a.mp4"), video(6), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 6.0, substituted=2)
COST = Cost(100, 25, 1, 9, 35, 4, Phase(1.0, None), Phase(0.5, 2 * 10**9), Phase(2.0, 3 * 10**9))


@pytest.mark.parametrize(
    ("after", "compressor", "expected"),
    [
        (25, "pool", "100 → 25 visual (25.0%) by pool"),
        (100, "pool", "0 of 100 tokens merged: pool changed nothing"),
        (100, "none", "100 visual"),
    ],
)
def test_tokens(after, compressor, expected):
    assert tokens_text(replace(COST, tokens_after=after), compressor) == expected


@pytest.mark.parametrize(("compressor", "kept"), [(random_frames, ", 2 of 6 kept"), (random_tokens, "")])
def test_lines(compressor, kept):
    tiny = build("llava_onevision")
    llm = VideoLLM("tiny", tiny.model, tiny.processor)
    answer = generate_answer(llm, CLIP, "Why?", partial(compressor, budget=2.0), max_new_tokens=1)
    assert describe(CLIP, replace(answer, text="one\ntwo", cost=COST), compressor="chance") == [
        "  answer       one",
        "               two",
        "  tokens       100 → 25 visual (25.0%) by chance",
        "  context      35 tokens: 25 visual tokens, 1 newline token, 9 of text",
        f"  frames       6 of 6.0 s, grid of tokens 6 × 4 × 4{kept}; 2 damaged, replaced by the nearest clean frame",
        "  encoding     1.00 s",
        "  prefill      0.50 s, peak memory 2.00 GB",
        "  generation   2.00 s, peak memory 3.00 GB, 4 tokens",
    ]

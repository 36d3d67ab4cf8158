"""Compressed prompts, for each family: what is put back, where, and that the model itself stays as it is."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.video_llm.tiny import FAMILIES, Tiny, build, image, video
from vtm.compressors import Clip, Compressed, dyntok, keep_all, pool, tome, uniform_frames
from vtm.compressors.clip import compressed
from vtm.video_llm import compress, compress_videos

IMAGES = ("internvl", "smolvlm")  # families whose frames are images
TOKENS = {"internvl": "<IMG_CONTEXT>", "smolvlm": "<image>"}
some = partial(tome, budget=20, per="clip")


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return build(request.param)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "0 of .* tokens merged")
        yield


def language_model(tiny: Tiny) -> Any:
    core = tiny.model.base_model
    return core.text_model if tiny.family == "smolvlm" else core.language_model


def embeddings(tiny: Tiny, function: Any, inputs: dict[str, Any], **options: Any) -> Tensor:
    """Return what the language model reads first, (B, L, d)."""
    seen: list[Tensor] = []
    hook = language_model(tiny).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        function(**inputs, **options)
    hook.remove()
    return seen[0]


def logits(tiny: Tiny, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return tiny.model(**inputs).logits


def generate(tiny: Tiny, inputs: dict[str, Any], **options: Any) -> Tensor:
    new = tiny.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **options)
    return new[:, inputs["input_ids"].shape[1] :]


def placeholders(tiny: Tiny, inputs: dict[str, Any]) -> Tensor:
    token = tiny.processor.tokenizer.convert_tokens_to_ids(TOKENS.get(tiny.family, "<video>"))
    return inputs["input_ids"] == token


@pytest.mark.parametrize("frames", [4, 6])
def test_identity_changes_no_logit_and_no_answer(tiny, frames):
    inputs = tiny.inputs("user\nV What happens in it?", [video(frames)])
    done = compress_videos(tiny.model, inputs, keep_all)
    assert done.inputs["input_ids"].equal(inputs["input_ids"])
    assert logits(tiny, done.inputs).equal(logits(tiny, inputs))
    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        assert generate(tiny, done.inputs, **options).equal(generate(tiny, inputs, **options))
    answers = []
    for arguments in (inputs, done.inputs):
        torch.manual_seed(0)
        answers.append(generate(tiny, arguments, do_sample=True, num_return_sequences=3))
    assert answers[0].equal(answers[1])


def test_tokens_lie_in_the_placeholders_in_their_order(tiny):
    inputs = tiny.inputs("user\nV Why?", [video(8)])
    done = compress_videos(tiny.model, inputs, some)
    (after,) = done.compressed
    assert len(after.tokens) == done.tokens_after == 20 < done.tokens_before
    short = done.inputs
    here = embeddings(tiny, tiny.model, short)[placeholders(tiny, short)]
    assert here[:20].equal(after.tokens)
    assert len(here) == 20 + done.newlines


def test_one_newline_token_per_video_stays_behind_it():
    tiny = build("llava_onevision")
    inputs = tiny.inputs("V then V Why?", [video(4), video(4, seed=1)])
    done = compress_videos(tiny.model, inputs, some)
    here = embeddings(tiny, tiny.model, done.inputs)[placeholders(tiny, done.inputs)]
    assert done.newlines == 2
    assert here[20].equal(tiny.model.model.image_newline)
    assert here[41].equal(tiny.model.model.image_newline)
    assert len(here) == 42
    assert done.tokens_after == 40


def test_a_batch_equals_its_rows_alone(tiny):
    texts, films = ["V Why?", "Watch this film. V And here?"], [video(8), video(8, seed=3)]
    calls = iter([30, 17, 30, 17])

    def uneven(clip: Clip) -> Compressed:
        return tome(clip, budget=next(calls), per="clip")

    both = compress(tiny.model, tiny.inputs(texts, films), uneven)
    mask = both["attention_mask"]
    assert mask[:, -1].all()
    answers = generate(tiny, both, do_sample=False)
    positions = both.get("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
    together = logits(tiny, {**both, "position_ids": positions})
    for row, (text, film) in enumerate(zip(texts, films, strict=True)):
        alone = compress(tiny.model, tiny.inputs(text, [film]), uneven)
        kept = mask[row].bool()
        assert both["input_ids"][row, kept].equal(alone["input_ids"][0])
        if "position_ids" in alone:
            assert both["position_ids"][:, row, kept].equal(alone["position_ids"][:, 0])
        torch.testing.assert_close(together[row, kept], logits(tiny, alone)[0], rtol=1e-4, atol=1e-4)
        assert generate(tiny, alone, do_sample=False)[0].equal(answers[row])


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_two_videos_with_two_beams_get_their_own_features(tiny, options):
    calls = iter([30, 17])
    inputs = tiny.inputs(["V Why?", "Watch this film. V And here?"], [video(8), video(8, seed=3)])
    done = compress_videos(tiny.model, inputs, lambda clip: tome(clip, budget=next(calls), per="clip"))
    short = done.inputs
    read = embeddings(tiny, tiny.model.generate, short, max_new_tokens=1, **options)
    assert len(read) == 4
    where = placeholders(tiny, short)
    for row in range(4):
        after = done.compressed[row // 2]
        assert read[row, where[row // 2]][: len(after.tokens)].equal(after.tokens)


def test_generation_goes_on_at_the_next_positions(tiny):
    """Generating with a cache equals reading everything again for each token."""
    done = compress_videos(tiny.model, tiny.inputs("V What happens in it?", [video(8)]), some)
    answer = generate(tiny, done.inputs, do_sample=False)[0]
    inputs = done.inputs
    for new in answer:
        scores = logits(tiny, inputs)[0, -1]
        scores[tiny.processor.tokenizer.eos_token_id] = -torch.inf  # the answer has a shortest length
        assert scores.argmax() == new
        inputs = {**done.inputs, **{k: v for k, v in inputs.items() if k != "mm_encoder_outputs"}}
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new.view(1, 1)], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "position_ids" in inputs:
            inputs["position_ids"] = torch.cat([inputs["position_ids"], inputs["position_ids"][..., -1:] + 1], dim=-1)


def test_two_videos_in_one_row(tiny):
    inputs = tiny.inputs("V then V Why?", [video(4), video(4, seed=1)])
    videos = [(0, 0, 4), (0, 4, 4)] if tiny.family in IMAGES else None
    done = compress_videos(tiny.model, inputs, some, videos=videos)
    first, second = done.compressed
    here = embeddings(tiny, tiny.model, done.inputs)[placeholders(tiny, done.inputs)]
    gap = done.newlines // 2
    assert here[:20].equal(first.tokens)
    assert here[20 + gap :][:20].equal(second.tokens)
    assert logits(tiny, compress(tiny.model, inputs, keep_all, videos=videos)).equal(logits(tiny, inputs))


@pytest.mark.parametrize("text", ["I Look. V Why?", "V Look. I Why?"])
def test_images_beside_a_video_stay_as_they_are(tiny, text):
    images_first = text.startswith("I")
    if tiny.family == "smolvlm":  # whose processor drops the images of a prompt with a video
        inputs = tiny.inputs(text, [video(4)], images=[image()])
        extra = torch.randn(1, 1, 3, 32, 32)
        parts = [extra, inputs["pixel_values"]][:: 1 if images_first else -1]
        inputs["pixel_values"] = torch.cat(parts, dim=1)
        inputs["pixel_attention_mask"] = torch.ones(1, 5, 32, 32)
    else:
        inputs = tiny.inputs(text, [video(4)], images=[image(size=48)])
    videos = None
    if tiny.family in IMAGES:
        videos = [(0, len(inputs["pixel_values"].flatten(0, -4)) - 4 if images_first else 0, 4)]
    assert logits(tiny, compress(tiny.model, inputs, keep_all, videos=videos)).equal(logits(tiny, inputs))
    done = compress_videos(tiny.model, inputs, partial(dyntok, threshold=-1.1), videos=videos)
    full, short = embeddings(tiny, tiny.model, inputs), embeddings(tiny, tiny.model, done.inputs)
    name = "<image>" if tiny.family != "internvl" else "<IMG_CONTEXT>"
    token = tiny.processor.tokenizer.convert_tokens_to_ids(name)
    before, after = full[inputs["input_ids"] == token], short[done.inputs["input_ids"] == token]
    gone = done.tokens_before - done.tokens_after
    if tiny.family in IMAGES:
        count = len(before) - done.tokens_before
        assert len(after) == len(before) - gone
        before, after = (v[:count] if images_first else v[-count:] for v in (before, after))
    assert after.equal(before)
    assert len(short[0]) == len(full[0]) - gone
    assert generate(tiny, done.inputs, num_beams=2).shape == (1, 4)


def test_every_call_makes_new_inputs_and_leaves_the_old_ones(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    done = compress_videos(tiny.model, inputs, some)
    first = generate(tiny, done.inputs, num_beams=2, do_sample=False)
    assert generate(tiny, done.inputs, num_beams=2, do_sample=False).equal(first)
    assert all(inputs[name].equal(value) for name, value in before.items())
    assert set(done.inputs) <= {"input_ids", "attention_mask", "position_ids", "mm_encoder_outputs"}


def test_no_gradient_is_kept_outside_of_training(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    assert not compress_videos(tiny.model, inputs, some).compressed[0].tokens.requires_grad
    tiny.model.train()
    try:
        assert compress_videos(tiny.model, inputs, some).compressed[0].tokens.requires_grad
    finally:
        tiny.model.eval()


def test_order_of_the_compressor_is_the_order_of_reading(tiny):
    def backwards(clip: Clip) -> Compressed:
        """Keep all tokens, from the last to the first of each frame."""
        token = torch.arange(clip.num_tokens).view(len(clip.tokens), -1).flip(1).flatten()
        index = torch.empty_like(token)
        index[token] = torch.arange(clip.num_tokens)
        return compressed(clip, index, token)

    inputs = tiny.inputs("V Why?", [video(4)])
    done = compress_videos(tiny.model, inputs, backwards)
    here = embeddings(tiny, tiny.model, done.inputs)[placeholders(tiny, done.inputs)]
    assert here[: done.tokens_after].equal(done.compressed[0].tokens)


def test_half_precision(tiny):
    inputs = tiny.inputs("V Why?", [video(4)])
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    tiny.model.bfloat16()
    try:
        done = compress_videos(tiny.model, inputs, partial(dyntok, threshold=0.5))
        assert done.compressed[0].tokens.dtype == torch.bfloat16
        assert logits(tiny, done.inputs).isfinite().all()
    finally:
        build.cache_clear()


def test_spatial_and_temporal_compressors_compose_with_every_family(tiny):
    inputs = tiny.inputs("V Why?", [video(8)])
    for compressor in (
        partial(pool, budget=40),
        partial(uniform_frames, budget=2.0),
        partial(dyntok, target_ratio=0.6),
    ):
        done = compress_videos(tiny.model, inputs, compressor)
        assert generate(tiny, done.inputs).shape == (1, 4)
        assert done.inputs["input_ids"].shape[1] == inputs["input_ids"].shape[1] - (
            done.tokens_before - done.tokens_after + done.text_ids
        )

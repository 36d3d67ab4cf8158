"""Ask a video LLM about a clip with compressed tokens: for an answer in words, or for one of several options."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtm.compressors import Clip, random_tokens
from vtm.system.measure import PeakMemory, synchronize
from vtm.video_llm.compress import Compression, Compressor, compress_videos
from vtm.video_llm.families import family_of
from vtm.video_llm.frames import VideoClip
from vtm.video_llm.loading import VideoLLM
from vtm.video_llm.prompts import encode_question, letter_ids, multiple_choice

_MOST_OPTIONS = 26  # letters


@dataclass(frozen=True)
class Phase:
    """The cost of one part of an answer.

    Attributes:
        seconds: duration.
        peak_bytes: peak memory. On a GPU (the first of several), memory of tensors, weights included; on a CPU,
            resident memory of the process. None if the system does not report it.
    """

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Cost:
    """What an answer has cost.

    Attributes:
        tokens_before: number of visual tokens of the clip.
        tokens_after: number of visual tokens that are left.
        newlines: number of newline tokens, which are not compressed.
        text: number of text tokens of the prompt.
        context: length of the prompt in tokens: visual, newline and text tokens.
        new_tokens: number of generated tokens; 0 for a choice.
        encoding: from the pixels to compressed tokens.
        prefill: from these tokens to the first logits.
        generation: the rest; None for a choice.
    """

    tokens_before: int
    tokens_after: int
    newlines: int
    text: int
    context: int
    new_tokens: int
    encoding: Phase
    prefill: Phase
    generation: Phase | None


@dataclass(frozen=True)
class Answer:
    """An answer in words.

    Attributes:
        text: what the model has written after the prefill, without special tokens.
        compression: prompt with compressed tokens.
        cost: number of tokens, time and memory.
    """

    text: str
    compression: Compression
    cost: Cost


@dataclass(frozen=True)
class Choice:
    """The choice of an option.

    Attributes:
        index: index of the option whose letter has the largest logit.
        logits: (n,) float32, logits of the letters as the first token of the answer.
        probabilities: (n,) float32, softmax of these logits, so among the letters only.
        compression: prompt with compressed tokens.
        cost: number of tokens, time and memory.
    """

    index: int
    logits: Tensor
    probabilities: Tensor
    compression: Compression
    cost: Cost


@torch.no_grad()
def generate_answer(
    llm: VideoLLM,
    clip: VideoClip,
    question: str,
    compressor: Compressor,
    *,
    prefill: str = "",
    max_new_tokens: int = 128,
    **options: Any,
) -> Answer:
    """Generate the answer to a question about a clip, greedily unless the options of `generate` say otherwise.

    Args:
        llm: video LLM.
        clip: frames with their times.
        question: text; what looks like a special token is encoded as text.
        compressor: function such as `partial(dyntok, threshold=0.6)`.
        prefill: how the answer begins.
        max_new_tokens: number of tokens after which the answer is cut off.
        options: other options of `generate`, such as `do_sample=True` or `num_beams=4`.

    Raises:
        ValueError: if the prompt and the new tokens do not fit into the context of the model, or the compressor refuses
            the clip.
    """
    watch = _Watch(llm.model.device)
    inputs = _encode(llm, clip, question, prefill)
    watch.start()
    compression = _compress(llm, inputs, compressor)
    encoding = watch.lap()
    length = compression.rows["input_ids"].shape[1]
    limit = getattr(llm.model.config.get_text_config(), "max_position_embeddings", length + max_new_tokens)
    if length + max_new_tokens > limit:
        raise ValueError(
            f"{length} tokens of the prompt and {max_new_tokens} new ones do not fit into the context of the model, "
            f"{limit}; compress more, take fewer frames, or generate fewer tokens"
        )
    first = _FirstLogits(watch)
    processors = [*options.pop("logits_processor", ()), first]
    options = {"do_sample": False, **options}
    output = llm.model.generate(
        **compression.inputs, max_new_tokens=max_new_tokens, logits_processor=processors, **options
    )
    generation = watch.lap()
    new = output[0, length:]
    text = llm.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert first.prefill is not None
    return Answer(text, compression, _cost(compression, len(new), encoding, first.prefill, generation))


@torch.no_grad()
def choose_option(
    llm: VideoLLM, clip: VideoClip, question: str, options: Sequence[str], compressor: Compressor, *, prefill: str = ""
) -> Choice:
    """Choose one of several answers to a question about a clip: the one whose letter has the largest logit.

    The options are written below the question as "A. text". The letters are compared as the first token of the answer,
    in one forward pass.

    Args:
        llm: video LLM.
        clip: frames with their times.
        question: text; what looks like a special token is encoded as text.
        options: 2 to 26 answers.
        compressor: function such as `partial(dyntok, threshold=0.6)`.
        prefill: how the answer begins, such as "(".

    Raises:
        ValueError: if the number of options is wrong, a letter is not one token, the prompt does not fit into the
            context of the model, or the compressor refuses the clip.
    """
    if not 2 <= len(options) <= _MOST_OPTIONS:
        raise ValueError(f"expected 2 to {_MOST_OPTIONS} options, got {len(options)}")
    letters = letter_ids(llm.processor, len(options), prefill=prefill)
    watch = _Watch(llm.model.device)
    inputs = _encode(llm, clip, multiple_choice(question, options), prefill)
    watch.start()
    compression = _compress(llm, inputs, compressor)
    encoding = watch.lap()
    output = llm.model(**compression.inputs, logits_to_keep=1, use_cache=False)
    logits = output.logits[0, -1].float().cpu()[letters]
    cost = _cost(compression, 0, encoding, watch.lap(), None)
    return Choice(int(logits.argmax()), logits, logits.softmax(0), compression, cost)


@torch.no_grad()
def encode_clip(llm: VideoLLM, clip: VideoClip) -> Clip:
    """Return the visual tokens and encoder features of a clip, which need not fit into the context of the model."""
    return _compress(llm, _encode(llm, clip, "", ""), partial(random_tokens, budget=1)).clips[0]


def _encode(llm: VideoLLM, clip: VideoClip, question: str, prefill: str) -> dict[str, Any]:
    """Return the inputs of the model on its device, pixels in its dtype."""
    family = family_of(llm.model)
    inputs = encode_question(
        llm.processor, clip.frames, times=clip.times, seconds=clip.seconds, question=question, prefill=prefill
    )
    inputs = {
        name: value.to(llm.model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    if family.pixels in inputs:
        inputs[family.pixels] = inputs[family.pixels].to(llm.model.dtype)
    return inputs


def _compress(llm: VideoLLM, inputs: dict[str, Any], compressor: Compressor) -> Compression:
    """Compress the one video of the inputs; all their images are its frames, or tiles of them."""
    family = family_of(llm.model)
    videos = None
    if family.modality == "image" and family.pixels in inputs:
        videos = [(0, 0, inputs[family.pixels].shape[:-3].numel())]  # (B, images, 3, Y, X) or (images, 3, Y, X)
    return compress_videos(llm.model, inputs, compressor, videos=videos)


def _cost(compression: Compression, new_tokens: int, encoding: Phase, prefill: Phase, generation: Phase | None) -> Cost:
    context = compression.rows["input_ids"].shape[1]
    visual = compression.tokens_after + compression.newlines
    return Cost(
        compression.tokens_before,
        compression.tokens_after,
        compression.newlines,
        context - visual,
        context,
        new_tokens,
        encoding,
        prefill,
        generation,
    )


class _Watch:
    """A watch that measures the time and the memory of one phase after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Start the first phase."""
        self._memory = PeakMemory(self._device).__enter__()
        synchronize(self._device)
        self._begin = time.perf_counter()

    def lap(self) -> Phase:
        """End the phase, and start the next one."""
        synchronize(self._device)
        seconds = time.perf_counter() - self._begin
        self._memory.__exit__(None, None, None)
        phase = Phase(seconds, self._memory.total)
        self.start()
        return phase


class _FirstLogits:
    """A logits processor that changes nothing, and ends the prefill when it is first called."""

    def __init__(self, watch: _Watch) -> None:
        self.prefill: Phase | None = None
        self._watch = watch

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores."""
        if self.prefill is None:
            self.prefill = self._watch.lap()
        return scores

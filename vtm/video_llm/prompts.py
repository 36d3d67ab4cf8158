"""A question about a video as inputs of a model: true times of frames, and special tokens in questions as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TICKS = 1000  # per second, in which the times of frames are told to the processor
_QUESTION = "\u2063question\u2063"  # stands for the question while the chat template is applied
_OPTIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """Write a question and its options, one per line.

    >>> print(multiple_choice("Who wins?", ["the dog", "the cat"]))
    Who wins?
    A. the dog
    B. the cat
    """
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(_OPTIONS, options, strict=False))])


def encode_question(
    processor: Any, frames: Tensor, *, times: Sequence[float], seconds: float, question: str, prefill: str = ""
) -> dict[str, Any]:
    """Return the inputs of a model for one question about one video.

    Args:
        processor: processor of the model, with a chat template.
        frames: (T, 3, H, W) uint8; all of them are taken.
        times: T times of the frames in seconds, ascending.
        seconds: length of the video.
        question: text; what looks like a special token of the model is encoded as text.
        prefill: how the answer begins.

    Raises:
        ValueError: if there is not one time per frame, or the processor has no chat template.
    """
    if len(times) != len(frames):
        raise ValueError(f"expected a time for each of {len(frames)} frames, got {len(times)}")
    missing = getattr(processor.video_processor, "temporal_patch_size", 1) - len(frames)
    if missing > 0:  # the processor of Qwen3-VL refuses a single frame, which those of other models repeat
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        times = [*times, *[times[-1]] * missing]
    before, after = _apply_template(processor, prefill)
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token
    options = {
        "videos_kwargs": {"video_metadata": [_metadata(times, seconds)], "do_sample_frames": False},
        "text_kwargs": {"add_special_tokens": not (bos and before.startswith(bos))},
    }
    special = any(token in question for token in tokenizer.get_added_vocab())
    text = before if special else before + question + after
    inputs = dict(processor(text=[text], videos=[frames], return_tensors="pt", **options))
    if not special:
        return inputs
    rest = tokenizer(question, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rest = rest + tokenizer(after, add_special_tokens=False)["input_ids"]
    length = inputs["input_ids"].shape[1]
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == (1, length):
            more = rest if name == "input_ids" else [int(name == "attention_mask")] * len(rest)
            inputs[name] = torch.cat([value, value.new_tensor([more])], dim=1)
    return inputs


def letter_ids(processor: Any, count: int, *, prefill: str = "") -> Tensor:
    """Return the ids (count,) of the letters A, B, … as the first id of an answer after `prefill`.

    Raises:
        ValueError: if a letter is not one id there.
    """
    _, tail = _apply_template(processor, prefill)
    tokenizer = processor.tokenizer
    start = tokenizer(tail, add_special_tokens=False)["input_ids"]
    found = []
    for letter in _OPTIONS[:count]:
        ids = tokenizer(tail + letter, add_special_tokens=False)["input_ids"]
        if ids[:-1] != start:
            raise ValueError(
                f"expected the letter {letter} to be one token behind {tail[-20:]!r}, got the tokens "
                f"{tokenizer.convert_ids_to_tokens(ids)[-3:]}; choose another prefill"
            )
        found.append(ids[-1])
    return torch.tensor(found)


def _apply_template(processor: Any, prefill: str) -> tuple[str, str]:
    """Return what stands before and after a question about a video."""
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise ValueError(f"{type(processor).__name__} has no chat template; save one with the processor")
    content = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
    try:
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    except Exception as error:  # a template is a program, so it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the chat template cannot be applied to a video and a question ({reason}); save the chat template of the "
            "model with the processor"
        ) from error
    before, question, after = text.partition(_QUESTION)
    if not question or _QUESTION in after or processor.video_token not in before:
        raise ValueError(
            f"expected a chat template that writes {processor.video_token} and, behind it, the question once, got one "
            f"that writes {text.replace(_QUESTION, 'QUESTION')!r}; save the chat template of the model with the "
            "processor"
        )
    return before, after + prefill


def _metadata(times: Sequence[float], seconds: float) -> Any:
    """Describe frames so that a processor computes their true times, and their mean distance where it needs a rate."""
    from transformers.video_utils import VideoMetadata

    ticks = [round(time * _TICKS) for time in times]
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else _TICKS
    return VideoMetadata(
        total_num_frames=max(1, round(step * len(ticks))), fps=_TICKS, duration=seconds, frames_indices=ticks
    )

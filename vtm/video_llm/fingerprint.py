"""What the answers of a run depend on: the model, the prompt, the frames and the compressor, and a hash of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch

from vtm.video_llm.prompts import multiple_choice
from vtm.video_llm.questions.question import Question

_VALUES = 1024  # of each tensor, evenly spread
# entries of a model's configuration that name where it comes from, or how it computes the same
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "_attn_implementation", "dtype")

_OF_A_CALL = ("padding", "truncation")  # settings that a tokenizer keeps from its last call


def hash_parts(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    *,
    prefill: str,
    frames: int,
    compressor: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the answers to questions depend on.

    Args:
        model: video LLM.
        processor: its processor.
        questions: all questions of the list, also those that are not answered.
        prefill: how the answer begins.
        frames: number of frames that are read of each video.
        compressor: configuration of the compressor.

    Returns:
        `weights` and `prompt` as hashes, `frames` and `compressor` as they are. The first covers the weights, the
        configuration and the processor with its chat template and tokenizer; the second the texts of the list, the
        names of its videos, and `prefill`.
    """
    example = multiple_choice("", ["", ""])
    lines = [[question.id, question.video, question.text, *question.options] for question in questions]
    return {
        "weights": weights_sha256(model, processor),
        "prompt": json_sha256([example, prefill, lines]),
        "frames": frames,
        "compressor": dict(compressor),
    }


def json_sha256(content: Any) -> str:
    """Hash what can be written as JSON; the order of keys does not matter.

    >>> json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1})
    True
    """
    return sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def weights_sha256(model: Any, processor: Any) -> str:
    """Hash the weights of a model with its configuration, and its processor.

    Of each tensor, the name, type, shape and 1,024 values at equal distances count, so that another model of the same
    shape has another hash and a large model takes seconds. Tensors that are kept outside of memory count without
    values. Where the model was loaded from does not matter.
    """
    digest = sha256()
    config = _without(model.config.to_dict(), _NOT_OF_THE_MODEL)
    digest.update(json.dumps([type(model).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta and tensor.numel():
            flat = tensor.detach().reshape(-1)
            index = torch.linspace(0, len(flat) - 1, min(_VALUES, len(flat)), dtype=torch.float64).long()
            digest.update(flat[index.to(flat.device)].cpu().view(torch.uint8).numpy().tobytes())
    digest.update(_describe(processor).encode())
    return digest.hexdigest()


def _describe(processor: Any) -> str:
    """Return the settings of a processor: its chat template, how it splits text, and how it prepares frames."""
    tokenizer = processor.tokenizer
    template = processor.chat_template or tokenizer.chat_template
    parts = [template, sorted(tokenizer.get_vocab().items()), tokenizer.bos_token]
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:  # of all but tokenizers in Python
        parts.append(_without(json.loads(backend.to_str()), _OF_A_CALL))
    for name in ("video_processor", "image_processor"):
        part = getattr(processor, name, None)
        parts.append(None if part is None else _without(part.to_dict(), ("processor_class", "_processor_class")))
    return json.dumps(parts, sort_keys=True, default=str)


def _without(content: Any, names: Sequence[str]) -> Any:
    """Return nested dictionaries without some keys."""
    if not isinstance(content, Mapping):
        return content
    return {key: _without(value, names) for key, value in content.items() if key not in names}

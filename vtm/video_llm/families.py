"""The supported families of video LLMs, and how their inputs differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtm.video_llm import readers
from vtm.video_llm.readers import Encoded


@dataclass(frozen=True)
class Family:
    """A family of video LLMs.

    Attributes:
        read: reader of its visual tokens.
        put_back: function from the tokens (M, d) of each video to the `pooler_output` that the model expects.
        modality: "video", or "image" if frames are images with the placeholder of images.
        mrope: whether positions have a part for time, row and column.
        separator: number of ids between two frames that belong to neither of them; None if there is no text between
            the frames of a video.
    """

    read: Callable[[Any, Mapping[str, Any]], Encoded]
    put_back: Callable[[list[Tensor]], Tensor | list[Tensor]]
    modality: str = "video"
    mrope: bool = False
    separator: int | None = None

    @property
    def pixels(self) -> str:
        """Name of the input with the pixels of the videos."""
        return "pixel_values_videos" if self.modality == "video" else "pixel_values"


def _one_by_one(tokens: list[Tensor]) -> Tensor:
    """Return tokens (ΣM, 1, d), which beam search counts and repeats row by row, as (1, ΣM, d) would not be."""
    return torch.cat(tokens)[:, None]


FAMILIES = {
    "llava_onevision": Family(readers.llava_onevision, _one_by_one),
    "llava_next_video": Family(readers.llava_next_video, list),
    "qwen2_vl": Family(readers.qwen, list, mrope=True),
    "qwen2_5_vl": Family(readers.qwen2_5, list, mrope=True),
    "qwen3_vl": Family(readers.qwen, list, mrope=True, separator=0),  # <1.0 seconds> before each frame
    "internvl": Family(readers.internvl, _one_by_one, modality="image", separator=1),  # a line "Frame1: " each
    "smolvlm": Family(readers.smolvlm, list, modality="image", separator=0),  # a line "Frame from 00:01:" each
}


def family_of(model: Any) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: if it is not supported.
    """
    name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if name not in FAMILIES:
        why = ", which compresses videos itself" if str(name).startswith("video_llama_3") else ""
        raise ValueError(f"expected a model of one of the families {', '.join(FAMILIES)}, got {name}{why}")
    return FAMILIES[name]

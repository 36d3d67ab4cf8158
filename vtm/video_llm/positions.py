"""Positions of the tokens that are left: those of their anchors in the full input, or one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from vtm.video_llm.readers import call


def consecutive(mask: Tensor) -> Tensor:
    """Number the tokens of each row (B, L) from 0; padding has 0.

    >>> from torch import tensor
    >>> consecutive(tensor([[0, 1, 1, 1]]))
    tensor([[0, 0, 1, 2]])
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def rope_positions(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the positions (3, B, L) in time, row and column of the full input."""
    given: Tensor | None = inputs.get("position_ids")
    if given is not None and given.ndim == 3:
        return given[-3:]
    if inputs.get("mm_token_type_ids") is None:
        ids, config = inputs["input_ids"], model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs = {**inputs, "mm_token_type_ids": kinds}
    positions, _ = call(model.base_model.get_rope_index, inputs)
    return cast(Tensor, positions)

"""Shorter rows: ids, masks and positions without the tokens that are gone, padded on the left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FILL = {"labels": -100}  # ids are filled with the padding id, everything else with 0


def cut_rows(values: Tensor, keep: Tensor, fill: int) -> Tensor:
    """Keep some columns of each row (…, B, L), and pad on the left rows that become shorter than others.

    >>> cut_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 0, 1], [0, 0, 1]]).bool(), fill=0)
    tensor([[1, 3],
            [0, 6]])
    """
    counts = keep.sum(1, keepdim=True)
    length = int(counts.max())
    taken = torch.arange(length, device=keep.device) >= length - counts  # (B, L')
    shorter = values.new_full((*values.shape[:-1], length), fill)
    shorter[..., taken] = values[..., keep]
    return shorter


def cut_inputs(inputs: dict[str, Any], keep: Tensor, padding: int) -> dict[str, Any]:
    """Cut every input of shape (B, L)."""
    return {
        name: cut_rows(value, keep, padding if name == "input_ids" else _FILL.get(name, 0))
        if isinstance(value, Tensor) and value.shape == keep.shape
        else value
        for name, value in inputs.items()
    }


def padding_id(model: Any) -> int:
    """Return the id that a model pads with; that of the end of a text where it has none."""
    config = model.config.get_text_config()
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    return 0

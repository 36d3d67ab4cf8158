"""Match the outputs of a trained classifier with the classes of the data by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch import nn

_SHOWN = 3  # names of classes in a message


def match_outputs(layer: nn.Linear, labels: Sequence[str], names: Sequence[str], *, model: str) -> nn.Linear | None:
    """Return a trained last layer with its outputs in the order of the classes of the data.

    Capital letters, underscores, and the brackets around [something] do not count.

    Args:
        layer: trained last layer.
        labels: names of its outputs; empty if they are not known.
        names: names of the classes of the data.
        model: name of the model in messages.

    Returns:
        the layer itself if its outputs are in that order, or their names are not known, which a warning says; None if
        it has other classes and another number of them, which a warning says, too.

    Raises:
        ValueError: if it has as many classes of other names.
    """
    rows = {_plain(label): row for row, label in enumerate(labels)}
    absent = [name for name in names if _plain(name) not in rows]
    if not absent:
        order = [rows[_plain(name)] for name in names]
        if len(names) < layer.out_features:
            _warn(
                f"the {len(names)} classes of the data are compared only with one another; {model} knows "
                f"{layer.out_features}"
            )
        return layer if order == list(range(layer.out_features)) else _select(layer, order)
    if len(names) != layer.out_features:
        _warn(
            f"the last layer of {model} is new, with {len(names)} classes, because the trained one has "
            f"{layer.out_features} and lacks {_shown(absent)}"
        )
        return None
    if labels:
        known = set(map(_plain, names))
        others = [label for label in labels if _plain(label) not in known]
        raise ValueError(
            f"{model} is trained on other classes: the data have {_shown(absent)} where it has {_shown(others)}; use "
            "the data it was trained on, or set model.new_classifier=true to train a new last layer"
        )
    _warn(
        f"the checkpoint of {model} does not name its {len(names)} classes, so they are taken in the order of the "
        f"data, {_shown(names)}"
    )
    return layer


def new_layer(channels: int, num_outputs: int) -> nn.Linear:
    """Return a last layer with random weights."""
    layer = nn.Linear(channels, num_outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _select(layer: nn.Linear, rows: Sequence[int]) -> nn.Linear:
    """Return a layer with some of the outputs of another, in the given order."""
    chosen = nn.Linear(layer.in_features, len(rows))
    with torch.no_grad():
        chosen.weight.copy_(layer.weight[list(rows)])
        chosen.bias.copy_(layer.bias[list(rows)])
    return chosen


def _plain(name: str) -> str:
    """Return the name of a class without what lists of one data set spell differently.

    >>> _plain("Putting [something] on_a table")
    'putting something on a table'
    """
    return " ".join(re.sub(r"[\[\]_]", " ", name).casefold().split())


def _shown(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)

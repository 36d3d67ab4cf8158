"""The checkpoints of `train.py`, which only this file opens: read, checked, compared with a run."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vtm.encoders import Encoder
from vtm.results.old_names import with_current_names

CHECKPOINT_FORMAT = 2


def check_checkpoint(key: str, path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key}={path} is no file; checkpoints lie in <run folder>/checkpoints/")
    try:
        ours = "vtm" in torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # the tensors are not read
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        ours = False
    if not ours:
        raise ValueError(f"{key}={path} is no checkpoint of vtm, or a damaged one; give one that train.py has written")


def _differences(theirs: Any, ours: Any, keys: Iterable[str], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """List the settings that differ, key by key: the dotted key and both values."""
    for key in keys:
        had, has = theirs.get(key), ours.get(key)
        if isinstance(had, dict) and isinstance(has, dict):
            yield from _differences(had, has, sorted(had.keys() | has.keys()), f"{prefix}{key}.")
        elif had != has:
            yield f"{prefix}{key}", had, has


def _config(checkpoint: dict[str, Any], name: str, encoder: Encoder) -> dict[str, Any]:
    """Return the configuration of a checkpoint of ours that belongs to this encoder."""
    facts: dict[str, Any] = checkpoint.get("vtm", {})
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{name} is no vtm checkpoint of format {CHECKPOINT_FORMAT}, found format {facts.get('format')}; "
            f"use the version of vtm that wrote it"
        )
    if facts["encoder"] != encoder.key:
        raise ValueError(f"{name} belongs to encoder {facts['encoder']}, but this run has {encoder.key}")
    config: dict[str, Any] = with_current_names(facts["config"])
    return config


def epochs_trained(checkpoint: str | Path) -> int:
    """Return for how many epochs a checkpoint was trained."""
    # the trainer's own count is that of the end of training; mapped, the file's tensors are not read
    return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["epoch"]) + 1

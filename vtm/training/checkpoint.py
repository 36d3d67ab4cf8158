"""The checkpoints of `train.py`, which only this file opens: read, compared with a run, and fine-tuned from."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from vtm.results.old_names import with_current_names

FORMAT = 2


class Checkpoint(NamedTuple):
    """What a checkpoint of `train.py` says of its run.

    Attributes:
        name: of the checkpoint in messages, such as `ckpt_path=runs/…/best.ckpt`.
        epochs: epochs trained.
        steps: optimization steps taken.
        encoder_key: of the encoder whose features the network was trained on.
        class_names: in the order of the outputs; None for a regression.
        config: of the run, in plain containers, with every `_target_` under its present name.
        state: tensors of the LightningModule by name; those of the network begin with `model.`.
    """

    name: str
    epochs: int
    steps: int
    encoder_key: str
    class_names: list[str] | None
    config: dict[str, Any]
    state: Mapping[str, Tensor]

    @classmethod
    def parse(cls, content: Any, name: str) -> Checkpoint:
        """Take a checkpoint from what torch has read.

        Raises:
            ValueError: if it is no checkpoint of vtm, or one of another format.
        """
        facts = content.get("vtm") if isinstance(content, Mapping) else None
        if not isinstance(facts, Mapping):
            raise ValueError(f"{name} is no checkpoint of vtm, or a damaged one; give one that train.py has written")
        if (found := facts.get("format")) != FORMAT:
            raise ValueError(
                f"{name} is a checkpoint of format {found}, but this version of vtm reads format {FORMAT}; use the "
                "version of vtm that wrote it"
            )
        config = with_current_names(facts["config"])
        counts = content["epoch"] + 1, content["global_step"]  # Lightning counts finished epochs from 0
        return cls(name, *counts, facts["encoder"], facts["classes"], config, content["state_dict"])


def read_checkpoint(path: str | Path, *, key: str = "ckpt_path", tensors: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: of the file.
        key: that names the file on the command line, for messages.
        tensors: the tensors will be used, so compare all of the file with its checksums, which torch does not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of vtm, one of another format, or damaged.
    """
    name = f"{key}={path}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} is no file; checkpoints lie in <run folder>/checkpoints/")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        damaged = tensors and ZipFile(path).testzip() is not None
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        damaged = True
    if damaged:
        content = None
    return Checkpoint.parse(content, name)


def check_same_run(
    checkpoint: Checkpoint,
    *,
    encoder_key: str,
    class_names: list[str] | None,
    config: Mapping[str, Any],
    resumes: bool,
) -> None:
    """Refuse to resume or test a checkpoint with another encoder, other classes or other settings than it had.

    Args:
        checkpoint: to be resumed or tested.
        encoder_key: of this run's encoder.
        class_names: of this run's data.
        config: of this run.
        resumes: training goes on, so the optimizer and the schedule count too.

    Raises:
        ValueError: if something differs; it names the first difference.
    """
    _check_encoder(checkpoint, encoder_key)
    if (had := checkpoint.class_names) != class_names:
        pairs = zip_longest(class_names or [], had or [])
        here, there = next((pair for pair in pairs if pair[0] != pair[1]), (class_names, had))
        raise ValueError(
            f"the checkpoint was trained on other classes: it has {there} where the data have {here}; use the "
            "data it was trained on (finetune_from= starts a new run)"
        )
    groups = ("merging", "model", "task", *(("optimizer", "scheduler") if resumes else ()))
    for key, trained, wanted in _differences(checkpoint.config, config, groups):
        raise ValueError(
            f"the checkpoint was trained with {key} = {trained}, but this run has {wanted}; a run is "
            f"{'resumed' if resumes else 'tested'} with the settings it had (finetune_from= starts a new one)"
        )


def fine_tune(head: nn.Module, path: str | Path, *, encoder_key: str) -> None:
    """Copy the weights of a checkpoint's network, except for its last layer `head`, which stays as it is.

    Args:
        head: the network of this run.
        path: of the checkpoint of a network with the same settings.
        encoder_key: of this run's encoder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of vtm, or belongs to another encoder or network.
    """
    checkpoint = read_checkpoint(path, key="finetune_from", tensors=True)
    _check_encoder(checkpoint, encoder_key)
    theirs = {
        name.removeprefix("model."): value
        for name, value in checkpoint.state.items()
        if name.startswith("model.") and not name.startswith("model.head.")
    }
    ours = {name: value for name, value in head.state_dict().items() if not name.startswith("head.")}
    differing = sorted(
        name for name in theirs.keys() | ours.keys()
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )  # fmt: skip
    if differing:
        raise ValueError(
            f"{checkpoint.name} holds another network: {len(differing)} of its tensors, such as {differing[0]}, are "
            "missing here or have another shape; use the model and merging settings that it was trained with"
        )
    head.load_state_dict(theirs, strict=False)


def _check_encoder(checkpoint: Checkpoint, key: str) -> None:
    if checkpoint.encoder_key != key:
        raise ValueError(f"{checkpoint.name} belongs to encoder {checkpoint.encoder_key}, but this run has {key}")


def _differences(theirs: Any, ours: Any, keys: Iterable[str], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """List the settings that differ, key by key: the dotted key and both values."""
    for key in keys:
        had, has = theirs.get(key), ours.get(key)
        if isinstance(had, Mapping) and isinstance(has, Mapping):
            yield from _differences(had, has, sorted(had.keys() | has.keys()), f"{prefix}{key}.")
        elif had != has:
            yield f"{prefix}{key}", had, has

"""Read checkpoints of `train.py`, compare them with a run, and fine-tune from them; no other file opens them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtm.results.old_names import with_current_names
from vtm.system.archive import is_intact
from vtm.system.names import explain_path

FORMAT = 2
# settings of a ready transformer that do not change what its weights mean
_FREE = ("model.merge", "model.frozen_layers", "model.new_classifier", "model.host.name", "model.host.pretrained")
_NO_CHECKPOINT = "{} is not a checkpoint of vtm, or is damaged; give one that train.py has written"


class Checkpoint(NamedTuple):
    """A checkpoint of `train.py`.

    Attributes:
        name: name of the checkpoint in messages, such as `ckpt_path=runs/…/best.ckpt`.
        epochs: number of epochs trained.
        steps: number of optimization steps taken.
        encoder_key: key of the encoder whose features the network was trained on.
        class_names: names of the classes, in the order of the outputs; None for a regression.
        threads: number of threads of each process; None in checkpoints of earlier versions.
        config: configuration of the run in plain containers, with the current name of every `_target_`.
        state: tensors of the LightningModule by name; the names of the network's tensors begin with `model.`.
    """

    name: str
    epochs: int
    steps: int
    encoder_key: str
    class_names: list[str] | None
    threads: int | None
    config: dict[str, Any]
    state: Mapping[str, Tensor]

    @classmethod
    def parse(cls, content: Any, name: str) -> Checkpoint:
        """Check the content of a checkpoint file, and keep what is needed.

        Args:
            content: what `torch.load` returned.
            name: name of the checkpoint in messages.

        Raises:
            ValueError: if it is not a checkpoint of vtm, or has another format.
        """
        facts = content.get("vtm") if isinstance(content, Mapping) else None
        if not isinstance(facts, Mapping):
            raise ValueError(_NO_CHECKPOINT.format(name))
        if (found := facts.get("format")) != FORMAT:
            raise ValueError(
                f"{name} is a checkpoint of format {found}, but this version of vtm reads format {FORMAT}; use the "
                "version of vtm that wrote it"
            )
        config = with_current_names(facts["config"])
        counts = content["epoch"] + 1, content["global_step"]  # Lightning counts finished epochs from 0
        return cls(
            name, *counts, facts["encoder"], facts["classes"], facts.get("threads"), config, content["state_dict"]
        )


def read_checkpoint(path: str | Path, *, key: str = "ckpt_path") -> Checkpoint:
    """Read a checkpoint, of which every byte is checked.

    Args:
        path: file to read.
        key: key of the file on the command line, for messages.
    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a checkpoint of vtm, has another format, or is damaged.
    """
    name = f"{key}={path}"
    if not Path(path).is_file():
        hint = explain_path(path)
        raise FileNotFoundError(f"{name} is not a file{hint}; checkpoints are in <run folder>/checkpoints/")
    check_intact(path, name=name)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):
        content = None
    return Checkpoint.parse(content, name)


def check_intact(path: str | Path, *, name: str) -> None:
    """Check every byte of a checkpoint, before torch, which ignores the checksums, reads it.

    Args:
        path: file to check.
        name: how the message names the checkpoint.

    Raises:
        ValueError: if the file is not as `torch.save` has written it.
    """
    if not is_intact(path):
        raise ValueError(_NO_CHECKPOINT.format(name))


def check_same_run(
    checkpoint: Checkpoint,
    *,
    encoder_key: str,
    class_names: list[str] | None,
    config: Mapping[str, Any],
    resumes: bool,
) -> None:
    """Check that a checkpoint was trained with the encoder, the classes and the settings of this run.

    A ready transformer may be tested with another merging, which has no weights.

    Args:
        checkpoint: checkpoint to resume or test.
        encoder_key: key of this run's encoder.
        class_names: class names of this run's data.
        config: configuration of this run.
        resumes: whether training continues; then the optimizer and the schedule are compared too.

    Raises:
        ValueError: if something differs; the message names the first difference.
    """
    _check_encoder(checkpoint, encoder_key)
    if (trained_names := checkpoint.class_names) != class_names:
        pairs = zip_longest(class_names or [], trained_names or [])
        expected, found = next((pair for pair in pairs if pair[0] != pair[1]), (class_names, trained_names))
        raise ValueError(
            f"the checkpoint was trained on other classes: it has {found} where the data have {expected}; use the "
            "data it was trained on (finetune_from= starts a new run)"
        )
    groups = ("merging", "model", "task", *(("optimizer", "scheduler", "seed") if resumes else ()))
    for key, trained, wanted in _differences(checkpoint.config, config, groups):
        if not resumes and "host" in config["model"] and key.startswith(_FREE):
            continue
        raise ValueError(
            f"the checkpoint was trained with {key} = {trained}, but this run has {wanted}; a run is "
            f"{'resumed' if resumes else 'tested'} with the settings it had (finetune_from= starts a new one)"
        )


def fine_tune(head: nn.Module, path: str | Path, *, encoder_key: str) -> None:
    """Copy the weights of a checkpoint's network into a new one, except for the last layer `head`.

    Args:
        head: network of this run.
        path: checkpoint of a network with the same settings.
        encoder_key: key of this run's encoder.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a checkpoint of vtm, or belongs to another encoder or network.
    """
    checkpoint = read_checkpoint(path, key="finetune_from")
    _check_encoder(checkpoint, encoder_key)
    trained = {
        name.removeprefix("model."): value
        for name, value in checkpoint.state.items()
        if name.startswith("model.") and not name.startswith("model.head.")
    }
    wanted = {name: value for name, value in head.state_dict().items() if not name.startswith("head.")}
    differing = sorted(
        name for name in trained.keys() | wanted.keys()
        if name not in trained or name not in wanted or trained[name].shape != wanted[name].shape
    )  # fmt: skip
    if differing:
        raise ValueError(
            f"{checkpoint.name} holds another network: {len(differing)} of its tensors, such as {differing[0]}, are "
            "missing here or have another shape; use the model and merging settings that it was trained with"
        )
    head.load_state_dict(trained, strict=False)


def _check_encoder(checkpoint: Checkpoint, key: str) -> None:
    if checkpoint.encoder_key != key:
        raise ValueError(f"{checkpoint.name} belongs to encoder {checkpoint.encoder_key}, but this run has {key}")


def _differences(trained: Any, wanted: Any, keys: Iterable[str], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of each setting that differs."""
    for key in keys:
        old, new = trained.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, sorted(old.keys() | new.keys()), f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new

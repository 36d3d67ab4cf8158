"""The file of a trained model: safetensors weights and a JSON description, from which it is built without Hydra.

The file contains no code: the description can only name classes and functions that vtm itself provides.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shlex
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vtm.inference.description import parse_json, shown
from vtm.system.atomic import write_atomically
from vtm.system.downloads import describe_bad_download
from vtm.system.names import explain_path

FORMAT = 1
PARTS = ("task", "classes", "num_outputs", "encoder", "encoder_key", "model", "protocol", "motion", "training")
_OFFERED = ("vtm.encoders", "vtm.merging", "vtm.models", "vtm.patching", "vtm.data.sampling")
_KEY, _CHECKSUM = "vtm", "vtm_sha256"  # keys of the file's metadata


class ModelFileError(Exception):
    """A model file that cannot be used; the message names the file, what is wrong and what to do."""


def write_model(path: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a model file atomically.

    Args:
        path: file to write.
        weights: state dict of the network.
        description: the entries `PARTS`, in plain containers.
    """
    assert set(description) == set(PARTS)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    text = to_json({"format": FORMAT, **description})
    write_atomically(
        path, save(tensors, metadata={"format": "pt", _KEY: text, _CHECKSUM: weights_sha256(tensors, text)})
    )


def to_json(description: Mapping[str, Any]) -> str:
    """Write a description as JSON.

    Raises:
        ModelFileError: if it has a number that is NaN or infinite, or something else that JSON cannot hold.
    """
    try:
        return json.dumps(description, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the configuration of the run cannot be written as JSON: {error}") from error


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and the description of a model.

    Raises:
        ModelFileError: if the file does not exist, is not a model of vtm, or is damaged.
    """
    if not path.is_file():
        raise ModelFileError(
            f"{path} is not a file{explain_path(path)}; `python -m vtm.export "
            f"ckpt_path=runs/…/checkpoints/best.ckpt {shlex.quote(f'out={path}')}` writes one"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a model of vtm: {_guess_kind(path)}") from error
    if _KEY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file, but vtm.export did not write it")
    if metadata.get(_CHECKSUM) != weights_sha256(weights, metadata[_KEY]):
        raise ModelFileError(f"{path} is damaged: its checksum is wrong; copy or export it again")
    try:
        description = parse_json(metadata[_KEY])
    except ValueError as error:
        raise ModelFileError(f"{path} does not describe a model: {error}") from error
    if (found := description.pop("format", None)) != FORMAT or isinstance(found, bool):
        raise ModelFileError(
            f"{path} has format {shown(found)}, but this version of vtm reads format {FORMAT}; export it again"
        )
    return weights, description


def weights_sha256(weights: Mapping[str, Tensor], about: str = "") -> str:
    """Hash a text and weights with their names, types and shapes, in any order."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build(node: Any, *arguments: Any) -> Any:
    """Build the object that a configuration node describes, as Hydra's `instantiate` does.

    Args:
        node: dictionary with `_target_`, its keyword arguments and optionally `_partial_`; other values are returned,
            with the nodes inside them built.
        arguments: positional arguments of the outermost target.

    Raises:
        ModelFileError: if a target is not a class or function that a model file may name.

    >>> build({"_target_": "vtm.data.sampling.Windows", "num_frames": 60, "stride": 1}).times(0.0, 2.5)
    [0.0, 1.0, 2.0]
    """
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    keywords = {key: build(value) for key, value in node.items() if not key.startswith("_")}
    if "_target_" not in node:
        return keywords
    target = find(node["_target_"])
    return partial(target, *arguments, **keywords) if node.get("_partial_") else target(*arguments, **keywords)


def find(name: str) -> Any:
    """Return the class or function with a dotted name, if a model file may name it."""
    module, _, attribute = name.rpartition(".")
    found = None
    if any(f"{module}.".startswith(f"{offered}.") for offered in _OFFERED):
        with suppress(ImportError):
            found = getattr(importlib.import_module(module), attribute, None)
    if not any(f"{getattr(found, '__module__', '')}.".startswith(f"{offered}.") for offered in _OFFERED):
        raise ModelFileError(
            f"{name if re.fullmatch(r'[a-zA-Z_.]{1,80}', name) else shown(name)} is not a class or function of "
            f"{', '.join(_OFFERED)}; a model file cannot name others, because it contains no code: move yours there"
        )
    return found


def _guess_kind(path: Path) -> str:
    """Describe what a file that is not in the safetensors format seems to be."""
    if path.suffix not in (".onnx", ".pt2") and (fault := describe_bad_download(path)) is not None:
        return f"it {fault}"
    if path.suffix == ".onnx":
        return "it is for onnxruntime; load the .safetensors file of the same model"
    if path.suffix == ".pt2":
        return "it is for torch.export.load; load the .safetensors file of the same model"
    if zipfile.is_zipfile(path):
        given = shlex.quote(f"ckpt_path={path}")
        return f"it looks like a training checkpoint; python -m vtm.export {given} out=model.safetensors"
    return "it is damaged or of another kind"

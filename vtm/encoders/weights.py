"""Read files of weights without running code that they may contain, and download published weights."""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from vtm.system.downloads import describe_bad_download

_HUB_TIMEOUT = 5.0  # seconds to wait for a connection
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys of training checkpoints, preferred first
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and DistributedDataParallel


def is_plain_name(model_name: str) -> bool:
    """Return whether a name can only stand for a model in timm, not for a folder or a model on the Hub.

    >>> is_plain_name("vit_large_patch16_224.augreg_in21k"), is_plain_name("hf-hub:timm/resnet18")
    (True, False)
    """
    return re.fullmatch(r"[\w.-]+", model_name, re.ASCII) is not None


def check_weights_file(path: str) -> None:
    """Check that a file is not a failed download.

    Raises:
        ValueError: if it is, such as an HTML page.
    """
    if (fault := describe_bad_download(path)) is not None:
        raise ValueError(f"encoder.checkpoint = {path} {fault}")


def read_weights(path: str) -> dict[str, Any]:
    """Read the state dict of a .safetensors file, or of a file written by `torch.save`.

    Of a training checkpoint, only the state dict is returned, averaged weights first; the prefixes of wrappers are
    removed from the names.

    Raises:
        ValueError: if the file is damaged, has no state dict, or has objects that could run code when they are loaded.
    """
    check_weights_file(path)
    try:
        if path.endswith(".safetensors"):
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that timm's training stores
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"encoder.checkpoint = {path} contains {found[1]}, which could run code when it is loaded; save only "
                "the tensors in it, or get the file as .safetensors"
            ) from error
        reason = (str(error).partition("WeightsUnpickler error:")[2] or str(error)).strip().partition("\n")[0]
        raise ValueError(
            f"encoder.checkpoint = {path} is damaged, or was not written by torch.save ({reason[:120]}); download the "
            "file again"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in _NESTED if content.get(key) is not None), content)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"encoder.checkpoint = {path} has no weights: expected tensors by name")
    return {_clean(name): value for name, value in content.items()}


def _clean(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


@contextmanager
def fetching(weights: str) -> Iterator[None]:
    """Turn a failed download of published weights into an error with a remedy, without waiting for repeated attempts.

    Raises:
        RuntimeError: if the weights cannot be downloaded.
    """
    try:
        with offline_without_hub():
            yield
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"the weights {weights} cannot be found on this machine or downloaded ({reason}); download them elsewhere "
            "and give the file with encoder.checkpoint=<file>, or use encoder=vit_tiny_random, which needs none"
        ) from error


@contextmanager
def offline_without_hub() -> Iterator[None]:
    """Set huggingface_hub to its offline mode if its server cannot be reached; it would try again for a minute.

    A connection through a proxy is not tested.
    """
    server = urlsplit(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    if not before and not getproxies():
        try:
            socket.create_connection((server.hostname, server.port or 443), timeout=_HUB_TIMEOUT).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

"""Check the description in a model file, so that nothing is built that is too large or not implied by its weights."""

from __future__ import annotations

import json
import math
import threading
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Any, Literal, Union, Unpack, get_args, get_origin

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from vtm.encoders.weights import is_plain_name

_IN_JSON = (int, float, bool, str, dict, list, Sequence, Mapping)
_DEPTH = 20  # levels of nested lists and dictionaries
_LARGEST = {
    "num_frames": 86_400, "stride": 86_400, "image_size": 2048, "frames_per_step": 256, "depth": 1000, "depths": 1000,
    "layers": 1000,
}  # fmt: skip
_LARGEST_OTHER = 10**6
_LARGEST_MODEL_ARGS = 2**14  # of the arguments of a timm model, which may all be numbers of layers
_SEEDS = 2**63
_PLACES = ("checkpoint_path", "cache_dir", "device")  # arguments of timm, with those that begin with `pretrained`
_CLIP = 2**33  # numbers in the features of a clip
_TOKENS = 2**18  # of a frame, or its pixels
_BLOCKS = 1000  # entries of a list
_TORCH_PARTS, _TORCH_NUMBERS = 10_000, 20 * 10**9  # of an encoder; the largest in timm has 2000 and 4 * 10⁹


def parse_json(text: str) -> dict[str, Any]:
    """Parse a description.

    Raises:
        ValueError: if it is not an object in JSON, is nested too deeply, or has a key twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"expected JSON of at most {_DEPTH} levels") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object in JSON, got {shown(content)}")
    level: list[Any] = [content]
    for _ in range(_DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, list | dict)
            for item in (node if isinstance(node, list) else [*node.keys(), *node.values()])
        ]
        if broken := [text for text in level if isinstance(text, str) and not _is_unicode(text)]:
            raise ValueError(f"expected text in Unicode, got {shown(broken[0])}")
        if not level:
            return content
    raise ValueError(f"expected JSON of at most {_DEPTH} levels")


def check_description(
    description: Mapping[str, Any], weights: Mapping[str, Tensor], parts: Collection[str], find: Callable[[str], Any]
) -> None:
    """Check the types and sizes in a description before anything is built.

    Args:
        description: parsed description.
        weights: tensors of the file, which limit the sizes.
        parts: keys that it must have.
        find: function that returns the class or function with a name, or raises an error.

    Raises:
        ValueError: if a part is missing, has another type than the constructor that takes it, or is too large.
    """
    if missing := [name for name in parts if name not in description]:
        raise ValueError(f"expected the entries {', '.join(parts)}, got none for {', '.join(missing)}")
    kinds: dict[str, Any] = {"encoder_key": str, "motion": bool, "num_outputs": int, "classes": list[str] | None}
    kinds |= {"task": Literal["classification", "regression"], "training": dict}
    for name, kind in kinds.items():
        _check_type(name, description[name], kind)
    facts: dict[str, Any] = {"experiment": str, "seed": int, "epoch": int, "commit": str | None}
    facts |= dict.fromkeys(("versions", "val", "test"), dict | None)
    for name, kind in facts.items():
        _check_type(f"training.{name}", description["training"].get(name), kind)
    for name in ("encoder", "model", "protocol"):
        _check_node(name, description[name], find)
        _check_numbers(name, description[name])
    _check_host(description["model"].get("host"))
    outputs, classes, bias = description["num_outputs"], description["classes"], weights.get("head.bias")
    if classes and len(classes) != outputs:
        raise ValueError(f"expected {outputs} classes, one for each output, got {len(classes)}")
    if bias is None or not all(value.is_floating_point() for value in weights.values()):
        raise ValueError("expected weights in floating point with a head.bias")
    if bias.shape != (outputs,) or (description["task"] == "regression" and outputs != 1):
        raise ValueError(f"expected num_outputs to be the number of outputs of the weights, got {outputs}")
    if isinstance(blocks := description["model"].get("channels"), list) and len(blocks) > len(weights):
        raise ValueError(f"expected at most {len(weights)} blocks, as the file has {len(weights)} tensors")


def check_encoder(encoder: Mapping[str, Any], *, trusted: bool) -> None:
    """Check that only the user chooses files or repositories that the weights of an encoder come from.

    Args:
        encoder: node of the encoder.
        trusted: whether the user has given the file of its weights.

    Raises:
        ValueError: if the description names such a place.
    """
    arguments = encoder.get("model_args") or {}
    if places := [name for name in arguments if name in _PLACES or name.startswith("pretrained")]:
        raise ValueError(f"a model file cannot tell timm where weights are, but sets {', '.join(places)[:80]!a}")
    if encoder.get("processor") is not None:
        raise ValueError("a model file cannot choose what is opened, but encoder.processor names a processor file")
    name, checkpoint = encoder.get("model_name"), encoder.get("checkpoint")
    if trusted or (checkpoint is None and (name is None or is_plain_name(name))):
        return
    source = f"the model {name!a}, which is not in timm itself" if checkpoint is None else f"the weights {checkpoint!a}"
    raise ValueError(
        f"its encoder has {source}; a model file cannot choose what is opened, so pass the file of the encoder's "
        "weights: --encoder-checkpoint FILE of a command, or load(…, encoder_checkpoint=…)"
    )


def _check_host(host: Any) -> None:
    """Check that a ready transformer of a network is built without opening a file or a repository."""
    if not isinstance(host, dict):
        return
    settings = host.get("config") or {}
    places = [name for name in settings if name in _PLACES or name.startswith("pretrained")]
    if host.get("pretrained") or places:
        raise ValueError(
            f"a model file cannot choose what is opened, but model.host sets {', '.join(places)[:80] or 'pretrained'!a}"
        )


def check_clip(frames: int, tokens: int, channels: int) -> None:
    """Check that the features of a clip fit in memory.

    Raises:
        ValueError: if they are too large.
    """
    if frames * tokens * channels > _CLIP or tokens > _TOKENS:
        raise ValueError(
            f"expected clips of at most {_CLIP} numbers and {_TOKENS} tokens per frame, got {frames} frames of "
            f"{tokens} tokens of {channels} channels"
        )


def check_shapes(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that weights belong to a network, which may be on the meta device.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        expected, found = (tuple(part[name].shape) if name in part else None for part in (wanted, weights))
        if expected != found:
            raise ValueError(f"expected the weight {name} of shape {expected}, got {found}")


@contextmanager
def limited_size() -> Iterator[None]:
    """Stop the creation of modules in a block as soon as they have more parts or parameters than any real model.

    Raises:
        ValueError: if they do.
    """
    left, numbers, thread = _TORCH_PARTS, _TORCH_NUMBERS, threading.get_ident()

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal left, numbers
        if threading.get_ident() != thread or part is None:
            return
        left -= 1
        numbers -= part.numel() if isinstance(part, Tensor) else 0
        if left < 0 or numbers < 0:
            raise ValueError(
                f"it has more than {_TORCH_PARTS} layers and tensors, or more than {_TORCH_NUMBERS} parameters"
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_node(name: str, node: Any, find: Callable[[str], Any]) -> None:
    """Check a node of a configuration: its target, and the types of its arguments as the target declares them."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ValueError(f"expected {name} as an object with a _target_, got {shown(node)}")
    _check_type(f"{name}._partial_", node.get("_partial_", False), bool)
    target = find(node["_target_"])
    if not isinstance(target, type) and not node.get("_partial_"):
        raise ValueError(f"expected {name} as a class, or a function with _partial_: true, got {node['_target_']}")
    hints = _hints(target)
    for key, value in node.items():
        path = f"{name}.{key}"
        if key.startswith("_"):
            continue
        if key not in hints:
            raise ValueError(f"{path} is unknown")
        if isinstance(value, dict) and "_target_" in value and _is_object(hints[key]):
            _check_node(path, value, find)
        elif _has_target(value):
            raise ValueError(f"expected {path} without a _target_, got {shown(value)}")
        else:
            _check_type(path, value, hints[key])


def _hints(target: Any) -> dict[str, Any]:
    """Return the declared types of the arguments of a class or a function, with those of a TypedDict unpacked."""
    constructor: Any = target
    if isinstance(target, type):
        constructor = target.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(constructor)
    for name, hint in list(hints.items()):
        if get_origin(hint) is Unpack:
            hints |= typing.get_type_hints(get_args(hint)[0])
            del hints[name]
    hints.pop("return", None)
    return hints


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _check_type(name: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
        raise ValueError(f"expected {name} as {wanted}, got {shown(value)}")


def _is_object(kind: Any) -> bool:
    """Return whether a declared type is, or may be, one that JSON does not have, so that a node describes its value."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(map(_is_object, arguments))
    return (origin or kind) not in (*_IN_JSON, None, NoneType, Literal, Any)


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value in JSON is of a declared type; types that JSON does not have are only null or objects."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (bool, str, dict):
        return isinstance(value, kind)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict)
    return kind is Any


def _check_numbers(name: str, value: Any) -> None:
    """Check that the numbers and lists in a part are within bounds."""
    key = name.rpartition(".")[2]
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(f"{name}.{key}", item)
    elif isinstance(value, list):
        if len(value) > _BLOCKS:
            raise ValueError(f"expected {name} with at most {_BLOCKS} entries, got {len(value)}")
        for item in value:
            _check_numbers(name, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        free = ".model_args." in name
        largest = _SEEDS - 1 if key == "seed" else _LARGEST.get(key, _LARGEST_MODEL_ARGS if free else _LARGEST_OTHER)
        smallest = -largest if free or key == "seed" or isinstance(value, float) else 0
        if not math.isfinite(value) or not smallest <= value <= largest:
            raise ValueError(f"expected {name} in [{smallest}, {largest}], got {shown(value)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"expected each key once, got {shown(next(name for name in names if names.count(name) > 1))}")
    return content


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """Format a value of unknown size for a message."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of over 20 digits"
    return ascii(value) if len(str(value)) < 80 else f"{ascii(value)[:80]}…"

"""Checks of the overrides of a command, with suggestions where Hydra only reports an unknown key or option."""

from __future__ import annotations

import difflib
import inspect
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtm.cli.arguments import split_arguments
from vtm.cli.quoting import quoted_override
from vtm.system.names import did_you_mean, fold

_HINTS = {"num_classes": "the number of classes is read from the annotations"}
_WORDS_TOO = ("trainer.devices", "merging.saliency_weight")  # numbers by default, but words are valid, too
_OPTIONAL_GROUPS = ("ablation", "experiment")
_OTHER_CONFIG = {"--config-path", "--config-name", "--config-dir", "--experimental-rerun"}  # unknown here


@contextmanager
def check_overrides(config_dir: Path, config_name: str) -> Iterator[None]:
    """Exit with one sentence per mistake on the command line, before Hydra reads it; put its flags first."""
    if lines := near_misses(sys.argv[1:], config_dir, config_name):
        sys.exit("\n".join(lines))
    given = split_arguments(sys.argv[1:])
    sys.argv[1:] = [*given.flags, *given.words]  # argparse would not find overrides behind a flag that others precede
    yield


def near_misses(arguments: list[str], config_dir: Path, config_name: str) -> list[str]:
    """Return one sentence for each wrong flag or override.

    An override is wrong if it is not of the form key=value, its key or option is unknown, its value is not a number or
    a truth value where the configuration has one, or it has several values and the command is not a sweep.

    Args:
        arguments: arguments of the command line.
        config_dir: folder of the configuration groups.
        config_name: name of the primary configuration.
    """
    _, words, names, lines = split_arguments(arguments)
    if names & _OTHER_CONFIG or any(word.lstrip("+").startswith("hydra.searchpath") for word in words):
        return lines
    lines += [_not_an_override(word, config_dir) for word in words if "=" not in word and word[:1] != "~"]
    parsed = []
    for word in words:
        try:
            parsed += [OverridesParser.create().parse_override(word)] if "=" in word or word[:1] == "~" else []
        except HydraException:
            key, _, value = word.partition("=")
            lines.append(f"{word!r} cannot be parsed; quote the value, also for the shell: {_quoted(key, value)}")
    sweeps = "--multirun" in names or any(word.startswith("hydra.mode=") for word in words)
    overrides = [override for override in parsed if not override.key_or_group.startswith("hydra")]
    options = {
        path.relative_to(config_dir).as_posix(): sorted(file.stem for file in path.glob("*.yaml"))
        for path in config_dir.rglob("*")
        if path.is_dir()
    }
    chosen = [f"{o.key_or_group}={value}" for o in overrides for value in _values(o) if value in _known(o, options)]
    keys = {}
    if any(override.key_or_group not in options for override in overrides):  # composing takes a moment
        keys = dict.fromkeys(options) | _keys(config_dir, config_name, chosen)
    for override in overrides:
        name = override.key_or_group
        if override.is_sweep_override() and not sweeps:
            lines.append(
                f"{override.input_line!r} has several values; add -m to run each of them, or quote it as one, also for "
                f"the shell: {_quoted(name, str(override.input_line).partition('=')[2])}"
            )
        elif name in options:
            lines += _wrong_options(override, options[name])
        elif keys and not (override.is_add() or override.is_force_add() or override.is_delete()):
            if name not in keys:
                lines.append(_unknown_key(override, keys, options))
            else:
                found = [_wrong_kind(override, value, keys[name]) for value in _values(override)]
                lines += [line for line in found if line]
    return lines


def _not_an_override(word: str, config_dir: Path) -> str:
    meant = (config_dir / "experiment" / f"{word}.yaml").is_file()
    remedy = f"such as experiment={word}" if meant else "and quote a value with spaces: 'key=\"two words\"'"
    return f"{word!r} is not an override; write key=value, {remedy}"


def _quoted(key: str, value: str) -> str:
    """Return an override to paste into a shell, with single quotation marks also where the shell needs none."""
    text = quoted_override(key, value)
    quoted = shlex.quote(text)
    return quoted if quoted != text else f"'{text}'"


def _values(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    listed = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)
    return list(override.sweep_iterator()) if override.value_type in listed else []


def _wrong_options(override: Override, options: list[str]) -> list[str]:
    """Describe each choice of a group that is not one of its options."""
    name, expected = override.key_or_group, f"expected one of {', '.join(options)}"
    if override.is_delete():
        left_out = f"{override.input_line!r} leaves out a group that is needed; {expected}"
        return [] if name in _OPTIONAL_GROUPS else [left_out]
    lines = []
    for value in _values(override):
        given = override.input_line if not isinstance(value, str) else None
        for option in value if isinstance(value, list) and value else [value]:
            if not isinstance(option, str):
                lines.append(f"{given!r} is not an option; {expected}")
            elif option not in options:
                near = [f"{name}={close}" for close in _close(option, options, cutoff=0.7)]
                lines.append(_unknown(f"{name}={option}", near, expected))
    return lines


def _unknown_key(override: Override, keys: dict[str, Any], options: dict[str, list[str]]) -> str:
    """Describe a key that the configuration does not have, with those that resemble it and can be set."""
    name = override.key_or_group
    parent, _, last = name.rpartition(".")
    if (group := parent.replace(".", "/")) in options and keys.get(parent, parent) is None:
        choices = " or ".join(f"{group}={option}" for option in options[group] if option != "none")
        return f"{name!r} is unknown, because {parent} is null; add {choices}"
    place = parent or "trainer"  # most arguments that people add are those of Lightning's Trainer
    arguments = _arguments(keys.get(place))
    if last in arguments and f"{place}.{last}" not in keys:
        return _unknown(name, [f"+{place}.{last}={str(override.input_line).partition('=')[2]}"], "")
    near = _near(name, sorted(keys)) or [f"+{place}.{argument}" for argument in _close(last, arguments)]
    return _unknown(name, near, _HINTS.get(last, "--cfg job shows all keys, and +key=value adds one"))


def _arguments(node: Any) -> list[str]:
    """Return the names of the optional arguments of what a part of the configuration builds."""
    if not (isinstance(node, dict) and isinstance(target := node.get("_target_"), str)):
        return []
    try:
        parameters = inspect.signature(get_object(target)).parameters.items()
        return [name for name, parameter in parameters if parameter.default is not parameter.empty]
    except (HydraException, ImportError, ValueError, TypeError):  # Hydra reports a target that does not exist
        return []


def _known(override: Override, options: dict[str, list[str]]) -> list[str]:
    return options.get(override.key_or_group, [])


def _keys(config_dir: Path, config_name: str, chosen: list[str]) -> dict[str, Any]:
    """Return all dotted keys and values of the configuration that the valid choices compose."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            return dict(_dotted(OmegaConf.to_container(compose(config_name, overrides=chosen), resolve=False)))
    except (HydraException, OmegaConfBaseException):  # the choices do not fit together; Hydra reports which
        return {}


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield f"{prefix}{key}", value
        yield from _dotted(value, f"{prefix}{key}.")


def _near(name: str, keys: list[str]) -> list[str]:
    """Return known keys that resemble an unknown one: beside it, in another place, or where it has no place."""
    parent, _, last = name.rpartition(".")
    ends: dict[str, list[str]] = {}
    for key in keys:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    beside = [end for end in ends if (f"{parent}.{end}" if parent else end) in keys]
    if close := _close(last, beside):
        return [f"{parent}.{close[0]}" if parent else close[0]]
    if close := difflib.get_close_matches(name, keys, n=1, cutoff=0.9) or ends.get(last, [])[:3]:
        return close
    elsewhere = [] if parent in keys else difflib.get_close_matches(last, ends, n=1, cutoff=0.85)
    return [key for end in elsewhere for key in ends[end]][:3]


def _close(name: str, candidates: list[str], *, cutoff: float = 0.8) -> list[str]:
    alike = [candidate for candidate in candidates if fold(candidate) == fold(name)]
    return alike[:1] or difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)


def _unknown(name: str, near: list[str], otherwise: str) -> str:
    hint = did_you_mean(name, near, there="the configuration")
    return f"{name!r} is unknown; {hint or otherwise}"


def _wrong_kind(override: Override, value: Any, usual: Any) -> str | None:
    """Describe a value that is not a number or truth value where one is expected; ranges are checked elsewhere."""
    name = override.key_or_group
    if name in _WORDS_TOO or not isinstance(usual, int | float) or not isinstance(value, str | int | float):
        return None
    if isinstance(usual, bool):
        kind, fits = "true or false", not isinstance(value, str)
    else:
        whole = isinstance(usual, int)
        kind, fits = f"a {'whole ' * whole}number", type(value) is int or (type(value) is float and not whole)
    if fits or "${" in str(value):
        return None
    given = f"{name}={value}" if override.is_sweep_override() else override.input_line  # with its quotation marks
    return f"{given}: expected {kind}, such as {str(usual).lower()}"

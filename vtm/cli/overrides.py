"""Checks of the overrides of a command, with suggestions where Hydra only reports an unknown key or option."""

from __future__ import annotations

import difflib
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
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vtm.cli.quoting import quoted_override
from vtm.system.names import did_you_mean, fold

_OTHER_CONFIG = ("--config", "-cp", "-cn", "-cd", "hydra.searchpath")  # flags that add configurations unknown here
_HINTS = {"num_classes": "the number of classes is read from the annotations"}
_FLAGS_WITH_A_WORD = ("--cfg", "-c", "--package", "-p", "--info", "-i")
_WORDS_TOO = ("trainer.devices", "merging.saliency_weight")  # numbers by default, but words are valid, too


@contextmanager
def check_overrides(config_dir: Path, config_name: str) -> Iterator[None]:
    """Exit with one sentence per mistake on the command line, before Hydra reads it."""
    if lines := near_misses(sys.argv[1:], config_dir, config_name):
        sys.exit("\n".join(lines))
    yield


def near_misses(arguments: list[str], config_dir: Path, config_name: str) -> list[str]:
    """Return one sentence for each wrong override.

    An override is wrong if it is not of the form key=value, its key or option is unknown, or its value is not a number
    or a truth value where the configuration has one.

    Args:
        arguments: arguments of the command line; flags are skipped.
        config_dir: folder of the configuration groups.
        config_name: name of the primary configuration.
    """
    if any(argument.startswith(_OTHER_CONFIG) for argument in arguments):
        return []
    flags = zip(["", *arguments], arguments, strict=False)
    words = [word for flag, word in flags if word[:1] != "-" and flag not in _FLAGS_WITH_A_WORD]
    lines = [_not_an_override(word, config_dir) for word in words if "=" not in word and word[0] != "~"]
    overrides = []
    for word in words:
        try:
            overrides += [OverridesParser.create().parse_override(word)] if "=" in word else []
        except HydraException:
            key, _, value = word.partition("=")
            lines.append(f"{word!r} cannot be parsed; quote the value, also for the shell: {_quoted(key, value)}")
    overrides = [override for override in overrides if not override.key_or_group.startswith("hydra")]
    groups = {path.relative_to(config_dir).as_posix(): path for path in config_dir.rglob("*") if path.is_dir()}
    options = {name: sorted(file.stem for file in path.glob("*.yaml")) for name, path in groups.items()}
    chosen = [f"{o.key_or_group}={value}" for o in overrides for value in _values(o) if value in _known(o, options)]
    keys = {}
    if any(override.key_or_group not in options for override in overrides):  # composing takes a moment
        keys = _keys(config_dir, config_name, chosen) | dict.fromkeys(options)
    for override in overrides:
        name = override.key_or_group
        if name in options:
            lines += [
                _unknown(
                    f"{name}={value}",
                    _close(f"{name}={value}", [f"{name}={option}" for option in options[name]]),
                    f"expected one of {', '.join(options[name])}",
                )
                for value in _values(override)
                if isinstance(value, str) and value not in options[name]
            ]
        elif keys and not (override.is_add() or override.is_force_add() or override.is_delete()):
            if name not in keys:
                hint = _HINTS.get(name.rpartition(".")[2], "--cfg job shows all keys, and +key=value adds one")
                lines.append(_unknown(name, _near(name, sorted(keys)), hint))
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
    """Return known keys that resemble an unknown one: by the whole name, else by the last part."""
    if close := _close(name, keys):
        return close
    ends: dict[str, list[str]] = {}
    for key in keys:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    return [key for end in _close(name.rpartition(".")[2], list(ends)) for key in ends[end]][:3]


def _close(name: str, candidates: list[str]) -> list[str]:
    alike = [candidate for candidate in candidates if fold(candidate) == fold(name)]
    return alike[:1] or difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)


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

"""Say what is wrong with a command in one sentence: the near miss of a misspelt override, or what vtm refuses.

Hydra itself only says that a key or an option is unknown, and shows every other error with a stack trace.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf

_PLAIN = (FileNotFoundError, NotADirectoryError, PermissionError)  # which name the file and what is wrong with it


@contextmanager
def explained(config_dir: Path, config_name: str) -> Iterator[None]:
    """Run a command; where it fails, add a line for each override that looks misspelt, to Hydra's own message."""
    try:
        yield
    except SystemExit as stop:
        if stop.code == 1:
            for line in near_misses(sys.argv[1:], config_dir, config_name):
                print(line, file=sys.stderr)
        raise


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """Leave the program with just the message of an error that vtm itself raises, which says what to do.

    Errors from elsewhere keep their stack trace; with HYDRA_FULL_ERROR=1 all do.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while isinstance(error, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        last = traceback.extract_tb(cause.__traceback__)[-1]
        meant = (last.line or "").startswith("raise ")  # and not a mistake of our own, whose place one wants to see
        ours = meant and Path(last.filename).is_relative_to(Path(__file__).parent)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (ours or isinstance(cause, _PLAIN)):
            raise
        sys.exit(str(cause))


def near_misses(arguments: list[str], config_dir: Path, config_name: str) -> list[str]:
    """Return a sentence for each override whose key or option is unknown.

    Args:
        arguments: of the command line; flags are passed over.
        config_dir: the folder of the groups.
        config_name: the primary configuration.
    """
    try:
        overrides = [OverridesParser.create().parse_override(a) for a in arguments if "=" in a and a[0] != "-"]
    except HydraException:  # not an override at all; Hydra's message shows where
        return []
    groups = {path.relative_to(config_dir).as_posix(): path for path in config_dir.rglob("*") if path.is_dir()}
    options = {name: sorted(file.stem for file in path.glob("*.yaml")) for name, path in groups.items()}
    chosen = [f"{o.key_or_group}={value}" for o in overrides for value in _values(o) if value in _known(o, options)]
    keys = set(_keys(config_dir, config_name, chosen)) | set(options)
    lines = []
    for override in overrides:
        name = override.key_or_group
        if name in options:
            lines += [
                _sentence(f"{name}={value}", [f"{name}={option}" for option in options[name]])
                for value in _values(override)
                if isinstance(value, str) and value not in options[name]
            ]
        elif not (override.is_add() or override.is_delete() or name.startswith("hydra") or name in keys):
            lines.append(_sentence(name, sorted(keys)))
    return [line for line in lines if line]


def _values(override: Override) -> list[Any]:
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _known(override: Override, options: dict[str, list[str]]) -> list[str]:
    return options.get(override.key_or_group, [])


def _keys(config_dir: Path, config_name: str, chosen: list[str]) -> Iterator[str]:
    """List the dotted keys of the configuration that the valid choices give."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        config = OmegaConf.to_container(compose(config_name, overrides=chosen), resolve=False)
    yield from _dotted(config)


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")


def _sentence(name: str, candidates: list[str]) -> str | None:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.8)
    return f"{name!r} is unknown; did you mean {near[0]!r}?" if near else None

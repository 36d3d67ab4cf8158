"""Build a compressor from its name and overrides on a command line, such as `dyto budget=4.0`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from vtm.cli.overrides import near_misses


def build_compressor(words: Sequence[str], config_dir: Path) -> partial[Any]:
    """Build the compressor that a file of a folder describes.

    Args:
        words: name of the file without its suffix, and overrides `key=value`.
        config_dir: folder of the files.

    Raises:
        ValueError: if there is no such file, it has no such key, or a value is not of the right kind.
    """
    name, *overrides = words
    known = sorted(path.stem for path in config_dir.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{name!r} is not a compressor; expected one of {', '.join(known)}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        keys = [str(key) for key in compose(name) if not str(key).startswith("_")]
    for word in overrides:
        key, equals, _ = word.partition("=")
        if not equals or key not in keys:
            expected = f"key=value with a key of {', '.join(keys)}" if keys else "no overrides"
            raise ValueError(f"{word!r} cannot be set for the compressor {name}; expected {expected}")
    if mistakes := near_misses(list(overrides), config_dir, name):
        raise ValueError("; ".join(mistakes))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        compressor: partial[Any] = instantiate(compose(name, overrides=list(overrides)))
    return compressor

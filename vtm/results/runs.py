"""Read what runs left: `results.json`, and how Hydra composed their settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from vtm.results.record import read_results

_NO_SETTINGS = (  # how and where a run was done, rather than what was done
    "run_dir", "logger", "published", "ablation", "hydra",
    "data.root", "data.num_workers", "data.source.address", "data.source.cache", "data.source.cache_gb",
)  # fmt: skip
_TRAINING = "  job:\n    name: train\n"  # in what Hydra writes of a run of train.py, and not of another command


@dataclass(frozen=True)
class Run:
    """One run that has been evaluated.

    Attributes:
        folder: of the run.
        checkpoint: `best` or `last`.
        content: of `results.json`.
        hydra: how it was composed, `.hydra/hydra.yaml`; empty where that is not there.
    """

    folder: Path
    checkpoint: str
    content: Mapping[str, Any]
    hydra: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        return int(self.content["seed"])

    @property
    def test(self) -> Mapping[str, Any]:
        """Return the evaluation on the test videos."""
        test: Mapping[str, Any] = self.content["test_last" if self.checkpoint == "last" else "test"]
        return test

    @property
    def val(self) -> Mapping[str, Any]:
        """Return the evaluation on the validation videos; empty where there is none."""
        val: Mapping[str, Any] = self.content.get("val_last" if self.checkpoint == "last" else "val", {})
        return val

    @property
    def cost(self) -> Mapping[str, Any]:
        """Return what the test took; empty where it was not measured."""
        cost: Mapping[str, Any] = self.test.get("cost", {})
        return cost

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the configuration by dotted keys, without what says where a run was and what it reported to."""
        config = self.content["config"]
        found = {}
        for key, value in _leaves(config):
            inside = isinstance(value, str) and value.startswith(str(config.get("run_dir", "\0")))
            if not (inside or self._resumes(key) or _is_elsewhere(key)):
                found[key] = value
        return found

    @property
    def overrides(self) -> list[str]:
        """Return the keys that were overridden, groups too, in the order of the command line."""
        texts = self.hydra.get("overrides", {}).get("task", [])
        keys = [re.sub(r"^[+~]+", "", text.split("=", 1)[0]).split("@")[0] for text in texts]
        return [key for key in keys if not (key == "seed" or self._resumes(key) or _is_elsewhere(key))]

    def setting(self, key: str) -> Any:
        """Look up an option of a group, or else a dotted key; None if there is no such thing."""
        choices = self.hydra.get("runtime", {}).get("choices", {})
        if key in choices:
            return choices[key]
        node: Any = self.content["config"]
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def _resumes(self, key: str) -> bool:
        """Say whether a setting is just that the run was interrupted."""
        return key == "ckpt_path" and bool(self.content["config"].get("train", False))


class Unfinished(NamedTuple):
    """Say which run cannot be reported on, and why."""

    folder: Path
    reason: str


def read_runs(paths: Iterable[Path], *, checkpoint: str) -> tuple[list[Run], list[Unfinished]]:
    """Find all runs below folders, each once.

    Args:
        paths: folders, which are searched, and files such as `results.json`.
        checkpoint: whose test counts, `best` or `last`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is no `results.json`, or there is nothing to report on.
    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for file in dict.fromkeys(file.resolve() for path in paths for file in _files(path)):
        if not file.exists():
            begun = any(file.parent.glob("checkpoints/*.ckpt"))
            unfinished.append(Unfinished(file.parent, "no results.json" if begun else "not begun: no epoch finished"))
            continue
        run = _read(file, checkpoint)
        wanted = "test_last" if checkpoint == "last" else "test"
        if wanted in run.content:
            runs.append(run)
        else:
            unfinished.append(Unfinished(file.parent, f"no {wanted} in results.json"))
    return runs, unfinished


def _files(path: Path) -> Iterator[Path]:
    """List the results, written or still to come, by number where folders have numbers."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give run folders, sweep folders or results.json files"
        )
    found = set(path.rglob("results.json"))
    for composed in path.rglob(".hydra/hydra.yaml"):
        if _TRAINING in composed.read_text(encoding="utf-8"):
            found.add(composed.parents[1] / "results.json")
    if not found:
        raise ValueError(f"{path}: expected runs of train.py in this folder, found no results.json and no .hydra")
    yield from sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sort 2 before 10, and a before b."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d*)", str(path))]


def _read(file: Path, checkpoint: str) -> Run:
    content = read_results(file)
    hydra: Any = {}
    if (composed := file.parent / ".hydra" / "hydra.yaml").is_file():
        hydra = OmegaConf.to_container(OmegaConf.load(composed), resolve=False)
    return Run(file.parent, checkpoint, content, hydra.get("hydra", {}))


def _is_elsewhere(key: str) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _NO_SETTINGS)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node

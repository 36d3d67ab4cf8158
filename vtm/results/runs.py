"""Find the runs in folders, and read their `results.json` and the settings that Hydra composed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from vtm.results.old_names import ADDED_SETTINGS
from vtm.results.questions import as_run
from vtm.results.record import read_results
from vtm.system.names import explain_path

_IGNORED = (  # settings that do not change the result of a run
    "run_dir", "logger", "published", "ablation", "hydra", "callbacks.finite_loss",
    "data.root", "data.num_workers", "data.source.address", "data.source.cache", "data.source.cache_gb",
    "questions.root", "questions.allow_missing", "device_map", "compressor.seed",
)  # fmt: skip
_COMMANDS = ("  job:\n    name: train\n", "  job:\n    name: qa\n")  # in the files that Hydra writes, for these only


@dataclass(frozen=True)
class Run:
    """A run that has been tested.

    Attributes:
        folder: folder of the run.
        checkpoint: checkpoint whose test is used, `best` or `last`.
        content: content of `results.json`, that of questions in the form of `as_run`.
        hydra: content of `.hydra/hydra.yaml`; empty if the file does not exist.
    """

    folder: Path
    checkpoint: str
    content: Mapping[str, Any]
    hydra: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.content["seed"])

    @property
    def test(self) -> Mapping[str, Any]:
        """Evaluation on the test videos."""
        test: Mapping[str, Any] = self.content["test_last" if self.checkpoint == "last" else "test"]
        return test

    @property
    def is_of_questions(self) -> bool:
        """Whether questions about videos were answered, not videos classified."""
        return self.test.get("level") == "question"

    @property
    def val(self) -> Mapping[str, Any]:
        """Evaluation on the validation videos; empty if there is none."""
        val: Mapping[str, Any] = self.content.get("val_last" if self.checkpoint == "last" else "val", {})
        return val

    @property
    def cost(self) -> Mapping[str, Any]:
        """Speed, memory and tokens of the test; empty if not measured."""
        cost: Mapping[str, Any] = self.test.get("cost", {})
        return cost

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Configuration by dotted keys, without paths, loggers and other settings that do not change the result."""
        config = self.content["config"]
        settings: dict[str, Any] = dict(ADDED_SETTINGS)
        for key, value in _leaves(config):
            inside = isinstance(value, str) and value.startswith(str(config.get("run_dir", "\0")))
            if not (inside or self._resumes(key) or _is_ignored(key)):
                settings[key] = value
        return settings

    @property
    def overrides(self) -> list[str]:
        """Keys of the overridden settings and groups, in the order of the command line."""
        texts = self.hydra.get("overrides", {}).get("task", [])
        keys = [re.sub(r"^[+~]+", "", text.split("=", 1)[0]).split("@")[0] for text in texts]
        return [key for key in keys if not (key == "seed" or self._resumes(key) or _is_ignored(key))]

    def setting(self, key: str) -> Any:
        """Return the chosen option of a group, or the value of a dotted key; None if there is neither."""
        choices = self.hydra.get("runtime", {}).get("choices", {})
        if key in choices:
            return choices[key]
        node: Any = self.content["config"]
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def _resumes(self, key: str) -> bool:
        """Return whether a setting only resumes the run."""
        return key == "ckpt_path" and bool(self.content["config"].get("train", False))


class Unfinished(NamedTuple):
    """A run without the wanted test, and the reason."""

    folder: Path
    reason: str


def read_runs(paths: Iterable[Path], *, checkpoint: str) -> tuple[list[Run], list[Unfinished]]:
    """Read all runs in folders, each once.

    Args:
        paths: folders to search, or files such as `results.json`.
        checkpoint: checkpoint whose test is used, `best` or `last`.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if a file is not a `results.json`, or a folder contains no runs.
    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for file in dict.fromkeys(file.resolve() for path in paths for file in _files(path)):
        if not file.exists():
            started = any(file.parent.glob("checkpoints/*.ckpt")) or any(file.parent.glob("answers.jsonl"))
            unfinished.append(Unfinished(file.parent, "no results.json" if started else "no epoch was finished"))
            continue
        run = _read(file, checkpoint)
        wanted = "test_last" if checkpoint == "last" else "test"
        if wanted in run.content:
            runs.append(run)
        else:
            unfinished.append(Unfinished(file.parent, f"no {wanted} in results.json"))
    return runs, unfinished


def _files(path: Path) -> Iterator[Path]:
    """Yield the paths of results, also of unfinished runs, in natural order of the folder names."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist{explain_path(path)}; give run folders, sweep folders or results.json files"
        )
    files = set(path.rglob("results.json"))
    for composed in path.rglob(".hydra/hydra.yaml"):
        text = composed.read_text(encoding="utf-8")
        if any(command in text for command in _COMMANDS):
            files.add(composed.parents[1] / "results.json")
    if not files:
        raise ValueError(f"{path}: expected runs of train.py or vtm.qa, found no results.json and no .hydra in it")
    yield from sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[str, int]]:
    """Return a sort key that puts 2 before 10."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d*)", str(path))]


def _read(file: Path, checkpoint: str) -> Run:
    content = read_results(file)
    if content.get("level") == "question":
        content = as_run(content)
    hydra: Any = {}
    if (composed := file.parent / ".hydra" / "hydra.yaml").is_file():
        hydra = OmegaConf.to_container(OmegaConf.load(composed), resolve=False)
    return Run(file.parent, checkpoint, content, hydra.get("hydra", {}))


def _is_ignored(key: str) -> bool:
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _IGNORED)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node

"""`results.json`, what came out of a run: its fields, written and read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vtm.results.old_names import with_current_names
from vtm.system.atomic import write_atomically

NOTE = "The test sets differ from ours and from one another: each paper scored the videos that it still had."


_PARTS = ("experiment", "task", "seed", "commit", "config", "published")


def describe_run(
    *, experiment: str, seed: int, published: Mapping[str, Mapping[str, Any]], source: Path
) -> dict[str, Any]:
    """Collect what `results.json` says of a run besides its scores, its task and its configuration.

    Args:
        experiment: name of the experiment.
        seed: of the run.
        published: figures of others, as `ResultsWriter` describes them.
        source: a file of the code that runs, for its commit.
    """
    import torch  # which takes seconds, and reading results does without it

    return {
        "experiment": experiment,
        "task": None,
        "seed": seed,
        "commit": source_commit(source),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # says which CUDA, which the package's version does not
            **{name: importlib.metadata.version(name) for name in ("lightning", "timm", "vtm")},
        },
        "config": None,
        "published": {"note": NOTE, "figures": published} if published else {"figures": {}},
    }


def write_results(path: Path, run: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `results.json` in one step.

    Args:
        path: of the file.
        run: what `describe_run` gives, with task and configuration.
        scores: each evaluation under its name: `val`, `test`, `val_last`, `test_last`.
    """
    write_atomically(path, json.dumps({**run, **scores}, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read `results.json`; the targets in its configuration get their present names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected the results of a run, found no JSON ({error}); remove it or test again"
        ) from error
    lacking = [part for part in _PARTS if part not in content] if isinstance(content, dict) else list(_PARTS)
    if lacking:
        raise ValueError(f"{path}: expected the results of a run, found nothing under {', '.join(lacking)}")
    found: dict[str, Any] = content | {"config": with_current_names(content["config"])}
    return found


def score_of(run: Mapping[str, Any], stage: str, epoch: int) -> dict[str, Any] | None:
    """Find the score of an epoch in `results.json`, without the lists of videos and of classes."""
    for name in (stage, f"{stage}_last"):
        if name in run and run[name]["epoch"] == epoch:
            omitted = ("missing_ids", "cost", "details", "per_class")
            return {key: value for key, value in run[name].items() if key not in omitted}
    return None


def ids_sha256(ids: Iterable[str]) -> str:
    """Hash the ids of the evaluated videos, whatever their order: equal hashes mean equal test sets.

    To compute it elsewhere: `sort` the ids as UTF-8, join them by newlines without a last one, SHA-256.

    >>> ids_sha256(["b", "a"])[:8] == ids_sha256(["a", "b"])[:8]
    True
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def source_commit(path: Path) -> str | None:
    """Name the commit that a source file belongs to.

    Returns:
        The hash, with `+dirty` if the checkout has changes or files that are not in it; None if git does not know the
        file, as in an installed package.
    """
    try:
        _git(path.parent, "ls-files", "--error-unmatch", path.name)
        commit = _git(path.parent, "rev-parse", "HEAD")
        return f"{commit}+dirty" if _git(path.parent, "status", "--porcelain") else commit
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

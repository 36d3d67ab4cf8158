"""Collect the fields of `results.json`, write it, and read it."""

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
    """Collect the fields of `results.json` that describe a run, with task and configuration still None.

    Args:
        experiment: name of the experiment.
        seed: seed of the run.
        published: published figures, as described by `ResultsWriter`.
        source: file of the running code, whose commit is recorded.
    """
    import torch  # slow to import, and not needed to read results

    return {
        "experiment": experiment,
        "task": None,
        "seed": seed,
        "commit": source_commit(source),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # with the CUDA version, which the package's version lacks
            **{name: importlib.metadata.version(name) for name in ("lightning", "timm", "av", "vtm")},
        },
        "config": None,
        "published": {"note": NOTE, "figures": published} if published else {"figures": {}},
    }


def write_results(path: Path, run: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `results.json` in one step.

    Args:
        path: file to write.
        run: fields of `describe_run`, with task and configuration.
        scores: evaluations by name: `val`, `test`, `val_last`, `test_last`.
    """
    write_atomically(path, json.dumps({**run, **scores}, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read `results.json`, with the current name of every `_target_` in its configuration.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a `results.json`, or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: expected the results of a run, but it is not JSON ({error}); delete it or test again"
        ) from error
    missing = [part for part in _PARTS if part not in content] if isinstance(content, dict) else list(_PARTS)
    if missing:
        raise ValueError(
            f"{path}: expected the results of a run, but it lacks {', '.join(missing)}; delete it or test again"
        )
    results: dict[str, Any] = content | {"config": with_current_names(content["config"])}
    return results


def validation_score(run_dir: Path) -> float | None:
    """Return the validation score in the `results.json` of a run folder; None without one, as after `fast_dev_run`."""
    path = run_dir / "results.json"
    score: float | None = read_results(path).get("val", {}).get("value") if path.is_file() else None
    return score


def score_of(run: Mapping[str, Any], stage: str, epoch: int) -> dict[str, Any] | None:
    """Return the evaluation of an epoch in `results.json`, without its long fields; None if there is none."""
    for name in (stage, f"{stage}_last"):
        if name in run and run[name]["epoch"] == epoch:
            omitted = ("missing_ids", "cost", "details", "per_class")
            return {key: value for key, value in run[name].items() if key not in omitted}
    return None


def ids_sha256(ids: Iterable[str]) -> str:
    """Hash the ids of the evaluated videos in any order: equal hashes mean equal test sets.

    The hash is the SHA-256 of the ids, sorted and joined by newlines, in UTF-8.

    >>> ids_sha256(["b", "a"])[:8] == ids_sha256(["a", "b"])[:8]
    True
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def source_commit(path: Path) -> str | None:
    """Return the commit that a source file belongs to.

    Returns:
        The hash, with `+dirty` if the checkout has uncommitted changes or untracked files; None if git does not track
        the file, as in an installed package.
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

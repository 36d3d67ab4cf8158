"""`results.json`, what came out of a run: its fields, written and read."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def score_of(run: Mapping[str, Any], stage: str, epoch: int) -> dict[str, Any] | None:
    """Find the score of an epoch in `results.json`, without the lists of videos."""
    for name in (stage, f"{stage}_last"):
        if name in run and run[name]["epoch"] == epoch:
            return {key: value for key, value in run[name].items() if key not in ("missing_ids", "cost", "details")}
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

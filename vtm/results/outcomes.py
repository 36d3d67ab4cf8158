"""Read what a run got right and wrong, item by item, from the predictions beside its `results.json`."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vtm.results.record import ids_sha256
from vtm.results.runs import Run
from vtm.system.cells import from_cell
from vtm.tasks import lower_is_better


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of one test, by ascending id of its items.

    Attributes:
        ids: ids of the items.
        targets: right answer of each item, as it is written in the file.
        clusters: cluster of each item; the items of a cluster are dependent.
        scores: (n,) float64, 1 for right and 0 for wrong, or squared errors; the metric is their mean.
    """

    ids: Sequence[str]
    targets: Sequence[str]
    clusters: Sequence[str]
    scores: Tensor


def read_outcomes(run: Run) -> Outcomes:
    """Read the outcomes of a run for the checkpoint whose test is used.

    Raises:
        FileNotFoundError: if the run has no predictions of this checkpoint.
        ValueError: if the predictions are damaged or belong to another test.
    """
    path = _predictions(run)
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row.get("id") or "")
    try:
        ids = [from_cell(row["id"]) for row in rows]
        targets = [row["target"] for row in rows]
        if lower_is_better(run.test["metric"]):
            scores = [(float(row["prediction"]) - float(row["target"])) ** 2 for row in rows]
        else:
            scores = [float(row["prediction"] == row["target"]) for row in rows]
        clusters = [row.get("cluster") or row["id"] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the columns id, target and prediction of every test video, but the file is damaged "
            f"({error!r}); test again"
        ) from error
    outcomes = Outcomes(ids, targets, clusters, torch.tensor(scores, dtype=torch.float64))
    _check(outcomes, run, path)
    return outcomes


def _predictions(run: Run) -> Path:
    """Return the file with the predictions of the checkpoint whose test is used."""
    names = {"best": "predictions.csv", "last": "predictions_last.csv"}
    path = run.folder / names.pop(run.checkpoint)
    if path.is_file():
        return path
    ((other, name),) = names.items()
    kept = "earlier versions did not write it, so"
    if (run.folder / name).is_file():
        kept = f"only {name} of the {other} epoch is there, so add --checkpoint {other}, or"
    raise FileNotFoundError(
        f"{path}, with the predictions of the {run.checkpoint} epoch, does not exist; "
        f"{kept} test again with train=false ckpt_path={run.folder}/checkpoints/{run.checkpoint}.ckpt "
        "and report on the new folder"
    )


def _check(outcomes: Outcomes, run: Run, path: Path) -> None:
    """Check that the outcomes are those of `results.json`."""
    value, expected = float(outcomes.scores.mean()), run.test["value"]
    same = math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-9) or (math.isnan(value) and math.isnan(expected))
    if ids_sha256(outcomes.ids) != run.test["ids_sha256"] or not same:
        raise ValueError(
            f"{path}: expected the predictions of the test in results.json, {run.test['n']} items with "
            f"{run.test['metric']} {expected:.6g}, got {len(outcomes.ids)} items with {value:.6g}; test again"
        )

"""Read what a run got right and wrong, item by item, from the predictions or answers beside its `results.json`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtm.results.record import ids_sha256
from vtm.results.runs import Run
from vtm.system.cells import from_cell
from vtm.tasks import lower_is_better


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of one test, by ascending id of its items: videos, or questions about videos.

    Attributes:
        ids: ids of the items.
        targets: right answer of each item, as it is written in the file.
        clusters: cluster of each item, such as the video of a question; the items of a cluster are dependent.
        scores: (n,) float64, 1 for right and 0 for wrong, or squared errors; the metric is their mean.
        over_orders: (n,) float64, mean over the rotations of the options of a question; None if they were not tried.
    """

    ids: Sequence[str]
    targets: Sequence[str]
    clusters: Sequence[str]
    scores: Tensor
    over_orders: Tensor | None


def read_outcomes(run: Run) -> Outcomes:
    """Read the outcomes of a run for the checkpoint whose test is used.

    Raises:
        FileNotFoundError: if the run has no predictions of this checkpoint.
        ValueError: if the predictions are damaged or belong to another test.
    """
    path = _answers(run) if run.is_of_questions else _predictions(run)
    try:
        outcomes = _read_answers(path, run) if run.is_of_questions else _read_predictions(path, run)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another test than results.json ({error!r}); test again") from error
    value, expected = float(outcomes.scores.mean()), run.test["value"]
    same = math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-9) or (math.isnan(value) and math.isnan(expected))
    if ids_sha256(outcomes.ids) != run.test["ids_sha256"] or not same:
        raise ValueError(
            f"{path}: expected the test of results.json, {run.test['n']} items with {run.test['metric']} "
            f"{expected:.6g}, got {len(outcomes.ids)} items with {value:.6g}; test again"
        )
    return outcomes


def _read_predictions(path: Path, run: Run) -> Outcomes:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: from_cell(row["id"]))
    if lower_is_better(run.test["metric"]):
        scores = [(float(row["prediction"]) - float(row["target"])) ** 2 for row in rows]
    else:
        scores = [float(row["prediction"] == row["target"]) for row in rows]
    return Outcomes(
        ids=[from_cell(row["id"]) for row in rows],
        targets=[row["target"] for row in rows],
        clusters=[row.get("cluster") or row["id"] for row in rows],
        scores=torch.tensor(scores, dtype=torch.float64),
        over_orders=None,
    )


def _read_answers(path: Path, run: Run) -> Outcomes:
    """Read the answers to the questions whose right answer is public, of every order of their options."""
    content = path.read_bytes()
    orders: dict[str, dict[int, dict[str, Any]]] = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():  # a killed process leaves an incomplete line
        answer = json.loads(line)
        if answer["hash"] != run.test["hash"]:
            raise ValueError(f"an answer has the hash {answer['hash'][:8]}, the results have {run.test['hash'][:8]}")
        if answer["answer"] is not None:
            orders.setdefault(answer["id"], {}).setdefault(answer["order"], answer)
    ids = sorted(id for id, answers in orders.items() if 0 in answers)
    # a question with fewer options than others begins again with its first order, as in the results
    rows = [[float(orders[id][k % len(orders[id])]["correct"]) for k in range(run.test["orders"])] for id in ids]
    scores = torch.tensor(rows, dtype=torch.float64)
    return Outcomes(
        ids=ids,
        targets=[str(orders[id][0]["answer"]) for id in ids],
        clusters=[orders[id][0]["video"] for id in ids],
        scores=scores[:, 0],
        over_orders=scores.mean(1) if run.test["orders"] > 1 else None,
    )


def _answers(run: Run) -> Path:
    """Return the file with the answers to questions."""
    path = run.folder / "answers.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; answer the questions again: {run.content['command']}")
    return path


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

"""Write the predictions of a test, and the counts of its confused classes, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vtm.system.atomic import write_atomically
from vtm.system.cells import as_cell
from vtm.tasks.predictions import Predictions


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a row for each video: `id`, `target` and `prediction`.

    For classes, these are names, and a column `probability_<class name>` for each class follows; the prediction is
    empty if a probability is NaN. For a regression, they are numbers. The last column, `cluster`, is only written for
    videos that are not independent.
    """
    names = predictions.class_names
    columns = ["id", "target", "prediction"]
    rows: list[list[str]] = []
    if names is None:
        for id, target, value in zip(predictions.ids, predictions.targets, predictions.scores, strict=True):
            rows.append([id, _number(target), _number(value)])
    else:
        columns += [f"probability_{name}" for name in names]
        predicted = ["" if index is None else names[index] for index in predictions.classes()]
        videos = zip(predictions.ids, predictions.targets, predicted, predictions.scores, strict=True)
        rows = [[id, names[int(target)], name, *map(_number, scores)] for id, target, name, scores in videos]
    if predictions.clusters is not None:
        columns.append("cluster")
        rows = [[*row, cluster] for row, cluster in zip(rows, predictions.clusters, strict=True)]
    _write(path, [columns, *rows])


def write_confusion(path: Path, predictions: Predictions) -> None:
    """Write how many videos of each class, by row, were predicted as each class, by column."""
    names = predictions.class_names or ()
    counts = predictions.confusion()
    _write(path, [["target", *names], *([name, *row] for name, row in zip(names, counts, strict=True))])


def _write(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO(newline="")
    cells = ([as_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))  # ids may be names of other bytes


def _number(value: float) -> str:
    """Write a number with the nine digits that a float32 has.

    >>> _number(2.3), _number(1234567.0), _number(1e-12)
    ('2.3', '1234567', '1e-12')
    """
    return f"{value:.9g}"

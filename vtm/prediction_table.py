"""Predictions as a CSV file that grows by a row at a time, and goes on where it was when a job was stopped."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Self

from vtm.prediction import Prediction

COLUMNS = ("video", "prediction", "probability", "windows", "seconds", "damaged", "model")


class PredictionTable:
    """Add predictions to a file, which is made where there is none.

    Args:
        path: of the file.
        model: names what predicts; a file holds the predictions of one model.

    Attributes:
        videos: that are in the file already.

    Raises:
        ValueError: if the file is something else, or of another model; then it is left as it is.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.model = model
        content = path.read_bytes() if path.exists() else b""
        self._whole = content.rfind(b"\n") + 1  # bytes; a job that was killed may have left half a row
        header = f"{','.join(COLUMNS)}\n".encode()
        if not (header.startswith(content) or content.startswith(header)):
            raise ValueError(f"{path}: expected a table with the columns {', '.join(COLUMNS)}; give another file")
        text = content[: self._whole].decode(errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if other := {str(row["model"]) for row in rows} - {model}:
            raise ValueError(
                f"{path} has predictions of the model {min(other)}, but this one is {model}; give another file"
            )
        self.videos = {row["video"] for row in rows}

    def __enter__(self) -> Self:
        """Open the file, and take away half a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        self._file.truncate(self._whole)
        self._rows = csv.writer(self._file, lineterminator="\n")
        if not self._whole:
            self._rows.writerow(COLUMNS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def add(self, prediction: Prediction) -> None:
        """Write one row, to the disk."""
        label = prediction.label
        answer = (prediction.score, "") if label is None else (label, f"{prediction.score:.6f}")
        seconds = f"{prediction.seconds:.3f}"
        facts = (len(prediction.windows), seconds, int(prediction.damaged), self.model)
        self._rows.writerow((prediction.video, *answer, *facts))
        self._file.flush()

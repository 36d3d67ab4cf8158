"""A CSV table of predictions that processes on any number of machines can share and continue.

A process locks each video that it takes with a byte of the table (`ByteLocks`), so it must not open a table twice.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from vtm.inference.prediction import Prediction
from vtm.inference.predictor import Predictor
from vtm.system.atomic import write_atomically
from vtm.system.cells import as_cell, from_cell
from vtm.system.locks import ByteLocks, is_in_place, take
from vtm.video.decoding import VideoError

COLUMNS = ("video", "prediction", "probability", "windows", "seconds", "short", "damaged", "error", "model")
_ERROR, _MODEL = COLUMNS.index("error"), COLUMNS.index("model")


class PredictionTable:
    """A table of predictions, created if it does not exist, with the videos that are still to be predicted.

    Its columns are `COLUMNS` and, for the classes after the best one, `prediction_2`, `probability_2` and so on. A
    regression has its value in `prediction`, and no `probability`. `short` and `damaged` are 0 or 1, as defined by
    `Prediction`. A video that could not be predicted has only an `error`, and can be retried.

    Args:
        path: file of the table.
        model: ID of the model; a table holds the predictions of one model.
        classes: number of classes in a row, best first; 1 for a regression.
        again: videos of this command, to predict or retry; their errors are removed when the table is opened, unless
            another process has it open.

    Attributes:
        videos: videos in the part of the table that has been read.
        known: number of the videos of this command among them.
        locked: whether the file system has locks; without them only one process at a time may open the table.

    Raises:
        ValueError: if the file is not a table of this model; then it is not changed.
        OSError: if the file cannot be written or no longer exists; the rows in it are complete.
    """

    def __init__(self, path: Path, model: str, *, classes: int, again: Collection[Path] = ()) -> None:
        self.path = path
        self.model = model
        self.columns = COLUMNS + tuple(f"{name}_{n}" for n in range(2, classes + 1) for name in COLUMNS[1:3])
        self.videos: set[str] = set()
        self.known = 0
        self.locked = True
        self._classes = classes
        self._again = {str(video) for video in again}
        self._end = 0  # of the rows that were read, in bytes

    def __enter__(self) -> Self:
        """Open the file."""
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path}: expected a file, but it is a folder or a device; give another name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ready = False
        while not ready:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._locks = ByteLocks(self._file, self.path)
            try:
                ready = self._prepare()
            finally:
                if not ready:
                    os.close(self._file)
        if self._locks.refusal is not None:
            self.locked = False
            reason = f"{self.path} is on a file system without locks ({self._locks.refusal.strerror})"
            sys.stderr.write(f"{reason}: only one process at a time may write it\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        os.close(self._file)

    def take(self, videos: Iterable[Path]) -> Iterator[Path]:
        """Yield the videos that are not in the table and that no other process has taken, until none is left."""
        for name in take(deque(map(str, videos)), self._locks, is_done=self._has):
            yield Path(name)
            self._locks.release(name)
        self._read()

    def add(self, prediction: Prediction) -> None:
        """Add the row of a predicted video."""
        best = prediction.top(self._classes)
        if prediction.label is None:
            scores: list[Any] = [prediction.score, ""]
        else:
            scores = [cell for name, probability in best for cell in (name, f"{probability:.6f}")]
        facts = (len(prediction.segments), f"{prediction.seconds:.3f}", int(prediction.short), int(prediction.damaged))
        self._append((prediction.video, *scores[:2], *facts, "", self.model, *scores[2:]))

    def add_failure(self, video: Path, reason: str) -> None:
        """Add the row of a video that could not be predicted."""
        known = {"video": str(video), "error": " ".join(reason.split()), "model": self.model}
        self._append([known.get(name, "") for name in self.columns])

    def _prepare(self) -> bool:
        """Prepare the open file; return False if this or another process has replaced it by a new file."""
        self.videos, self.known, self._end = set(), 0, 0
        with self._locks.opening() as alone:
            if alone:
                rows = self._read()
                kept = [row for row in rows if not (row[_ERROR] and from_cell(row[0]) in self._again)]
                if len(kept) < len(rows):
                    content = "".join(map(_line, [self.columns, *kept])).encode(errors="surrogateescape")
                    write_atomically(self.path.resolve(), content)
        if not is_in_place(self._file, self.path):
            return False
        with self._writing():
            if not self._end:
                self._write(self.columns)
        return True

    def _has(self, video: str) -> bool:
        """Return whether a video is in the table by now."""
        if video not in self.videos:
            self._read()
        return video in self.videos

    def _read(self) -> list[list[str]]:
        """Read the new rows of the file."""
        size = os.fstat(self._file).st_size
        if size < self._end:
            raise ValueError(
                f"{self.path}: expected at least the {self._end} bytes that were read before, found {size}; restore "
                "the file and run the same command to continue"
            )
        content = os.pread(self._file, size - self._end, self._end)
        header = _line(self.columns).encode()
        if not self._end and not (header.startswith(content) or content.startswith(header)):
            found = content.partition(b"\n")[0][:200].decode(errors="backslashreplace")
            raise ValueError(
                f"{self.path}: expected a table with the columns {', '.join(self.columns)}, found {found!r}; choose "
                "another file or, for a table of predictions, the --top that it was written with"
            )
        end = content.rfind(b"\n") + 1
        while content.count(b'"', 0, end) % 2:  # a line that ends within a quoted name is not a row
            end = content.rfind(b"\n", 0, end - 1) + 1
        text = content[0 if self._end else len(header) : end].decode(errors="surrogateescape")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        for row in rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.path}: expected rows of {len(self.columns)} columns, found {row}; correct this row"
                )
            if row[_MODEL] != self.model:
                raise ValueError(
                    f"{self.path} has predictions of the model {row[_MODEL]}, but this model is {self.model}; choose "
                    "another file"
                )
        new = {from_cell(row[0]) for row in rows} - self.videos
        self.videos |= new
        self.known += len(new & self._again)
        self._end += end
        return rows

    def _append(self, row: Sequence[Any]) -> None:
        with self._writing():
            self._write([as_cell(cell) if isinstance(cell, str) else cell for cell in row])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the table for writing, and remove the incomplete row that a killed process may have left."""
        with self._locks.exclusive():
            if not is_in_place(self._file, self.path):
                raise FileNotFoundError(
                    f"{self.path} was moved, deleted or replaced during writing; put it back to continue with the "
                    "same command, which otherwise starts a new table"
                )
            self._read()
            os.ftruncate(self._file, self._end)
            yield
            self._read()

    def _write(self, row: Sequence[Any]) -> None:
        left = _line(row).encode(errors="surrogateescape")
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise OSError(
                f"{self.path}: {error.strerror}; all rows in it are complete; solve the problem and run the same "
                "command to continue"
            ) from error


def predict_videos(
    model: Predictor,
    videos: Sequence[Path],
    table: PredictionTable | None,
    *,
    stream: bool,
    seen: Callable[[Path, float, float], None],
) -> Iterator[tuple[Path, Prediction | str]]:
    """Predict videos and add them to a table; yield each with its prediction, or with the reason why it failed.

    Args:
        model: model to use.
        videos: videos to predict; with a table, only those that are not in it and that no other process has taken.
        table: open table, or None.
        stream: whether to predict each video in one pass, see `Predictor.predict`.
        seen: progress callback, called with the video, the seconds done and its length.
    """
    for video in videos if table is None else table.take(videos):
        answer: Prediction | str
        try:
            answer = model.predict(video, stream=stream, seen=partial(seen, video))
        except torch.OutOfMemoryError:
            answer = f"out of memory on {model.device}; use --device cpu"
        except (VideoError, OSError, ValueError) as error:
            answer = str(error).removeprefix(f"{video}: ")
        if table is not None and isinstance(answer, str):
            table.add_failure(video, answer)
        elif table is not None and isinstance(answer, Prediction):
            table.add(answer)
        yield video, answer


def _line(row: Sequence[Any]) -> str:
    """Format a row as a line of CSV."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)  # its line end "\r\n" makes it quote names with either character
    return text.getvalue().removesuffix("\r\n") + "\n"

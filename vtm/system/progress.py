"""Show the progress of a long job: a bar on a terminal, otherwise lines at intervals, which are also logged."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm  # type: ignore[import-untyped]

_log = logging.getLogger(__name__)


class Progress:
    """Progress display of finished items, whose rate and remaining time ignore the items of earlier runs.

    Args:
        label: description of the job.
        total: number of items, including those that an earlier run has finished.
        done: number of items that an earlier run has finished.
        every_seconds: minimum interval between two lines in seconds.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, every_seconds: float = 10.0) -> None:
        self.label = label
        self.total = total
        self.done = self._first = done
        self.every_seconds = every_seconds
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=label, miniters=0) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        """Return the progress display."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, leaving its last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def print(self, text: str) -> None:
        """Print a result, above the bar."""
        with nullcontext() if self._bar is None else tqdm.external_write_mode(sys.stdout):
            _write_line(text, sys.stdout)

    def advance(self, note: str = "", *, to: int | None = None) -> None:
        """Update the number of finished items.

        Args:
            note: text to append to the line.
            to: number of items finished now; None adds one.
        """
        before, self.done = self.done, self.done + 1 if to is None else to
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(self.done - before)
        now = time.monotonic()
        if now - self._last >= self.every_seconds or before < self.done == self.total:
            self._last = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = f", {timedelta(seconds=round((self.total - self.done) / rate))} left" if rate else ""
            line = f"{self.label}: {self.done} of {self.total}, {rate:.3g} per s{left}" + (note and f", {note}")
            _log.info(line)
            if self._bar is None:
                _write_line(line, sys.stderr)


def _write_line(text: str, stream: TextIO) -> None:
    """Write a line in one call, so that lines of several processes do not mix; `print` makes two with `python -u`."""
    stream.write(text + "\n")
    stream.flush()

"""Show how far a long job is: a bar on a terminal, a line every so often anywhere else and in the log of the run."""

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
    """Count finished items; rate and remaining time are over those that took work.

    Args:
        label: What is being done.
        total: Items, finished ones of an earlier run included.
        done: Those of an earlier run.
        every_seconds: How long to be silent between two lines.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, every_seconds: float = 10.0) -> None:
        self.label = label
        self.total = total
        self.done = self._first = done
        self.every_seconds = every_seconds
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=label, miniters=0) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        """Show progress in a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.close()

    def print(self, text: str) -> None:
        """Print a result, above the bar."""
        with nullcontext() if self._bar is None else tqdm.external_write_mode(sys.stdout):
            _write_line(text, sys.stdout)

    def advance(self, note: str = "", *, to: int | None = None) -> None:
        """Count one more item.

        Args:
            note: What else to say of the state.
            to: How many items are finished now, if it is not one more.
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
    """Write a line in one piece, so that those of several processes do not mix; in `python -u`, `print` writes two."""
    stream.write(text + "\n")
    stream.flush()

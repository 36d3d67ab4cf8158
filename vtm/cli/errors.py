"""Errors of commands in one sentence; only faults of the program itself keep their stack trace."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtm.system.names import explain_path

_RAISED_IN_WORKER = re.compile(
    r'Caught \w+ in \w.*\n  File "(?P<file>[^"]+)", line \d+, in [^\n]*\n    raise [^\n]*\n(?:    [^\n]*\n)*'
    r"[\w.]+: (?P<message>.*)",
    re.DOTALL,
)  # the last frame of the stack trace that torch copies into the message of an error in a DataLoader worker
_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")
_TERMINATED = "killed by signal: Terminated"  # torch's message if a DataLoader worker received SIGTERM, too
_STOPS_EARLY = "lightning/pytorch/callbacks/early_stopping.py"  # raises RuntimeError for a metric that is not logged
_REQUEST = re.compile(r"[Tt]ried to allocate (?P<amount>[\d.]+ \w+)")


@contextmanager
def concise_errors() -> Iterator[None]:
    """End the program with only the message of an error, if the user can act on it.

    These are errors that vtm itself raises, also in a DataLoader worker, files that cannot be used, settings that a
    library refuses, and too little memory. Others keep their stack trace; with HYDRA_FULL_ERROR=1 all do.

    Warnings of vtm are printed in one sentence, too. SIGTERM unwinds the program as Ctrl-C does, with exit status 143.
    """
    try:
        with _plain_warnings(), _orderly_termination():
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sentence = None if os.environ.get("HYDRA_FULL_ERROR") == "1" else one_sentence(error)
        if sentence is None:
            raise
        sys.exit(sentence)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the key of a setting before the message of a library that refuses its value."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if _raised_by_us(error):
            raise
        raise ValueError(f"{key}: {' '.join(str(error).split())}") from error


def interruption(error: BaseException) -> int | None:
    """Return the exit status of an interrupted command: 130 for Ctrl-C, 143 for SIGTERM; None for other errors.

    >>> interruption(KeyboardInterrupt()), interruption(ValueError("wrong"))
    (130, None)
    """
    cause: BaseException | None = error
    while cause is not None:  # Lightning and wandb raise another exception from it
        if isinstance(cause, KeyboardInterrupt):
            return 130
        by_us = isinstance(cause, SystemExit) and cause.code == 143
        if by_us or type(cause).__name__ == "SIGTERMException" or _TERMINATED in str(cause):
            return 143
        cause = cause.__context__
    return None


def one_sentence(error: BaseException) -> str | None:
    """Return what is wrong and what to do, or None for errors that need a stack trace.

    >>> one_sentence(FileNotFoundError(2, "No such file or directory", "videos.csv"))
    'videos.csv: No such file or directory'
    >>> one_sentence(ZeroDivisionError("division by zero"))
    """
    cause = error
    while type(cause).__module__.startswith("hydra.") and cause.__cause__ is not None:  # of instantiation
        cause = cause.__cause__
    text, frames = str(cause), traceback.extract_tb(cause.__traceback__)
    if "OutOfMemoryError" in type(cause).__name__ or "can't allocate memory" in text:
        return _out_of_memory(text)
    if _TERMINATED in text:
        return "terminated by SIGTERM"
    if _WORKER_DIED.search(text):
        return f"{text.splitlines()[0].rstrip('. ')}; the usual cause is too little memory: lower data.num_workers"
    if found := _RAISED_IN_WORKER.match(text):
        return found["message"].strip() if _is_ours(found["file"]) else None
    if _raised_by_us(cause):
        return text
    if isinstance(cause, OSError) and (cause.filename or isinstance(cause, FileNotFoundError)):
        missing = isinstance(cause, FileNotFoundError) and isinstance(cause.filename, str)
        hint = explain_path(cause.filename) if missing else ""
        return f"{cause.filename}: {cause.strerror}{hint}" if cause.filename and cause.strerror else text
    if type(cause).__name__ == "MissingMandatoryValue":  # of omegaconf
        key = getattr(cause, "full_key", None)
        return f"{key} has no value: add {key}=…, or choose an experiment that sets it; --help lists them"
    refused_by_lightning = type(cause).__name__ == "MisconfigurationException"
    if cause is error and (refused_by_lightning or (frames and frames[-1].filename.endswith(_STOPS_EARLY))):
        return " ".join(text.split())
    if (key := re.search(r"full_key: (\S+)", str(error))) is None or cause is error:
        return None
    on_purpose = not any(_is_ours(frame.filename) for frame in frames) or (frames[-1].line or "").startswith("raise ")
    wrong = refused_by_lightning or isinstance(cause, TypeError | ValueError | ImportError)
    return f"{key[1]}: {' '.join(text.split())}" if wrong and on_purpose else None


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the warnings of vtm without file and line."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **options: Any) -> str:
        return f"warning: {message}\n" if _is_ours(filename) else usual(message, category, filename, *rest, **options)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """Exit by an exception at SIGTERM, unless the signal already has a handler."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    if signal.getsignal(signal.SIGTERM) is _terminate:  # otherwise Lightning has wrapped it, and stops after the batch
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(143)


def _out_of_memory(text: str) -> str:
    request = f" while allocating {found['amount']}" if (found := _REQUEST.search(text)) else ""
    return (
        f"out of memory{request}: lower data.batch_size and raise trainer.accumulate_grad_batches by the same factor, "
        "set trainer.precision=bf16-mixed, or raise merging.partition_factor"
    )


def _raised_by_us(error: BaseException) -> bool:
    """Return whether an error was raised by vtm on purpose."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_ours(frames[-1].filename) and (frames[-1].line or "").startswith("raise ")


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1])

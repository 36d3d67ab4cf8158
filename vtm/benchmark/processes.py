"""Measure each row in a separate process, so that it has its own memory and may be killed."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from vtm.benchmark.measuring import Result


def measured_apart(measure: Callable[..., Iterator[Result]], *arguments: Any) -> Result:
    """Return the last result of a measurement in a new process, with a problem if the process failed.

    Args:
        measure: function that yields results, each more complete than the last; it and its arguments can be pickled.
        arguments: arguments of `measure`.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, measure, arguments))
    process.start()
    sender.close()  # so that recv() raises EOFError when the process ends
    result = Result()
    try:
        while True:
            result = receiver.recv()
    except EOFError:
        process.join()
    finally:
        process.kill()  # if this process is interrupted
        process.join()
    return result if process.exitcode == 0 else replace(result, problem=_end(process.exitcode, result))


def _end(exit_code: int | None, result: Result) -> str:
    needed = "" if result.needed_bytes is None else f"; it needs about {result.needed_bytes / 1e9:.1f} GB"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the process was killed ({name}), probably because memory ran out{needed}"
    return f"the process failed; its error is printed above{needed}"


def _send_all(sender: Connection, measure: Callable[..., Iterator[Result]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
    for result in measure(*arguments):
        sender.send(result)

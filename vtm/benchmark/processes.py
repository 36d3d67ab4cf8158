"""Measure in a process of its own, whose memory is the row's alone, and whose end is not ours."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from vtm.benchmark.measuring import Result


def measured_apart(measure: Callable[..., Iterator[Result]], *arguments: Any) -> Result:
    """Return the last result that a process gives, with the problem if the process did not get to its end.

    Args:
        measure: yields results, each of which says more than the one before; can be pickled, as the arguments.
        arguments: of it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(sender, measure, arguments))
    process.start()
    sender.close()  # so that the process has the only one, and its end is the end of what comes
    result = Result()
    try:
        while True:
            result = receiver.recv()
    except EOFError:
        process.join()
    finally:
        process.kill()  # where we are interrupted
        process.join()
    return result if process.exitcode == 0 else replace(result, problem=_end(process.exitcode, result))


def _end(exit_code: int | None, result: Result) -> str:
    needed = "" if result.needed_bytes is None else f", it needs about {result.needed_bytes / 1e9:.1f} GB"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"the process was killed ({name}), most likely for want of memory{needed}"
    return f"the process failed, its error is printed above{needed}"


def _send_all(sender: Connection, measure: Callable[..., Iterator[Result]], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command that started us decides
    for result in measure(*arguments):
        sender.send(result)

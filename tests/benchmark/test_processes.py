"""A row whose process dies reports why."""

import os
import signal

from vtm.benchmark.measuring import Result
from vtm.benchmark.processes import measured_apart


def good(*results):
    yield from results


def killed(result):
    yield result
    os.kill(os.getpid(), signal.SIGKILL)


def failing():
    yield Result()
    raise RuntimeError("a bug")


def test_the_last_result_counts():
    assert measured_apart(good, Result(flop=1), Result(flop=1, seconds=2.0)) == Result(flop=1, seconds=2.0)


def test_the_needs_of_a_killed_process_are_returned():
    result = measured_apart(killed, Result(flop=3, needed_bytes=5 * 10**9))
    assert result.flop == 3
    assert result.problem == "the process was killed (SIGKILL), probably because memory ran out; it needs about 5.0 GB"


def test_an_error_is_shown_and_named(capfd):
    assert measured_apart(failing).problem == "the process failed; its error is printed above"
    assert "RuntimeError: a bug" in capfd.readouterr().err

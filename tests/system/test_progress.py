import logging
from types import SimpleNamespace

import pytest

from vtm.system import progress
from vtm.system.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_so_often_with_rate_and_remaining_time(clock, capsys, caplog):
    with caplog.at_level(logging.INFO), Progress("storing", 20, every_seconds=10) as job:
        for _ in range(20):
            clock[0] += 4
            job.advance("1 failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "storing: 3 of 20, 0.25 per s, 0:01:08 left, 1 failed"
    assert lines[-1] == "storing: 20 of 20, 0.25 per s, 0:00:00 left, 1 failed"
    assert len(lines) == 7
    assert [record.getMessage() for record in caplog.records] == lines


def test_results_are_printed_above_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with Progress("predicting", 2) as job:
        job.advance()
        job.advance("half of the second", to=1)
        job.print("a.mp4  x 0.9")
    said = capsys.readouterr()
    assert said.out.strip() == "a.mp4  x 0.9"
    assert "half of the second" in said.err


def test_a_line_is_written_in_one_piece(monkeypatch):
    written = []
    for name in ("stdout", "stderr"):
        stream = SimpleNamespace(write=written.append, flush=lambda: None, isatty=lambda: False)
        monkeypatch.setattr(progress.sys, name, stream)
    with Progress("predicting", 1) as job:
        job.print("a.mp4")
        job.advance()
    assert [line.partition(",")[0] for line in written] == ["a.mp4\n", "predicting: 1 of 1"]
    assert written[1].endswith("\n")


def test_what_an_earlier_run_did_counts_but_not_for_the_rate(clock, capsys):
    with Progress("storing", 1000, done=900, every_seconds=0) as job:
        clock[0] += 2
        job.advance()
    assert capsys.readouterr().err == "storing: 901 of 1000, 0.5 per s, 0:03:18 left\n"


def test_a_job_that_takes_long_is_heard_of_before_it_is_done(clock, capsys):
    with Progress("storing", 4) as job:
        clock[0] += 11
        job.advance("64 steps", to=0)
    assert capsys.readouterr().err == "storing: 0 of 4, 0 per s, 64 steps\n"

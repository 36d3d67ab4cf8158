"""Threads follow the idle cores, the environment and the run that is resumed."""

import multiprocessing
import time
from pathlib import Path

import pytest

from vtm.system import threads
from vtm.system.threads import choose_threads, idle_cores, usable_cores


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with four cores, of which the process may use 0 to 3, and no quota."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")


def set_busy(monkeypatch: pytest.MonkeyPatch, path: Path, *shares: float) -> None:
    """Let core i be busy for a share of the time; the cores from the fifth on belong to others."""
    seconds = [0]

    def write() -> None:
        lines = ["cpu 1 2 3 4"]
        for core, share in enumerate(shares):
            busy = round(share * seconds[0])
            lines.append(f"cpu{core} {1000 + busy} 5 7 {2000 + seconds[0] - busy} 3 0 0 0 0 0")
        path.write_text("\n".join([*lines, "intr 5"]), encoding="ascii")

    def sleep(_: float) -> None:
        seconds[0] += 100
        write()

    write()
    monkeypatch.setattr(threads, "_STAT", path)
    monkeypatch.setattr(threads.time, "sleep", sleep)


@pytest.mark.parametrize(
    ("shares", "idle"),
    [((0, 0, 0, 0), 4), ((1, 0, 0, 0), 3), ((1, 1, 1, 1), 1), ((0.1, 0.1, 0.1, 0.1), 4), ((0, 0, 1, 1, 0, 0), 2)],
)
def test_idle_cores_are_counted(
    shares: tuple[float, ...], idle: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_busy(monkeypatch, tmp_path / "stat", *shares)
    assert idle_cores() == idle


def test_the_quota_of_a_container_limits_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_busy(monkeypatch, tmp_path / "stat", 0, 0, 0, 0)
    for quota, cores in (("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("800000 100000", 4)):
        (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
        assert usable_cores() == idle_cores() == cores


def test_without_counts_the_load_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, "_STAT", tmp_path / "missing")
    for load, idle in ((0.1, 4), (1.2, 3), (9.0, 1)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert idle_cores() == idle


def test_threads_follow_the_idle_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_busy(monkeypatch, tmp_path / "stat", 0, 0, 0, 0)
    assert choose_threads() == (4, "")
    assert choose_threads(processes=2) == (2, "")
    assert choose_threads(processes=8) == (1, "")
    set_busy(monkeypatch, tmp_path / "stat", 1, 0, 0, 0)
    assert choose_threads() == (3, "threads: 3 (idle cores: 3 of 4; set OMP_NUM_THREADS for another number)")


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert choose_threads() == choose_threads(2) == (2, "")
    number, note = choose_threads(3)
    assert number == 2
    assert "the run so far had 3" in note


def test_a_resumed_run_keeps_its_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_busy(monkeypatch, tmp_path / "stat", 1, 1, 1, 0)
    assert choose_threads(4) == (4, "threads: 4 (as in the run so far)")
    assert choose_threads(2) == (2, "threads: 2 (as in the run so far)")
    number, note = choose_threads(16)  # of a larger machine
    assert number == 1
    assert "the run so far had 16" in note
    assert choose_threads(4, processes=2)[0] == 1


def _work(until: float) -> None:
    while time.monotonic() < until:
        pass


@pytest.mark.slow
def test_a_busy_core_of_this_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cores = usable_cores()
    until = time.monotonic() + 3
    workers = [multiprocessing.Process(target=_work, args=(until,)) for _ in range(cores)]
    for worker in workers:
        worker.start()
    time.sleep(0.5)
    assert idle_cores() == 1
    for worker in workers:
        worker.join()

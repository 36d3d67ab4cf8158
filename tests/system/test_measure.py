"""Times and peaks of memory count what they should."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vtm.system import measure
from vtm.system.measure import PeakMemory, device_name, median_seconds, synchronize

MIB = 1 << 20
LINUX = Path("/proc/self/clear_refs").exists()


class Clock:
    """A function whose calls take given durations on a fake clock."""

    def __init__(self, *durations: float) -> None:
        self.now, self.durations, self.calls = 0.0, list(durations), 0

    def __call__(self) -> None:
        self.now += self.durations[self.calls]
        self.calls += 1


def test_the_first_call_does_not_count_and_the_median_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0, 2.0, 50.0, 1.0)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    assert median_seconds(clock, device="cpu", repeats=3) == 2.0
    assert clock.calls == 4


def test_each_call_is_timed_between_two_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0, 1.0, 1.0)
    waits: list[float] = []

    def wait(device: torch.device | str) -> None:  # the device takes 4 more seconds to finish each call
        waits.append(clock.now)
        clock.now += 4.0 * (clock.calls - len(waits) // 2)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(measure, "synchronize", wait)
    assert median_seconds(clock, device="cuda", repeats=2) == 5.0
    assert len(waits) == 4


def test_a_cpu_needs_no_wait_and_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize("cpu")
    assert waited == []
    synchronize(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.skipif(not LINUX, reason="the system does not tell the peak of a process")
def test_the_peak_counts_memory_that_is_freed_again() -> None:
    code = (
        "import torch\n"
        "from vtm.system.measure import PeakMemory, return_freed_memory\n"
        "return_freed_memory()\n"
        "for _ in range(2):\n"  # also where the same memory was in use before
        "    with PeakMemory('cpu') as peak:\n"
        "        parts = [torch.ones((1 << 20) // 40) for _ in range(640)]\n"  # 64 MiB in parts that come from the heap
        "        del parts\n"
        "    print(peak.bytes)\n"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert len(printed) == 2
    for peak in map(int, printed):
        assert 60 * MIB < peak < 90 * MIB


@pytest.mark.skipif(not LINUX, reason="the system does not tell the peak of a process")
def test_what_is_held_before_does_not_count() -> None:
    held = torch.ones(64 * MIB // 4)
    with PeakMemory("cpu") as peak:
        held.sum()
    assert peak.bytes is not None
    assert peak.total is not None
    assert peak.total > 2**24  # at least the interpreter and torch
    assert 0 <= peak.bytes < 16 * MIB


def test_where_the_system_does_not_tell_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    with PeakMemory("cpu") as peak:
        pass
    assert peak.bytes is None


def test_on_a_gpu_the_peak_is_that_of_the_tensors_above_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: calls.append("allocated") or 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: calls.append("peak") or 350)
    with PeakMemory("cuda") as peak:
        calls.append("block")
    assert peak.bytes == 250
    assert calls == ["reset", "allocated", "block", "peak"]


def test_a_cpu_is_named_by_its_model_and_a_gpu_by_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda *_, **__: "processor\t: 0\nmodel name\t: Quick 5 @ 3GHz\nflags\t: a\n"
    )
    assert device_name("cpu") == "Quick 5 @ 3GHz"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {torch.device(device).index}")
    assert device_name(torch.device("cuda:1")) == "card 1"


def test_a_cpu_without_a_name_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.platform, "processor", lambda: "")
    monkeypatch.setattr(measure.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "processor\t: 0\n")
    assert device_name("cpu") == "arm64"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_is_waited_for_and_its_tensors_are_counted() -> None:
    matrix = torch.ones(4096, 4096, device="cuda")
    with PeakMemory("cuda") as peak:
        del matrix
        torch.empty(64 * MIB // 4, device="cuda")
    assert peak.bytes == 0  # the matrix that went was as large
    matrix = torch.ones(4096, 4096, device="cuda")
    product = median_seconds(lambda: matrix @ matrix, device="cuda", repeats=5)
    assert product > 2 * 4096**3 / 2e15  # what no card reaches: without waiting it is the time of a launch

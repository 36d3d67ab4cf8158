"""Measure the time and peak memory of calls on a device."""

from __future__ import annotations

import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # constants of malloc.h


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has finished its work; return immediately for a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], Any], *, device: torch.device | str, repeats: int) -> float:
    """Time calls one by one after a warm-up call, and return the median in seconds."""
    call()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def clock_seconds(device: torch.device | str) -> float:
    """Read the clock of a device in seconds, to take differences.

    On a CPU it is the CPU time of this process, which other processes do not change; for a GPU it is the wall time once
    its work is done.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    synchronize(device)
    return time.perf_counter()


def device_name(device: torch.device | str) -> str:
    """Return the name of the GPU, or the model of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # not Linux
        model = None
    return model[1].strip() if model else platform.processor() or platform.machine()


def return_freed_memory() -> None:
    """Make glibc return freed memory to the system immediately, until the process ends; allocations become slower.

    Otherwise memory that was freed before a block is reused inside it, and `PeakMemory` on a CPU does not count it.
    """
    with suppress(AttributeError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**17)
        libc.malloc_trim(0)


class PeakMemory:
    """Context manager that measures the largest increase of memory in a block, `with PeakMemory(device) as peak: …`.

    Attributes:
        bytes: increase in bytes, set after the block. On a GPU, memory of tensors in torch's allocator. On a CPU,
            resident memory of the process, which follows the memory of the tensors only after `return_freed_memory`.
            None if the system does not report it.
        total: the same, with the memory in use before the block.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.bytes: int | None = None
        self.total: int | None = None
        self._before: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _resident_peak(reset=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = (
            torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident_peak(reset=False)
        )
        if self._before is not None and after is not None:
            self.bytes, self.total = after - self._before, after


def _resident_peak(*, reset: bool) -> int | None:
    """Return the peak resident memory of this process in bytes since the last reset; None on systems other than Linux.

    Args:
        reset: first reset the peak to the memory in use.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if peak is None else 1024 * int(peak[1])

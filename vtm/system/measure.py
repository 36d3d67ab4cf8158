"""Time and memory of calls on a device, measured the same way wherever they are reported."""

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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was given; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], Any], *, device: torch.device | str, repeats: int) -> float:
    """Time calls one by one, after one that does not count, and return the median in seconds."""
    call()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def device_name(device: torch.device | str) -> str:
    """Name the GPU, or the model of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def return_freed_memory() -> None:
    """Have glibc give freed memory back to the system at once, until the process ends; allocations take longer then.

    Without it, memory that was freed before a block is used again within, and `PeakMemory` of a CPU misses it.
    """
    with suppress(AttributeError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**17)
        libc.malloc_trim(0)


class PeakMemory:
    """Measure by how much the memory in use rises at most within a block, `with PeakMemory(device) as peak: …`.

    Attributes:
        bytes: after the block. On a GPU of torch's allocator, of tensors alone. On a CPU the resident memory of the
            whole process, which is that of the tensors only after `return_freed_memory`. None where the system does not
            tell.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.bytes: int | None = None
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
        self.bytes = None if self._before is None or after is None else after - self._before


def _resident_peak(*, reset: bool) -> int | None:
    """Read the peak of this process's resident memory in bytes, since it was last reset to what is in use (Linux)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])

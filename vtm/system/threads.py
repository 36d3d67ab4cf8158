"""The number of threads of a job: as many as the machine has idle cores.

A thread of torch that shares its core with another job holds up all other threads at each operation, so two threads on
one idle core are several times slower than one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_SAMPLE_SECONDS = 0.25  # the kernel counts in hundredths of a second
_STAT = Path("/proc/stat")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def idle_cores() -> int:
    """Return how many of the usable cores are idle, at least 1; except on Linux, by the load of the last minute."""
    usable = usable_cores()
    if (before := _idle_and_total()) is None:
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return max(1, min(usable, usable - round(busy)))
    time.sleep(_SAMPLE_SECONDS)
    after = _idle_and_total()
    assert after is not None  # it could be read before
    idle = sum(
        (after[core][0] - before[core][0]) / max(1, after[core][1] - before[core][1])
        for core in before.keys() & after.keys()
    )
    return max(1, min(usable, round(idle)))


def choose_threads(trained_with: int | None = None, *, processes: int = 1) -> tuple[int, str]:
    """Choose the number of threads of each process of a job, and explain a choice that is not torch's own.

    A number that the environment sets (`OMP_NUM_THREADS`, as torchrun does) comes first, then that of the run that is
    resumed, whose sums it repeats bit by bit, then the idle cores.

    Args:
        trained_with: number of threads of the run that is resumed.
        processes: number of processes that share the cores.

    Returns:
        number of threads, and a sentence for the user or "".
    """
    differs = f"the run so far had {trained_with}, so sums may differ in their last digits"
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        threads = int(given)
        return threads, "" if trained_with in (None, threads) else f"threads: {threads} (OMP_NUM_THREADS; {differs})"
    usable = usable_cores()
    if trained_with is not None and trained_with * processes <= usable:
        return trained_with, f"threads: {trained_with} (as in the run so far)"
    idle = idle_cores()
    threads = max(1, idle // processes)
    if trained_with is not None:
        return threads, f"threads: {threads} ({differs})"
    reason = f"idle cores: {idle} of {usable}; set OMP_NUM_THREADS for another number"
    return threads, "" if idle == usable else f"threads: {threads} ({reason})"


def use_threads(trained_with: int | None = None) -> None:
    """Choose the number of torch's threads in this process, see `choose_threads`, and print a note for the user."""
    import torch  # slow to import

    threads, note = choose_threads(trained_with)
    torch.set_num_threads(threads)
    if note:
        print(note, file=sys.stderr, flush=True)


def _idle_and_total() -> dict[int, tuple[int, int]] | None:
    """Return the idle and the total ticks of each core that this process may use; None if the system does not count."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    cores = os.sched_getaffinity(0)
    ticks = {}
    for line in lines:
        name, *counts = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            values = [int(count) for count in counts[:8]]  # user, nice, system, idle, iowait, irq, softirq, steal
            ticks[int(name[3:])] = values[3] + values[4], sum(values)
    return ticks

"""Processes of a job: the rank and job of this one, and whether another one of this machine still runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple


def host_name() -> str:
    """Return the name of this machine without dots, for the names of partial files."""
    return socket.gethostname().replace(".", "_")


class ProcessRank(NamedTuple):
    """Rank of a process in its job."""

    local_rank: int  # index among the processes of the machine
    rank: int  # index among all processes
    world_size: int  # number of processes


def process_rank() -> ProcessRank:
    """Return the rank of this process from the variables of torchrun or SLURM; rank 0 of 1 without either."""
    names = (("LOCAL_RANK", "SLURM_LOCALID"), ("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"))
    local_rank, rank, world_size = (next((int(os.environ[n]) for n in pair if n in os.environ), None) for pair in names)
    return ProcessRank(local_rank or 0, rank or 0, world_size or 1)


def started_by_slurm() -> bool:
    """Return whether SLURM started this process as part of a job, not in an interactive shell."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def job_id() -> str | None:
    """Return an identifier that all processes of a SLURM job step or of a run of torchrun share; None without either.

    A requeued SLURM job keeps it, and so do the processes that torchrun restarts. It can be the name of a file.
    """
    if job := os.environ.get("SLURM_JOB_ID"):
        return ".".join([f"slurm-{job}", *filter(None, [os.environ.get("SLURM_STEP_ID")])])
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none" if --rdzv-id is not given
    return None if run == "none" else "torchrun-" + re.sub(r"[^\w.-]", "_", run)


def job_restarts() -> bool:
    """Return whether a job with the id of an earlier one is the same job; ids of torchrun may be used again."""
    return "SLURM_JOB_ID" in os.environ or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def process_namespace() -> str:
    """Return the host name and, on Linux, the namespace in which process ids of this process are valid.

    Containers of one machine can have its host name and still not see each other's processes.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def end_with_parent(parent: int, *, every_seconds: float = 0.5) -> None:
    """Kill this process as soon as its parent process has ended, which a thread checks.

    Args:
        parent: process id of the parent; it may have ended already.
        every_seconds: time between two checks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()


def start_time(pid: int) -> str | None:
    """Return when a process of this machine started, in a form only to compare; None if it does not run.

    >>> start_time(os.getpid()) is not None
    True
    """
    if Path("/proc/self/stat").is_file():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended; clock ticks since the machine started
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""The rank of this process in its job, and the name of its machine."""

from __future__ import annotations

import os
import socket
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

"""Which of the processes of a job this one is, and what its machine is called."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple


def host_name() -> str:
    """Name this machine in a word without dots, as the names of unfinished files do."""
    return socket.gethostname().replace(".", "_")


class ProcessRank(NamedTuple):
    """Say which of the processes of a job this one is."""

    local_rank: int
    rank: int
    world_size: int


def process_rank() -> ProcessRank:
    """Ask torchrun or SLURM, whichever started this process."""
    names = (("LOCAL_RANK", "SLURM_LOCALID"), ("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"))
    local_rank, rank, world_size = (next((int(os.environ[n]) for n in pair if n in os.environ), None) for pair in names)
    return ProcessRank(local_rank or 0, rank or 0, world_size or 1)


def started_by_slurm() -> bool:
    """Tell whether SLURM has started this process as one of a job, which an interactive shell is not."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")

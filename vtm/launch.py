"""Where a job runs: its folder, and its processes, one per device of this machine.

Lightning would do it by running the command line again; under a Hydra multirun each child then replays the whole sweep,
and with a sweeper that samples, each rank trains other hyper-parameters. Here the children read the configuration that
the parent has composed, and share its folder. Under torchrun or SLURM the processes are there already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple


def run_folder(name: str, train: bool, ckpt_path: str | None) -> str:
    """Name the folder of a job: a new one, or that of the run which a checkpoint resumes, where it still lies there.

    Args:
        name: of the experiment.
        train: whether the job trains; a mere test of a checkpoint gets a folder of its own.
        ckpt_path: `<folder>/checkpoints/<file>` to resume, or None.

    Raises:
        ValueError: if there is nothing to train and nothing to test, or the checkpoint is none.
        FileNotFoundError: if the checkpoint is not there.
    """
    if not train and ckpt_path is None:
        raise ValueError("train=false needs ckpt_path=<file>, the checkpoint to test")
    if ckpt_path is not None:
        if not Path(ckpt_path).is_file():
            raise FileNotFoundError(f"ckpt_path={ckpt_path} is no file; checkpoints lie in <run folder>/checkpoints/")
        if not zipfile.is_zipfile(ckpt_path):  # which every checkpoint of torch is
            raise ValueError(f"ckpt_path={ckpt_path} is no checkpoint, or a damaged one")
        folder = Path(ckpt_path).parent.parent
        if train and (folder / ".hydra").is_dir():
            return str(folder)
    return f"runs/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def processes_to_start(trainer: Any) -> int:
    """Return how many processes this job still needs; 1 if it runs in this one.

    Args:
        trainer: the `trainer` group of the configuration.

    Raises:
        ValueError: if several nodes are asked for without torchrun or SLURM to start them.
    """
    if "strategy" not in trainer or "LOCAL_RANK" in os.environ:
        return 1
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    if SLURMEnvironment.detect():
        return 1
    if trainer.get("num_nodes") not in (None, 1):
        raise ValueError(f"trainer.num_nodes = {trainer.num_nodes} needs torchrun or srun to start the processes")
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        import torch

        return max(1, torch.cuda.device_count())
    return int(devices) if isinstance(devices, int | str) else len(devices)


class Place(NamedTuple):
    """Say which of the processes of a job this one is."""

    local_rank: int
    rank: int
    world_size: int


def place() -> Place:
    """Ask torchrun or SLURM, whichever started this process."""
    names = (("LOCAL_RANK", "SLURM_LOCALID"), ("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"))
    local_rank, rank, world_size = (next((int(os.environ[n]) for n in pair if n in os.environ), None) for pair in names)
    return Place(local_rank or 0, rank or 0, world_size or 1)


def start_processes(count: int, script: Path, run_dir: Path) -> None:
    """Run `count` processes of a script on the configuration saved in a run folder, and wait for them.

    Args:
        count: of processes.
        script: a Hydra application.
        run_dir: holds `.hydra/config.yaml`; the children's run folder too.

    Raises:
        RuntimeError: if a process fails.
    """
    quoted = str(run_dir).replace("\\", "\\\\").replace('"', '\\"')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
    command += ["--config-path", str(run_dir / ".hydra"), "--config-name", "config"]
    command += [f'hydra.run.dir="{quoted}"', "hydra.output_subdir=null", "hydra.mode=RUN"]
    command += ["hydra.job_logging.root.handlers=[file]"]
    threads = max(1, (os.cpu_count() or 1) // count)
    with subprocess.Popen(command, env={"OMP_NUM_THREADS": str(threads), **os.environ}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the children got it too, and may be saving
            process.wait()
            sys.exit("interrupted")
    if code:
        raise RuntimeError(f"one of the {count} processes of the run in {run_dir} failed; its message stands above")

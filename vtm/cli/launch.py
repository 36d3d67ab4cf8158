"""Where a job runs: its folder, its processes (one per device of this machine), and how to resume it.

Lightning would start the processes by repeating the command line; under a Hydra multirun each child would replay the
whole sweep, and with a sampling sweeper each rank would train with other hyperparameters. Here the children read the
configuration that the parent has composed, and share its folder. Under torchrun or SLURM they have started already.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vtm.cli.errors import interruption, one_sentence
from vtm.cli.ownership import LAUNCHER, release
from vtm.cli.quoting import quoted_override
from vtm.system.atomic import write_atomically
from vtm.system.processes import end_with_parent, job_id, process_rank, started_by_slurm
from vtm.system.threads import choose_threads

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
)

_CONFIG_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")

_TORCHRUN = f"""
import logging, os, sys, threading, time
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main
def end_with(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=end_with, args=[int(os.environ["{LAUNCHER}"])], daemon=True).start()
os.environ["{LAUNCHER}"] = str(os.getpid())
logging.disable(logging.ERROR)
try:
    main()
except ChildFailedError:
    sys.exit(1)
except SignalException:
    sys.exit(130)
"""  # no traceback or table when a process fails, which prints its error itself, or when the run is interrupted


def run_folder(name: str, *, train: bool, ckpt_path: str | None, ready: bool = False) -> str:
    """Return the folder of the run to resume if the checkpoint is still in it, else a new folder.

    The new folder is named by the time, or by the SLURM or torchrun job if this process is one of several of it.

    Args:
        name: name of the experiment.
        train: whether the job trains; a job that only tests a checkpoint gets a new folder.
        ckpt_path: checkpoint to resume or test, `<folder>/checkpoints/<file>`, or None.
        ready: whether the network may be trained already, so that it can be tested without a checkpoint.

    Raises:
        ValueError: if the job does not train and has no checkpoint to test.
    """
    if not (train or ckpt_path or ready):
        raise ValueError("train=false needs ckpt_path=<file>, the checkpoint to test")
    if ckpt_path is not None:
        folder = Path(ckpt_path).parent.parent
        if train and (folder / ".hydra").is_dir():
            return str(folder)
    shared_job = job_id() if process_rank().world_size > 1 else None  # all processes of a job find the same folder
    return f"runs/{name}/{shared_job or f'{datetime.now():%Y-%m-%d_%H-%M-%S-%f}'}"


def keep_configuration(cfg: DictConfig) -> None:
    """Write `.hydra` once all checks have passed; Hydra itself would write it before they run."""
    composed = HydraConfig.get()
    if process_rank().rank == 0 and composed.job.config_name != "config":  # children read it from there
        contents = {"config": cfg, "hydra": {"hydra": composed}, "overrides": composed.overrides.task}
        for name, content in contents.items():
            write_atomically(Path(cfg.run_dir, ".hydra", f"{name}.yaml"), OmegaConf.to_yaml(content))


def processes_to_start(trainer: Any) -> int:
    """Return the number of processes to start; 1 if the job runs in this process.

    Args:
        trainer: `trainer` group of the configuration.

    Raises:
        ValueError: if it requires a GPU and there is none, or several nodes without torchrun or SLURM to start them.
    """
    if trainer.get("accelerator") == "gpu":
        import torch

        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise ValueError(
                "trainer.accelerator = gpu, but torch finds no GPU here; use trainer=cpu, or trainer=ddp_cpu for two "
                "processes"
            )
    if "LOCAL_RANK" in os.environ or started_by_slurm():
        return 1
    devices, count = trainer.devices, 1
    if devices in ("auto", -1, "-1"):
        import torch

        count = max(1, torch.cuda.device_count()) if trainer.get("accelerator") != "cpu" else 1
    elif isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()):
        count = int(devices)
    elif not isinstance(devices, str):
        count = len(devices)
    if "strategy" not in trainer:
        if count > 1:  # Lightning would start them by repeating the command line
            raise ValueError(
                f"trainer.devices = {devices} needs a process per device: add trainer=ddp, or for the CPU "
                "trainer=ddp_cpu"
            )
        return 1
    if trainer.get("num_nodes") not in (None, 1):
        raise ValueError(f"trainer.num_nodes = {trainer.num_nodes} needs torchrun or srun to start the processes")
    return count


def end_with_launcher() -> None:
    """Let this process end when the process that started it does, even by SIGKILL."""
    if (launcher := os.environ.get(LAUNCHER)) is not None:
        end_with_parent(int(launcher))


def start_processes(count: int, script: Path, run_dir: Path, *, trained_with: int | None = None) -> None:
    """Run `count` processes of a script with the configuration of a run folder, and wait for them.

    Args:
        count: number of processes.
        script: Hydra application to run.
        run_dir: run folder of all processes, with their configuration in `.hydra/config.yaml`.
        trained_with: number of threads of each process of the run that is resumed.

    Raises:
        RuntimeError: if a process fails.
        KeyboardInterrupt: if the run is interrupted, after all processes have ended.
        SystemExit: if the run is terminated, after all processes have ended.
    """
    command = [sys.executable, "-c", _TORCHRUN, "--standalone", f"--nproc-per-node={count}", str(script)]
    command += ["--config-path", str(run_dir / ".hydra"), "--config-name", "config"]
    command += [quoted_override("hydra.run.dir", str(run_dir)), "hydra.output_subdir=null", "hydra.mode=RUN"]
    command += ["hydra.job_logging.root.handlers=[file]"]  # this line and the next as in conf/hydra/default.yaml
    command += [f"+hydra.job_logging.loggers={{{','.join(f'{name}:{{level:WARNING}}' for name in _LOGGERS)}}}"]
    threads, note = choose_threads(trained_with, processes=count)
    if note:
        print(note, file=sys.stderr, flush=True)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, LAUNCHER: str(os.getpid())}
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the children received it, too, and may be saving
            process.wait()
            raise
        except SystemExit:  # SIGTERM; the children get SIGINT, because Lightning's SIGTERM handler waits for all ranks
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        raise RuntimeError(f"one of the {count} processes of the run in {run_dir} failed; its error is printed above")


@contextmanager
def filter_warnings(*, resumes: bool) -> Iterator[None]:
    """Hide warnings of libraries that the user cannot or need not act on.

    Args:
        resumes: whether the run continues in a folder that has checkpoints.
    """
    with warnings.catch_warnings():
        noise = ["Found .* in eval mode", ".*LeafSpec", ".*broadcast_buffers", "The dirpath has changed"]
        noise += ["The number of training batches", ".*does not have many workers", "This DataLoader will create"]
        if resumes:  # with other steps per epoch, Lightning misjudges where the checkpoint was written
            noise += ["Checkpoint directory .* exists and is not empty", "You're resuming from a checkpoint that ended"]
        warnings.filterwarnings("ignore", "|".join(noise))
        yield


@contextmanager
def resumable(name: str, overrides: Sequence[str], run_dir: Path) -> Iterator[None]:
    """Print the folder of a run and, if Ctrl-C or SIGTERM interrupts it, how to resume; then exit with 130 or 143.

    Args:
        name: name of the experiment.
        overrides: overrides on the command line.
        run_dir: run folder.
    """
    folder, started_by_another = Path(os.path.relpath(run_dir)), "LOCAL_RANK" in os.environ or process_rank().rank > 0
    if not started_by_another:
        others = "" if overrides else " (--help lists the other experiments)"
        print(f"experiment {name}{others}, in the folder {folder}", flush=True)
    try:
        yield
    except BaseException as stop:
        if (status := interruption(stop)) is None:
            raise
        if isinstance(stop, OSError):  # failed during the interruption, such as a full disk
            print(one_sentence(stop), file=sys.stderr)
        if not started_by_another:
            last = folder / "checkpoints" / "last.ckpt"
            print(
                f"interrupted; to continue after the last finished epoch: {_command_to_resume(overrides, last)}"
                if last.is_file()
                else "interrupted before the first epoch finished, so nothing was saved; the same command starts over",
                file=sys.stderr,
            )
        sys.exit(status)
    finally:
        release(run_dir)


def _command_to_resume(overrides: Sequence[str], checkpoint: Path) -> str:
    """Return a command for the shell; of the flags it has those that add configurations."""
    flags = []
    for argument, following in pairwise([*sys.argv[1:], ""]):
        if argument in _CONFIG_FLAGS:
            flags += [argument, following]
        elif argument.startswith((*(f"{flag}=" for flag in _CONFIG_FLAGS), "hydra.searchpath=")):
            flags.append(argument)
    kept = [text for text in overrides if text.lstrip("+").partition("=")[0] not in ("ckpt_path", "finetune_from")]
    return shlex.join(["python", sys.argv[0], *flags, *kept, quoted_override("ckpt_path", str(checkpoint))])

"""Where a job runs: its folder, its processes, one per device of this machine, and how it goes on when interrupted.

Lightning would do it by running the command line again; under a Hydra multirun each child then replays the whole sweep,
and with a sweeper that samples, each rank trains other hyper-parameters. Here the children read the configuration that
the parent has composed, and share its folder. Under torchrun or SLURM the processes are there already.
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
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vtm.cli.errors import interruption, one_sentence
from vtm.system.atomic import write_atomically
from vtm.system.processes import process_rank, started_by_slurm

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
)

_TORCHRUN = """
import sys
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.run import main
try:
    main()
except SignalException:
    sys.exit(130)
"""  # without a traceback where the run is interrupted


def run_folder(name: str, *, train: bool, ckpt_path: str | None) -> str:
    """Name the folder of a job: a new one, or that of the run which a checkpoint resumes, where it still lies there.

    Args:
        name: of the experiment.
        train: whether the job trains; a mere test of a checkpoint gets a folder of its own.
        ckpt_path: `<folder>/checkpoints/<file>` to resume, or None.

    Raises:
        ValueError: if there is nothing to train and nothing to test.
    """
    if not train and ckpt_path is None:
        raise ValueError("train=false needs ckpt_path=<file>, the checkpoint to test")
    if ckpt_path is not None:
        folder = Path(ckpt_path).parent.parent
        if train and (folder / ".hydra").is_dir():
            return str(folder)
    return f"runs/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def keep_configuration(cfg: DictConfig) -> None:
    """Write `.hydra` now that nothing is left to refuse; Hydra itself would do so before it calls `main`."""
    composed = HydraConfig.get()
    if process_rank().rank == 0 and composed.job.config_name != "config":  # which is what is there already
        contents = {"config": cfg, "hydra": {"hydra": composed}, "overrides": composed.overrides.task}
        for name, content in contents.items():
            write_atomically(Path(cfg.run_dir, ".hydra", f"{name}.yaml"), OmegaConf.to_yaml(content))


def processes_to_start(trainer: Any) -> int:
    """Return how many processes this job still needs; 1 if it runs in this one.

    Args:
        trainer: the `trainer` group of the configuration.

    Raises:
        ValueError: if a GPU is asked for and there is none, or several nodes without torchrun or SLURM to start them.
    """
    if trainer.get("accelerator") == "gpu":
        import torch

        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise ValueError(
                "trainer.accelerator = gpu, but torch finds no GPU here; use trainer=cpu, or trainer=ddp_cpu for two "
                "processes"
            )
    if "strategy" not in trainer or "LOCAL_RANK" in os.environ:
        return 1
    if started_by_slurm():
        return 1
    if trainer.get("num_nodes") not in (None, 1):
        raise ValueError(f"trainer.num_nodes = {trainer.num_nodes} needs torchrun or srun to start the processes")
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        import torch

        return max(1, torch.cuda.device_count())
    return int(devices) if isinstance(devices, int | str) else len(devices)


def start_processes(count: int, script: Path, run_dir: Path) -> None:
    """Run `count` processes of a script on the configuration saved in a run folder, and wait for them.

    Args:
        count: of processes.
        script: a Hydra application.
        run_dir: holds `.hydra/config.yaml`; the children's run folder too.

    Raises:
        RuntimeError: if a process fails.
        KeyboardInterrupt: if the run is interrupted; then all of them have ended.
        SystemExit: if it is terminated; then all of them have ended.
    """
    quoted = str(run_dir).replace("\\", "\\\\").replace('"', '\\"')
    command = [sys.executable, "-c", _TORCHRUN, "--standalone", f"--nproc-per-node={count}", str(script)]
    command += ["--config-path", str(run_dir / ".hydra"), "--config-name", "config"]
    command += [f'hydra.run.dir="{quoted}"', "hydra.output_subdir=null", "hydra.mode=RUN"]
    command += ["hydra.job_logging.root.handlers=[file]"]  # this and the next as in conf/hydra/default.yaml
    command += [f"+hydra.job_logging.loggers={{{','.join(f'{name}:{{level:WARNING}}' for name in _LOGGERS)}}}"]
    threads = max(1, (os.cpu_count() or 1) // count)
    with subprocess.Popen(command, env={"OMP_NUM_THREADS": str(threads), **os.environ}) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the children got it too, and may be saving
            process.wait()
            raise
        except SystemExit:  # of SIGTERM; another signal to the children, because at SIGTERM Lightning's wait for all
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        raise RuntimeError(f"one of the {count} processes of the run in {run_dir} failed; its message stands above")


@contextmanager
def filter_warnings(*, resumes: bool) -> Iterator[None]:
    """Leave out what libraries warn of and nothing can or need be done about.

    Args:
        resumes: the run goes on in its folder, where its checkpoints lie.
    """
    with warnings.catch_warnings():
        noise = ["Found .* in eval mode", ".*LeafSpec", ".*broadcast_buffers", "The dirpath has changed"]
        noise += ["The number of training batches", ".*does not have many workers", "This DataLoader will create"]
        noise += ["Checkpoint directory .* exists and is not empty"] * resumes
        warnings.filterwarnings("ignore", "|".join(noise))
        yield


@contextmanager
def resumable(name: str, overrides: Sequence[str], run_dir: Path) -> Iterator[None]:
    """Say where a run is and, if Ctrl-C or SIGTERM interrupts it, how it goes on; then leave with status 130 or 143.

    Args:
        name: of the experiment.
        overrides: of the run.
        run_dir: its folder.
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
        if isinstance(stop, OSError):  # which went wrong meanwhile, such as a full disk
            print(one_sentence(stop), file=sys.stderr)
        if not started_by_another:
            last = folder / "checkpoints" / "last.ckpt"
            again = [override for override in overrides if not override.startswith(("ckpt_path=", "finetune_from="))]
            print(
                "interrupted; to go on after the last epoch that was finished: "
                + shlex.join(["python", sys.argv[0], *again, f"ckpt_path={last}"])
                if last.is_file()
                else "interrupted before an epoch was finished, so nothing was saved; the same command starts anew",
                file=sys.stderr,
            )
        sys.exit(status)

"""Loggers of a run: `metrics.csv`, TensorBoard, and W&B, which goes offline if it has no account or network."""

import csv
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vtm.training.checkpoint import read_checkpoint


def csv_logger(*, save_dir: str | Path, ckpt_path: str | Path | None = None) -> CSVLogger:
    """Log to `metrics.csv`; one that is there is kept as `metrics.1.csv` and so on, whole.

    Args:
        save_dir: The folder of the run.
        ckpt_path: The checkpoint that the run goes on from: the new file begins with what was logged up to it.
    """
    logger = CSVLogger(save_dir, name="", version="")
    path = Path(save_dir, "metrics.csv")
    if getattr(rank_zero_only, "rank", 0) == 0:
        earlier = []
        if path.exists():
            earlier = _logged_before(path, ckpt_path) if ckpt_path is not None else []
            path.rename(next(p for i in range(1, 10_000) if not (p := path.with_name(f"metrics.{i}.csv")).exists()))
        with warnings.catch_warnings():  # that the folder is not empty, which a run's folder never is
            warnings.simplefilter("ignore", UserWarning)
            logger.experiment.metrics += earlier
        logger.save()
    return logger


def _logged_before(path: Path, ckpt_path: str | Path) -> list[dict[str, Any]]:
    """Read what training has logged up to a checkpoint; the tests that come then are of earlier steps."""
    steps = read_checkpoint(ckpt_path).steps
    found: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = int(row["step"] or steps)  # none in the half line of a run that was killed
            if not (int(found[-1]["step"]) if found else 0) <= step < steps:
                break
            found.append(row)
    return found


def tensorboard_logger(*, save_dir: str | Path, ckpt_path: str | Path | None = None) -> TensorBoardLogger:
    """Log to TensorBoard, in the folder `tensorboard`.

    Args:
        save_dir: folder of the run.
        ckpt_path: checkpoint to resume from; what an interrupted run logged after it is no longer shown.

    Raises:
        ModuleNotFoundError: if the package tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "logger=tensorboard needs the package tensorboard, which is not installed; run pip install tensorboard, "
            "or use logger=csv"
        )
    steps = None if ckpt_path is None else read_checkpoint(ckpt_path).steps
    return TensorBoardLogger(save_dir, name="tensorboard", version="", purge_step=steps)


def wandb_logger(
    *, project: str, save_dir: str | Path, name: str | None = None, init_timeout: float = 10.0, **init: Any
) -> WandbLogger:
    """Start a W&B run; offline, with a sentence about it, if there is no API key or the server does not answer.

    The choice is made only where the variable WANDB_MODE is not set. A run that is still open is closed first.

    Args:
        project: Name of the W&B project.
        save_dir: Where W&B keeps its files, in a folder `wandb`: the folder of the run.
        name: Of the run; W&B makes one up for None.
        init_timeout: Seconds that the server has to answer. W&B itself adds ten.
        init: More arguments of `wandb.init`, such as `id` to go on with an earlier run.

    Raises:
        RuntimeError: WANDB_MODE is set, and W&B does not accept the run.
    """
    if getattr(rank_zero_only, "rank", 0):
        return WandbLogger(project=project, save_dir=save_dir, name=name)

    import wandb

    finish_wandb()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    init = {"project": project, "dir": str(save_dir), "name": name, **init}
    mode: Any = os.environ.get("WANDB_MODE")  # of now: W&B itself reads it once in a process
    run, reason = None, "no API key was found"
    if mode or "WANDB_API_KEY" in os.environ or wandb.login(prompt=False, verify=False):
        try:
            run = wandb.init(**init, mode=mode, settings=wandb.Settings(init_timeout=init_timeout))
        except wandb.errors.Error as error:
            if mode:
                raise RuntimeError(
                    f"W&B did not accept the run, which WANDB_MODE={mode} asks for "
                    f"({str(error).partition(chr(10))[0]}); run `wandb login`, set WANDB_MODE=offline, or leave W&B "
                    "out with logger=csv"
                ) from error
            first_line = str(error).partition("\n")[0]
            reason = f"the server did not accept the run ({first_line})"
    if run is None:
        run = wandb.init(**init, mode="offline", settings=wandb.Settings(silent=True))
        folder = Path(run.dir).parent
        print(
            f"W&B: {reason}, so this run is logged offline in {folder}; "
            f"to upload it, run `wandb login` and then `wandb sync {folder}`.",
            flush=True,
        )
    # the x axis that Lightning gives to the runs that it starts itself
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=project, save_dir=save_dir, name=name, experiment=run)


def finish_wandb(*, exit_code: int = 0) -> None:
    """Close the W&B run, if there is one, so that the next job of a multirun does not go on with it.

    Args:
        exit_code: Anything but 0 marks the run as failed.
    """
    if "wandb" in sys.modules:
        import wandb

        wandb.finish(exit_code=exit_code)


@contextmanager
def closing_wandb() -> Iterator[None]:
    """Close the W&B run that is started within, as failed after an error."""
    try:
        yield
    except BaseException:
        finish_wandb(exit_code=1)
        raise
    finish_wandb()

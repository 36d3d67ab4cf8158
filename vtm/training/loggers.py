"""Loggers of a run: `metrics.csv`, TensorBoard, and W&B, which goes offline if it has no account or network."""

import csv
import importlib.util
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vtm.training.checkpoint import read_checkpoint


def csv_logger(*, save_dir: str | Path, ckpt_path: str | Path | None = None) -> CSVLogger:
    """Log to `metrics.csv`; an existing file is renamed to `metrics.1.csv`, `metrics.2.csv` and so on.

    Args:
        save_dir: folder of the run.
        ckpt_path: checkpoint to resume from; the new file begins with what was logged up to it.
    """
    logger = CSVLogger(save_dir, name="", version="")
    path = Path(save_dir, "metrics.csv")
    if getattr(rank_zero_only, "rank", 0) == 0:
        earlier = []
        if path.exists():
            earlier = _logged_before(path, ckpt_path) if ckpt_path is not None else []
            _set_aside(path)
        with warnings.catch_warnings():  # about a folder that is not empty, as the folder of a run always is
            warnings.simplefilter("ignore", UserWarning)
            logger.experiment.metrics += earlier
        logger.save()
    return logger


@rank_zero_only
def log_tests_apart(loggers: Iterable[Logger]) -> None:
    """Let CSV loggers write what follows to `tests.csv`, since the tests of checkpoints are no epochs of training."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            path = Path(logger.log_dir, "tests.csv")
            if path.exists():
                _set_aside(path)
            logger.experiment.metrics_file_path = str(path)
            logger.experiment.metrics_keys = []


def _set_aside(path: Path) -> None:
    """Rename a file to the first free name with a number, such as `metrics.1.csv`."""
    numbered = (path.with_name(f"{path.stem}.{number}.csv") for number in range(1, 10_000))
    path.rename(next(other for other in numbered if not other.exists()))


def _logged_before(path: Path, ckpt_path: str | Path) -> list[dict[str, Any]]:
    """Read what was logged in training up to a checkpoint; rows of tests, which go back to earlier steps, end it."""
    steps = read_checkpoint(ckpt_path).steps
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = int(row["step"] or steps)  # the last line of a run that was killed may be incomplete
            if not (int(rows[-1]["step"]) if rows else 0) <= step < steps:
                break
            rows.append(row)
    return rows


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
    return TensorBoardLogger(save_dir, name="tensorboard", version="", purge_step=steps, default_hp_metric=False)


@rank_zero_only
def log_configuration(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Log the configuration of a run to W&B, nested, and to TensorBoard, with dotted keys beside `val/score`.

    Args:
        loggers: loggers of the run.
        config: resolved configuration in plain containers.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(dict(config))
        elif isinstance(logger, TensorBoardLogger):
            from torch.utils.tensorboard.summary import hparams

            settings = {key: value if isinstance(value, int | float) else str(value) for key, value in _leaves(config)}
            writer = logger.experiment._get_file_writer()
            for summary in hparams(settings, {"val/score": 0}):  # 0 is not logged; TensorBoard shows the last score
                writer.add_summary(summary)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def wandb_logger(
    *, project: str, save_dir: str | Path, name: str | None = None, init_timeout: float = 10.0, **init: Any
) -> WandbLogger:
    """Start a W&B run; offline, with a message, if there is no API key or the server does not answer.

    If the environment variable WANDB_MODE is set, it decides instead. A run that is still open is closed first.

    Args:
        project: name of the W&B project.
        save_dir: folder of the run; W&B writes into its subfolder `wandb`.
        name: name of the run; None lets W&B choose one.
        init_timeout: seconds to wait for the server; W&B itself adds ten.
        init: more arguments of `wandb.init`, such as `id` to continue an earlier run.

    Raises:
        RuntimeError: if WANDB_MODE is set and W&B does not accept the run.
    """
    if getattr(rank_zero_only, "rank", 0):
        return WandbLogger(project=project, save_dir=save_dir, name=name)

    import wandb

    finish_wandb()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    init = {"project": project, "dir": str(save_dir), "name": name, **init}
    mode: Any = os.environ.get("WANDB_MODE")  # read here, because W&B reads it only once in a process
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
            f"to upload it, run `wandb login` and then `wandb sync {shlex.quote(str(folder))}`.",
            flush=True,
        )
    # the x axis of runs that Lightning starts itself
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=project, save_dir=save_dir, name=name, experiment=run)


def finish_wandb(*, exit_code: int = 0) -> None:
    """Close the open W&B run, if any, so that the next job of a multirun starts its own.

    Args:
        exit_code: exit status of the run; any value but 0 marks it as failed.
    """
    if "wandb" in sys.modules:
        import wandb

        wandb.finish(exit_code=exit_code)


@contextmanager
def closing_wandb() -> Iterator[None]:
    """Close the W&B run that is started in this context, as failed after an error."""
    try:
        yield
    except BaseException:
        finish_wandb(exit_code=1)
        raise
    finish_wandb()

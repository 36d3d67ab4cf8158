"""What watches a run: progress, W&B, `results.json`, and the seeds that let a resumed run go on as if never stopped."""

import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only


class EpochSeed(Callback):
    """Seed torch, numpy and Python at the start of every training epoch from the seed, the epoch and the rank.

    A checkpoint holds no random state. With this callback it needs none: a run that is resumed from the end of an epoch
    draws, in the loader's workers too, the numbers that it would have drawn without the interruption.

    The workers start anew each epoch, even where the training loader has `persistent_workers`, because one that stays
    alive keeps a random state that no checkpoint holds.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._first_epoch = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_epoch = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.fit_loop._data_fetcher
        assert loader is not None
        loader.teardown()
        epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank)
        if self._first_epoch:
            # Lightning made the iterator of a fit's first epoch before it told the sampler the epoch, and makes no
            # other; those of later epochs it makes after this hook
            iter(loader)
        self._first_epoch = False


class ProgressLines(ProgressBar):
    """Print a line of progress every so often, for output that goes to a file.

    Args:
        every_seconds: How long to be silent between two lines.
    """

    def __init__(self, *, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._last_line = self._fit_start = self._epoch_start = self._evaluation_start = 0.0
        self._first_step = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start, self._first_step = time.monotonic(), trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._is_due():
            return
        # Lightning hands out the loss divided by the number of batches that are accumulated
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        steps_left = trainer.estimated_stepping_batches - trainer.global_step
        steps_done = trainer.global_step - self._first_step
        remaining = (time.monotonic() - self._fit_start) * steps_left / steps_done if steps_done else float("inf")
        epoch = f"epoch {trainer.current_epoch + 1}" + ("" if trainer.max_epochs == -1 else f"/{trainer.max_epochs}")
        total = trainer.num_training_batches
        self._print_batch(epoch, batch_idx, total, self._epoch_start, f"  loss {loss:.4g}", remaining)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = self._last_line = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking and self._is_due():
            self._print_batch("val", batch_idx, trainer.num_val_batches[dataloader_idx], self._evaluation_start)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            epoch = f"epoch {trainer.current_epoch + 1}  " if trainer.state.fn == TrainerFn.FITTING else ""
            self._print_metrics(epoch, "val/", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = self._last_line = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            self._print_batch("test", batch_idx, trainer.num_test_batches[dataloader_idx], self._evaluation_start)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_metrics("", "test/", trainer)

    def _is_due(self) -> bool:
        return self._enabled and time.monotonic() - self._last_line >= self.every_seconds

    def _print_batch(
        self,
        stage: str,
        batch_idx: int,
        total: float,
        started: float,
        details: str = "",
        remaining: float | None = None,
    ) -> None:
        self._last_line = time.monotonic()
        rate = (batch_idx + 1) / max(self._last_line - started, 1e-9)
        remaining = (total - batch_idx - 1) / rate if remaining is None else remaining
        left = f"  remaining {timedelta(seconds=round(remaining))}" if remaining < float("inf") else ""
        print(f"{stage}  batch {batch_idx + 1}/{total}{details}  {rate:.3g} batches/s{left}", flush=True)

    def _print_metrics(self, prefix: str, stage: str, trainer: Trainer) -> None:
        if self._enabled:
            metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(stage)}
            line = "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(metrics.items()))
            seconds = round(time.monotonic() - self._evaluation_start)
            print(f"{prefix}{line}  in {timedelta(seconds=seconds)}", flush=True)


def progress_bar(*, every_seconds: float = 10.0) -> ProgressBar:
    """Choose how progress is shown: a bar on a terminal, lines anywhere else.

    Args:
        every_seconds: How long to be silent between two lines.
    """
    # standard output decides, because the bar is drawn there
    return TQDMProgressBar() if sys.stdout.isatty() else ProgressLines(every_seconds=every_seconds)


class ResultsWriter(Callback):
    """Write `results.json` after every validation and test that is a call of its own, and print the scores.

    The LightningModule has `task.name`, the plain `config` of the run and `summary(stage)`, which gives, for the stage
    `val` or `test`, what its metric's `summary` gives, and `floor`, `missing` (the number of videos that could not be
    evaluated) and `ids_sha256`. It is called on every rank. The file has a summary under the name of its stage, and for
    the checkpoint `last` under `<stage>_last`.

    Attributes:
        checkpoint: What is being evaluated: set it before `trainer.validate` or `trainer.test`.

    Args:
        path: Of the file.
        experiment: Name of the experiment.
        seed: Of the run.
    """

    def __init__(self, path: str | Path, *, experiment: str, seed: int) -> None:
        self.path = Path(path)
        self.checkpoint = "best"
        self._run: dict[str, Any] = {
            "experiment": experiment,
            "task": None,
            "seed": seed,
            "commit": source_commit(Path(__file__)),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,  # says which CUDA, which the package's version does not
                **{name: importlib.metadata.version(name) for name in ("lightning", "timm", "vtm")},
            },
            "config": None,
        }
        self._scores: dict[str, dict[str, Any]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._add("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add("test", trainer, pl_module)
        if trainer.is_global_zero:
            scores = {name: score for name, score in self._scores.items() if score["checkpoint"] == self.checkpoint}
            print(results_table(scores), f"written to {self.path}", sep="\n", flush=True)

    def _add(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(Any, pl_module)
        name = f"{stage}_last" if self.checkpoint == "last" else stage
        self._scores[name] = {**module.summary(stage), "checkpoint": self.checkpoint}
        if trainer.is_global_zero:
            run = {**self._run, "task": module.task.name, "config": module.config}
            _write_json(self.path, {**run, **self._scores})


def results_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Align the scores of `results.json`, one evaluation in a row.

    >>> score = {"metric": "accuracy", "value": 0.75, "floor": 0.5, "interval": [0.3, 0.95], "n": 4, "missing": 0,
    ...          "clip_level": {"value": 0.7, "n": 10}}
    >>> print(results_table({"test": score}))
            metric   value     95 % interval   floor  videos  missing  clip level
    test  accuracy  0.7500  0.3000 to 0.9500  0.5000       4        0      0.7000
    """
    rows = [["", "metric", "value", "95 % interval", "floor", "videos", "missing", "clip level"]]
    for name, score in scores.items():
        low, high = score["interval"]
        rows.append(
            [
                name,
                score["metric"],
                f"{score['value']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{score['floor']:.4f}",
                str(score["n"]),
                str(score["missing"]),
                f"{score['clip_level']['value']:.4f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def epoch_seed(seed: int, epoch: int, rank: int) -> None:
    """Seed the global generators of torch, numpy and Python, differently for every epoch and rank.

    >>> epoch_seed(0, epoch=3, rank=0)
    >>> first = torch.rand(1), random.random()
    >>> epoch_seed(0, epoch=3, rank=0)
    >>> first == (torch.rand(1), random.random())
    True
    """
    for_torch, for_others = np.random.SeedSequence([seed, epoch, rank]).generate_state(2, np.uint32).tolist()
    torch.manual_seed(for_torch)
    random.seed(for_others)
    np.random.seed(for_others)  # noqa: NPY002  the state that other people's code draws from


def source_commit(path: Path) -> str | None:
    """Name the commit that a source file belongs to.

    Returns:
        The hash, with `+dirty` if the checkout has changes or files that are not in it; None if git does not know the
        file, as in an installed package.
    """
    try:
        _git(path.parent, "ls-files", "--error-unmatch", path.name)
        commit = _git(path.parent, "rev-parse", "HEAD")
        return f"{commit}+dirty" if _git(path.parent, "status", "--porcelain") else commit
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def csv_logger(*, save_dir: str | Path) -> CSVLogger:
    """Log to `metrics.csv`; the file of a run that is being resumed is kept as `metrics.1.csv` and so on.

    Args:
        save_dir: The folder of the run.
    """
    logger = CSVLogger(save_dir, name="", version="")
    path = Path(save_dir, "metrics.csv")
    if getattr(rank_zero_only, "rank", 0) == 0:
        if path.exists():
            path.rename(next(p for i in range(1, 10_000) if not (p := path.with_name(f"metrics.{i}.csv")).exists()))
        with warnings.catch_warnings():  # that the folder is not empty, which a run's folder never is
            warnings.simplefilter("ignore", UserWarning)
            _ = logger.experiment
    return logger


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
    """
    if getattr(rank_zero_only, "rank", 0):
        return WandbLogger(project=project, save_dir=save_dir, name=name)

    import wandb

    finish_wandb()
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    init = {"project": project, "dir": str(save_dir), "name": name, **init}
    chosen = "WANDB_MODE" in os.environ
    run, reason = None, "no API key was found"
    if chosen or "WANDB_API_KEY" in os.environ or wandb.login(prompt=False, verify=False):
        try:
            run = wandb.init(**init, settings=wandb.Settings(init_timeout=init_timeout))
        except wandb.errors.Error as error:
            if chosen:
                raise
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # `open` applies the umask, which the functions of `tempfile` do not
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

"""Progress of a run: a bar on a terminal, or lines in a file; and the size of the network."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from vtm.training.optim import schedule_position

_log = logging.getLogger(__name__)


class NetworkSize(ModelSummary):
    """A summary of the network in one line, in place of Lightning's table."""

    @staticmethod
    def summarize(
        summary_data: Any, total_parameters: int, trainable_parameters: int, model_size: float, *_: Any, **__: Any
    ) -> None:
        _show(f"{trainable_parameters:,} parameters to train, {model_size:.3g} MB")


class ProgressLines(ProgressBar):
    """Progress as a line every few seconds, for output to a file; the lines also go to the log of the run.

    Args:
        every_seconds: minimum time between two lines.
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
        # Lightning divides the loss by the number of accumulated batches
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        steps_left = trainer.estimated_stepping_batches - schedule_position(trainer)
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
            epoch = f"epoch {trainer.current_epoch + 1}" if trainer.state.fn == TrainerFn.FITTING else ""
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
        _show(f"{stage}  batch {batch_idx + 1}/{total}{details}  {rate:.3g} batches/s{left}")

    def _print_metrics(self, epoch: str, stage: str, trainer: Trainer) -> None:
        if self._enabled:
            what = epoch or (Path(trainer.ckpt_path).name if trainer.ckpt_path else "")
            logged = trainer.callback_metrics.items()
            metrics = {name: value for name, value in logged if name.startswith(stage) and "/details/" not in name}
            line = "  ".join(f"{name} {float(value):.4g}" for name, value in sorted(metrics.items()))
            seconds = round(time.monotonic() - self._evaluation_start)
            _show(f"{what}{'  ' * bool(what)}{line}  evaluated in {timedelta(seconds=seconds)}")


def progress_bar(*, every_seconds: float = 10.0) -> ProgressBar:
    """Return a progress bar if the output is a terminal, else progress lines.

    Args:
        every_seconds: minimum time between two lines.
    """
    # the bar is drawn on standard output
    return TQDMProgressBar() if sys.stdout.isatty() else ProgressLines(every_seconds=every_seconds)


def _show(line: str) -> None:
    print(line, flush=True)
    _log.info(line)

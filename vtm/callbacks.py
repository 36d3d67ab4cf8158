"""What watches a run: progress, needles, and the seeds that let a resumed run go on as if it had never stopped."""

import logging
import random
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from vtm.data.datamodule import Split
from vtm.data.dataset import Batch
from vtm.data.needle import NeedleSource
from vtm.models import VTMOutput

_log = logging.getLogger(__name__)


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


class BestCheckpoint(ModelCheckpoint):
    """Keep the weights of the epoch with the highest `val/score`, among equal ones of that with the lowest `val/loss`.

    A validation set of a few dozen videos often gives several epochs the same score; the README has a comparison.

    Args:
        dirpath: folder of the file `best.ckpt`.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor="val/score",
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.loss = float("inf")  # of the epoch that is kept

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        if current is None:  # no validation in this epoch
            return False
        loss = float(trainer.callback_metrics["val/loss"])
        equal = self.best_model_score is not None and bool(current == self.best_model_score)
        kept = super().check_monitor_top_k(trainer, current) or (equal and not loss >= self.loss)
        if kept:
            self.loss = loss if loss == loss else float("inf")
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an interrupted run knew of its best epoch, if it lies here, wherever it lay then."""
        score, best = state_dict["best_model_score"], Path(str(self.dirpath), "best.ckpt")
        if score is None:
            return
        if not best.is_file():
            warnings.warn(
                f"{best} is not there: the best epoch from here on is kept, whatever came before", stacklevel=2
            )
            return
        here = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
        super().load_state_dict({**state_dict, **here, "best_k_models": {str(best): score}})
        self.loss = state_dict["loss"]


class NeedlesKept(Callback):
    """Log what merging does to the needles of a `vtm.data.needle.NeedleDataModule`, and what could be scored at best.

    As `<stage>/details/…`, shares of all needles of the validation or test clips: `target_i`, chosen as targets by
    block i; `kept_i`, tokens that no block up to i has merged into another one, because they were targets or stayed
    alone. `oracle` is the accuracy of one who is told where the needles are.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        if not trainer.sanity_checking:
            self._log("val", trainer, pl_module, outputs["output"], batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        self._log("test", trainer, pl_module, outputs["output"], batch)

    def _log(self, stage: Split, trainer: Trainer, module: LightningModule, output: VTMOutput, batch: Batch) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        source: NeedleSource = data.source
        clips = [source.clip(data.videos(stage)[index]) for index in batch.index.tolist()]
        needles = torch.stack([clip.needles for clip in clips]).flatten(1).to(batch.index.device)  # (B, T·H·W)
        guesses = torch.tensor([source.clips.oracle(clip) for clip in clips]).to(batch.target)
        found = {"oracle": (guesses == batch.target).float().mean()}
        for number, (kept, targets) in enumerate(zip(output.clip_groupings(), output.clip_targets(), strict=True), 1):
            found[f"kept_{number}"] = needles.gather(1, kept.anchor).sum() / needles.sum()
            found[f"target_{number}"] = needles.gather(1, targets).sum() / needles.sum()
        named = {f"{stage}/details/{name}": value for name, value in found.items()}
        module.log_dict(named, batch_size=len(clips), on_epoch=True, sync_dist=True)


class NetworkSize(ModelSummary):
    """Print how many parameters are trained, in a line, instead of Lightning's table; the frozen encoder has none."""

    @staticmethod
    def summarize(
        summary_data: Any, total_parameters: int, trainable_parameters: int, model_size: float, *_: Any, **__: Any
    ) -> None:
        _show(f"{trainable_parameters:,} parameters to train, {model_size:.3g} MB; the encoder is frozen")


class ProgressLines(ProgressBar):
    """Print a line of progress every so often, for output that goes to a file, and to the log of the run.

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
    """Choose how progress is shown: a bar on a terminal, lines anywhere else.

    Args:
        every_seconds: How long to be silent between two lines.
    """
    # standard output decides, because the bar is drawn there
    return TQDMProgressBar() if sys.stdout.isatty() else ProgressLines(every_seconds=every_seconds)


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


def _show(line: str) -> None:
    print(line, flush=True)
    _log.info(line)

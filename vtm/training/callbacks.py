"""Callbacks of a run: seeds per epoch, so that a resumed run repeats an uninterrupted one; finite loss; best epoch."""

import random
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vtm.data.datamodule import Split
from vtm.data.dataset import Batch
from vtm.data.datasets.needle import NeedleSource
from vtm.models import HeadOutput
from vtm.training.module import VTMModule
from vtm.training.optim import has_finite_weights

_STEPS_TO_READ = 5


class EpochSeed(Callback):
    """A callback that seeds torch, NumPy and Python at the start of every training epoch.

    The seed depends on the run's seed, the epoch and the rank. A checkpoint holds no random state, and with this
    callback it needs none: a run that is resumed at the end of an epoch draws the same numbers, also in the loader's
    workers, as one that was not interrupted.

    The workers restart every epoch, even with `persistent_workers`, because a worker that stays alive keeps a random
    state that no checkpoint holds.

    Args:
        seed: seed of the run.
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
            # Lightning creates the first epoch's iterator before it sets the sampler's epoch, and does not create it
            # again; it creates the iterators of later epochs after this hook
            iter(loader)
        self._first_epoch = False


class FiniteLoss(Callback):
    """A callback that stops the training if the loss is not finite for many optimization steps in a row or an epoch.

    Single steps without a finite loss are tolerated, because mixed precision skips them. With several processes, a step
    counts if the loss of any of them is not finite, so that all stop together.

    Args:
        steps: optimization steps in a row after which the training stops.
    """

    def __init__(self, *, steps: int = 20) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step  # the last step that was checked
        self._row = 0  # steps without a finite loss up to it
        self._flags: list[torch.Tensor] = []  # of the steps after it; read together, because reading waits for a GPU
        self._batches: list[torch.Tensor] = []  # flags of the batches of the present step
        self._epoch: list[bool] = []  # flags of the steps of the epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(~outputs["loss"].isfinite())
        if trainer.global_step > self._step + len(self._flags):
            self._flags.append(torch.stack(self._batches).any())
            self._batches = []
        if len(self._flags) == _STEPS_TO_READ or trainer.is_last_batch:
            self._check_steps(trainer)
        if trainer.is_last_batch:  # before the validation, which such weights could break
            self._check_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_steps(trainer)  # the epoch may have ended before its last batch
        self._check_epoch(trainer, pl_module)
        self._epoch = []

    def _check_steps(self, trainer: Trainer) -> None:
        if not self._flags:
            return
        flags = trainer.strategy.reduce(torch.stack(self._flags).float(), reduce_op="max")
        self._flags = []
        for flag in cast(torch.Tensor, flags).bool().tolist():
            self._step += 1
            self._row = self._row + 1 if flag else 0
            self._epoch.append(flag)
            if self._row == self.steps:
                self._stop(trainer, f"the loss has not been finite for {self.steps} optimization steps in a row")

    def _check_epoch(self, trainer: Trainer, module: LightningModule) -> None:
        if self._epoch and all(self._epoch):
            self._stop(trainer, "the loss has not been finite for a whole epoch")
        if not has_finite_weights(module):
            self._stop(trainer, "the weights of the network are no longer finite")

    def _stop(self, trainer: Trainer, reason: str) -> None:
        raise RuntimeError(
            f"{reason}: stopped in epoch {trainer.current_epoch + 1} at step {self._step} with the learning rate "
            f"{self._rate:.3g}; lower optimizer.lr, or set trainer.precision=32-true; the checkpoints of earlier "
            "epochs are kept"
        )


class BestCheckpoint(ModelCheckpoint):
    """A checkpoint of the epoch with the highest `val/score`; of equal epochs, the one with the lowest `val/loss`.

    With a few dozen validation videos, several epochs often have the same score; conf/README.md has a comparison.

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
        self.loss = float("inf")  # of the kept epoch
        self._validated = False

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        if current is None:  # no validation in this epoch
            return False
        self._validated = True
        if not current.isfinite():
            return False
        loss = float(trainer.callback_metrics["val/loss"])
        equal = self.best_model_score is not None and bool(current == self.best_model_score)
        kept = super().check_monitor_top_k(trainer, current) or (equal and not loss >= self.loss)
        if kept:
            self.loss = loss if loss == loss else float("inf")
        return kept

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a best epoch.

        Raises:
            RuntimeError: if the score was finite in no epoch.
        """
        super().on_train_end(trainer, pl_module)
        if self._validated and not self.best_model_path:
            raise RuntimeError(
                f"{self.monitor} was not finite in any epoch, so none is the best; lower optimizer.lr, and check the "
                "targets of the validation videos"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best epoch of an interrupted run if its file is in this folder; the folder may have moved."""
        score, best = state_dict["best_model_score"], Path(str(self.dirpath), "best.ckpt")
        if score is None:
            return
        if not best.is_file():
            warnings.warn(
                f"{best} does not exist: only epochs from here on are compared for the best checkpoint", stacklevel=2
            )
            return
        here = {"dirpath": self.dirpath, "best_model_path": str(best), "kth_best_model_path": str(best)}
        super().load_state_dict({**state_dict, **here, "best_k_models": {str(best): score}})
        self.loss = state_dict["loss"]


class NeedlesKept(Callback):
    """A callback that logs what merging does to the needles of a `NeedleDataModule`, and the best possible score.

    It logs, as `<stage>/details/…`, two shares of all needles of the validation or test clips: `target_i`, needles that
    block i chose as targets; and `kept_i`, needles that no block up to i merged into another token, because they were
    targets or were not merged at all. `oracle` is the accuracy with known needle positions.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        if not trainer.sanity_checking:
            self._log("val", pl_module, outputs["output"], batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        self._log("test", pl_module, outputs["output"], batch)

    def _log(self, stage: Split, module: LightningModule, output: HeadOutput, batch: Batch) -> None:
        data = cast(VTMModule, module).data
        source = cast(NeedleSource, data.source)  # of the experiment that adds this callback
        clips = [source.clip(data.videos(stage)[index]) for index in batch.index.tolist()]
        needles = torch.stack([clip.needles for clip in clips]).flatten(1).to(batch.index.device)  # (B, T·H·W)
        guesses = torch.tensor([source.clips.oracle(clip) for clip in clips]).to(batch.target)
        found = {"oracle": (guesses == batch.target).float().mean()}
        for number, (kept, targets) in enumerate(zip(output.clip_groupings(), output.clip_targets(), strict=True), 1):
            found[f"kept_{number}"] = needles.gather(1, kept.anchor).sum() / needles.sum()
            found[f"target_{number}"] = needles.gather(1, targets).sum() / needles.sum()
        named = {f"{stage}/details/{name}": value for name, value in found.items()}
        module.log_dict(named, batch_size=len(clips), on_epoch=True, sync_dist=True)


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
    np.random.seed(for_others)  # noqa: NPY002  the global state that third-party code uses

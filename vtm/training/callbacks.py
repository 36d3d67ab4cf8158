"""What watches a run: progress, needles, and the seeds that let a resumed run go on as if it had never stopped."""

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

    A validation set of a few dozen videos often gives several epochs the same score; conf/README.md has a comparison.

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
    """Log what merging does to the needles of a `NeedleDataModule`, and what could be scored at best.

    As `<stage>/details/…`, shares of all needles of the validation or test clips: `target_i`, chosen as targets by
    block i; `kept_i`, tokens that no block up to i has merged into another one, because they were targets or stayed
    alone. `oracle` is the accuracy of one who is told where the needles are.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        if not trainer.sanity_checking:
            self._log("val", pl_module, outputs["output"], batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
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
    np.random.seed(for_others)  # noqa: NPY002  the state that other people's code draws from

"""Seeds of interrupted and resumed runs, the best checkpoint, and the statistics of needles."""

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, RandomSampler

from vtm.data.datasets.needle import NeedleDataModule, Needles, NeedleSource
from vtm.data.sampling import Single
from vtm.merging import TokenMerger, saliency_partition
from vtm.models import VTM
from vtm.tasks.metric import VideoAccuracy
from vtm.training.callbacks import BestCheckpoint, EpochSeed, FiniteLoss, NeedlesKept, epoch_seed
from vtm.training.progress import ProgressLines


class Noisy(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Ten videos whose clips are noise from all three random generators, as an augmentation would draw it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.rand(4) + random.random() + float(np.random.rand())  # noqa: NPY002
        return noise + index % 2, torch.tensor(index % 2), torch.tensor(index)


class Still(Noisy):
    """The same videos without noise, for validation and test."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((4,), float(index)), torch.tensor(index % 2), torch.tensor(index)


class Tiny(LightningModule):
    """A network with dropout, Adam, a schedule by steps, and a metric by videos."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 2))
        self.val_accuracy, self.test_accuracy = VideoAccuracy(2), VideoAccuracy(2)
        self.rates: list[float] = []
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.val_accuracy.update(self.net(batch[0]).softmax(1), batch[1], batch[2])
        self.log("val/accuracy", self.val_accuracy)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.test_accuracy.update(self.net(batch[0]).softmax(1), batch[1], batch[2])
        self.log("test/accuracy", self.test_accuracy)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step) / 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Interruption(BaseException):
    """A simulated kill of a run; with KeyboardInterrupt, Lightning would exit pytest."""


class Interrupt(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.current_epoch == 2 and trainer.fit_loop.batch_idx == 1:
            raise Interruption


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    bar = any(isinstance(callback, ProgressLines) for callback in callbacks)
    options = {"enable_progress_bar": bar, "logger": False, "enable_checkpointing": bool(callbacks), **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )


def fit(
    folder: Path,
    workers: int,
    persistent: bool,
    distributed: bool,
    *,
    interrupt: bool = False,
    ckpt_path: Path | None = None,
) -> tuple[Tiny, Trainer]:
    best = ModelCheckpoint(
        folder, "best", monitor="val/accuracy", mode="max", save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks = [EpochSeed(3), best, last, *([Interrupt()] if interrupt else [])]
    trainer = make_trainer(folder, *callbacks, max_epochs=4, accumulate_grad_batches=2, num_sanity_val_steps=2)
    model = Tiny()
    torch.manual_seed(
        random.SystemRandom().getrandbits(32)
    )  # the result must not depend on the earlier random state of the process
    data = Noisy()
    # the sampler of a distributed run shuffles by epoch, which Lightning must set in time
    sampler = DistributedSampler(data, num_replicas=1, rank=0) if distributed else RandomSampler(data)
    loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers, persistent_workers=persistent)
    trainer.fit(model, loader, DataLoader(Still(), batch_size=5), ckpt_path=ckpt_path, weights_only=True)
    return model, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "persistent", "distributed"), [(0, False, False), (2, False, False), (2, True, False), (2, False, True)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, workers: int, persistent: bool, distributed: bool
) -> None:
    whole, whole_trainer = fit(tmp_path / "whole", workers, persistent, distributed)
    with pytest.raises(Interruption):
        fit(tmp_path / "parts", workers, persistent, distributed, interrupt=True)
    checkpoint = tmp_path / "parts" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    rest, rest_trainer = fit(tmp_path / "parts", workers, persistent, distributed, ckpt_path=checkpoint)
    assert whole.losses[-10:] == rest.losses
    assert whole.rates[-10:] == rest.rates
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, rest.state_dict()[name]), name
    moments, resumed = (trainer.optimizers[0].state_dict()["state"] for trainer in (whole_trainer, rest_trainer))
    assert all(torch.equal(moments[index][key], resumed[index][key]) for index in moments for key in moments[index])
    assert whole_trainer.global_step == rest_trainer.global_step == 12


class Told(Tiny):
    """A network that logs given validation scores and losses, one per epoch."""

    def __init__(self, scores: list[float], losses: list[float]) -> None:
        super().__init__()
        self.told = {"val/score": scores, "val/loss": losses}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({name: values[self.current_epoch] for name, values in self.told.items()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scores", "losses", "epoch"),
    [
        ([0.5, 0.75, 0.75, 0.75, 0.5], [1.0, 0.4, 0.2, 0.3, 0.1], 2),  # of three equal scores, the lowest loss
        ([0.5, 0.75, 0.5, 0.75, 0.75], [0.9, 0.8, 0.1, 0.8, 0.9], 1),  # of equal losses, the first epoch
        ([0.5, 0.75, 1.0, 0.75, 0.75], [0.1, 0.2, 0.9, 0.3, 0.1], 2),  # a better score before a lower loss
    ],
)
def test_the_best_epoch_is_of_the_highest_score_and_among_equals_of_the_lowest_loss(
    tmp_path: Path, scores: list[float], losses: list[float], epoch: int
) -> None:
    told(tmp_path, scores[:3], losses[:3])  # interrupted after three
    told(tmp_path, scores, losses, last=tmp_path / "last.ckpt")
    assert best_epoch(tmp_path) == epoch


def told(folder: Path, scores: list[float], losses: list[float], *, last: Path | None = None, **options: Any) -> None:
    callbacks = BestCheckpoint(str(folder)), ModelCheckpoint(folder, "last", enable_version_counter=False)
    trainer = make_trainer(folder, *callbacks, max_epochs=len(scores), num_sanity_val_steps=0, **options)
    trainer.fit(Told(scores, losses), still(), still(), ckpt_path=last, weights_only=True)


def best_epoch(folder: Path) -> int:
    epoch: int = torch.load(folder / "best.ckpt", weights_only=True)["epoch"]
    return epoch


@pytest.mark.filterwarnings("ignore")
def test_epochs_without_validation_are_passed_over(tmp_path: Path) -> None:
    told(tmp_path, [1.0, 0.5, 0.9, 0.75], [0.1] * 4, check_val_every_n_epoch=2)
    assert best_epoch(tmp_path) == 3


@pytest.mark.filterwarnings("ignore")
def test_an_epoch_with_a_nan_loss_is_replaced_as_best(tmp_path: Path) -> None:
    told(tmp_path, [0.5] * 3, [float("nan"), 0.3, 0.2])
    assert best_epoch(tmp_path) == 2


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_best_epoch_is_kept_if_the_folder_is_renamed(tmp_path: Path) -> None:
    told(tmp_path / "old", [0.5, 1.0], [0.5, 0.5])
    (tmp_path / "old").rename(tmp_path / "new")
    last = tmp_path / "new" / "last.ckpt"
    told(tmp_path / "new", [0.5, 1.0, 0.75], [0.5, 0.5, 0.1], last=last)
    assert best_epoch(tmp_path / "new") == 1
    with pytest.warns(UserWarning, match=r"best\.ckpt does not exist: only epochs from here on are compared"):
        told(tmp_path / "other", [0.5, 1.0, 0.75, 0.25], [0.5] * 4, last=last)
    assert best_epoch(tmp_path / "other") == 3


def test_epochs_and_ranks_draw_different_numbers() -> None:
    drawn = set()
    for seed, epoch, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        epoch_seed(seed, epoch, rank)
        drawn.add((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert len(drawn) == 4


def still() -> DataLoader[Any]:
    return DataLoader(Still(), batch_size=2)


def test_needles_are_followed_through_the_blocks_as_by_hand():
    clips = Needles(
        num_classes=3, frames=4, height=3, width=3, channels=8, num_needles=5, num_decoys=2, clutter=0.2,
        num_patterns=2, noise=0.1, needle_speed=0.0, other_speed=1.0, seed=0,
    )  # fmt: skip
    data = NeedleDataModule(
        clips=clips, num_train=3, num_val=2, num_test=4, root="nowhere", encoder=None, protocol=Single(num_frames=4),
        source=partial(NeedleSource, motion=False), batch_size=4, num_workers=0, seed=0, allow_missing=False,
    )  # fmt: skip
    torch.manual_seed(0)
    merger = partial(TokenMerger, partition=saliency_partition, partition_factor=3, merge_count=0.5, saliency_weight=1)
    model = VTM(8, 3, window_frames=(2, 4), channels=(8, 8), num_heads=2, dropout=0.0, merge_layer=merger).eval()
    batch = next(iter(data.test_dataloader()))
    output, logged = model(batch.inputs), {}
    trainer = SimpleNamespace()
    module = SimpleNamespace(data=data, log_dict=lambda values, **_: logged.update(values))
    NeedlesKept().on_test_batch_end(trainer, module, {"output": output}, batch, 0)

    found = {"kept_1": 0, "target_1": 0, "kept_2": 0, "target_2": 0}
    for b in range(4):
        needles = data.source.clip(data.videos("test")[b]).needles.flatten()
        positions = {token: token for token in range(36)}  # current positions of the tokens that are not merged away
        for number, trace in enumerate(output.blocks, 1):
            windows = len(trace.grouping.index) // 4
            size, groups = trace.grouping.index.shape[1], trace.grouping.num_groups
            after = {}
            for token, position in positions.items():
                row, inside = b * windows + position // size, position % size
                found[f"target_{number}"] += bool(needles[token]) and inside in trace.targets[row]
                if inside in trace.grouping.anchor[row]:
                    after[token] = position // size * groups + int(trace.grouping.index[row, inside])
            positions = after
            found[f"kept_{number}"] += sum(bool(needles[token]) for token in positions)
    assert logged["test/details/oracle"] == 1
    assert {name: float(logged[f"test/details/{name}"]) for name in found} == pytest.approx(
        {name: count / 20 for name, count in found.items()}
    )
    assert 0 < found["target_2"] < found["kept_2"] < found["kept_1"] < 20


class Diverging(Tiny):
    """A network whose loss is not finite at given steps, counted from 1."""

    def __init__(self, steps: set[int], *, score: float = 0.5, breaks_weights: bool = False) -> None:
        super().__init__()
        self.steps, self.score, self.breaks_weights = steps, score, breaks_weights

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if len(self.losses) in self.steps else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.breaks_weights:  # as mixed precision skips the step
            for parameter in self.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({"val/score": self.score, "val/loss": 1.0})


def diverge(folder: Path, model: Tiny, *, repeats: int = 1, **options: Any) -> Trainer:
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks = FiniteLoss(), BestCheckpoint(str(folder)), last
    trainer = make_trainer(folder, *callbacks, num_sanity_val_steps=0, **{"max_epochs": 8, **options})
    trainer.fit(model, DataLoader(ConcatDataset([Noisy()] * repeats), batch_size=2), still())
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_for_many_steps_in_a_row_stops_the_training(tmp_path: Path) -> None:
    message = (
        r"not been finite for 20 .* in a row: stopped in epoch 1 at step 22 with the learning rate \d.*; lower opt"
    )
    with pytest.raises(RuntimeError, match=message):
        diverge(tmp_path, Diverging(set(range(3, 99))), repeats=6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate_grad_batches", [1, 2])
def test_a_loss_that_is_not_finite_for_an_epoch_stops_the_training(
    tmp_path: Path, accumulate_grad_batches: int
) -> None:
    with pytest.raises(RuntimeError, match=r"not been finite for a whole epoch: stopped in epoch 2 at step"):
        diverge(tmp_path, Diverging(set(range(6, 11))), accumulate_grad_batches=accumulate_grad_batches)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


@pytest.mark.filterwarnings("ignore")
def test_single_steps_without_a_finite_loss_do_not_stop_the_training(tmp_path: Path) -> None:
    steps = set(range(1, 41)) - {5, 10, 15, 20, 25, 30, 35, 40}
    assert diverge(tmp_path, Diverging(steps)).global_step == 40


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_finite_stop_the_training_and_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"weights of the network are no longer finite: stopped in epoch 2 at step 10"
    ):
        diverge(tmp_path, Diverging({10}, breaks_weights=True))
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert content["epoch"] == 0
        assert all(value.isfinite().all() for value in content["state_dict"].values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("score", [float("nan"), float("-inf"), float("inf")])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path: Path, score: float) -> None:
    told(tmp_path / "some", [score, 0.5, score], [0.1] * 3)
    assert best_epoch(tmp_path / "some") == 1
    with pytest.raises(RuntimeError, match=r"val/score was not finite in any epoch, so none is the best; lower"):
        told(tmp_path / "none", [score] * 2, [0.1] * 2)

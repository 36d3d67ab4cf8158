"""Progress lines and the progress bar of a run."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vtm.tasks.metric import VideoAccuracy
from vtm.training.progress import NetworkSize, ProgressLines, progress_bar


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


def still() -> DataLoader[Any]:
    return DataLoader(Still(), batch_size=2)


@pytest.mark.filterwarnings("ignore")
def test_lines_show_every_batch_and_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, ProgressLines(every_seconds=0), max_epochs=2, accumulate_grad_batches=2)
    model = Tiny()
    trainer.fit(model, still(), still())
    trainer.test(model, still(), verbose=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "batch " in line or "accuracy" in line]
    train = [line for line in lines if line.startswith("epoch") and "batch " in line]
    assert [line.split("  ")[1] for line in train] == [f"batch {n}/5" for n in (1, 2, 3, 4, 5)] * 2
    assert [line.split("  ")[2] for line in train] == [f"loss {loss:.4g}" for loss in model.losses]
    assert train[-1].startswith("epoch 2/2 ")
    assert train[-1].endswith("remaining 0:00:00")
    assert "remaining" not in train[0]  # before the first step there is no rate
    assert sum(line.startswith("val  batch ") for line in lines) == 10
    assert [line[:21] for line in lines if "val/" in line] == ["epoch 1  val/accuracy", "epoch 2  val/accuracy"]
    assert lines[-1].startswith(f"test/accuracy {trainer.callback_metrics['test/accuracy']:.4g}  evaluated in 0:00:")


@pytest.mark.filterwarnings("ignore")
def test_lines_name_the_checkpoint_that_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    trainer, model = make_trainer(tmp_path, ProgressLines(), last, max_epochs=1), Tiny()
    trainer.fit(model, still(), still())
    capsys.readouterr()
    trainer.validate(model, still(), ckpt_path=last.best_model_path, verbose=False)
    trainer.test(model, still(), ckpt_path=last.best_model_path, verbose=False)
    assert [line[:19] for line in capsys.readouterr().out.splitlines()] == [
        "last.ckpt  val/accu",
        "last.ckpt  test/acc",
    ]


@pytest.mark.filterwarnings("ignore")
def test_the_size_of_the_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"enable_model_summary": True, "enable_checkpointing": False}
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False,
        callbacks=[NetworkSize()], **options,
    )  # fmt: skip
    trainer.fit(Tiny(), still(), still())
    assert capsys.readouterr().out.splitlines()[0].startswith("58 parameters to train, ")


@pytest.mark.filterwarnings("ignore")
def test_lines_are_rare_and_of_one_rank_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, ProgressLines(every_seconds=3600), max_epochs=1)
    trainer.fit(Tiny(), still(), still())
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("epoch", "val", "test"))]
    assert len(shown) == 1
    assert shown[0].startswith("epoch 1  val/accuracy ")
    silent = make_trainer(tmp_path, bar := ProgressLines(every_seconds=0), max_epochs=1)
    bar.disable()  # as Lightning does on every rank but the first
    silent.fit(Tiny(), still(), still())
    assert "epoch" not in capsys.readouterr().out


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert isinstance(progress_bar(), ProgressLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress_bar(), TQDMProgressBar)

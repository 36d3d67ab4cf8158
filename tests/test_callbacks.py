"""Progress, results, W&B, and runs that are interrupted and resumed."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler

from vtm.callbacks import (
    EpochSeed,
    ProgressLines,
    ResultsWriter,
    epoch_seed,
    progress_bar,
    results_table,
    source_commit,
    wandb_logger,
)
from vtm.metrics import VideoAccuracy, wilson_interval


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Noisy(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Ten videos whose clips are noise from all three generators, as an augmentation would draw it."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.rand(4) + random.random() + float(np.random.rand())  # noqa: NPY002
        return noise + index % 2, torch.tensor(index % 2), torch.tensor(index)


class Still(Noisy):
    """The same videos without noise, to validate and test on."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((4,), float(index)), torch.tensor(index % 2), torch.tensor(index)


class Tiny(LightningModule):
    """A network with dropout, Adam, a schedule by steps, and a metric by videos."""

    task = SimpleNamespace(name="scene")

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model": {"channels": [4, 2]}}
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

    def summary(self, stage: str) -> dict[str, Any]:
        metric = self.val_accuracy if stage == "val" else self.test_accuracy
        score = metric.summary()
        del score["videos"]
        return {**score, "floor": 0.5, "missing": 0, "ids_sha256": "0" * 64}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step) / 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Interruption(BaseException):
    """What a kill does to a run, for a test; Lightning would turn KeyboardInterrupt into an exit of pytest."""


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
    )  # nothing may depend on the state that a process happens to have
    data = Noisy()
    # the sampler of a distributed run shuffles by the number of the epoch, which Lightning has to tell it in time
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


def test_epochs_and_ranks_draw_different_numbers() -> None:
    drawn = set()
    for seed, epoch, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        epoch_seed(seed, epoch, rank)
        drawn.add((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002
    assert len(drawn) == 4


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
    assert "remaining" not in train[0]  # no step has been taken, so there is no rate to tell it from
    assert sum(line.startswith("val  batch ") for line in lines) == 10
    assert [line[:21] for line in lines if "val/" in line] == ["epoch 1  val/accuracy", "epoch 2  val/accuracy"]
    assert lines[-1].startswith(f"test/accuracy {trainer.callback_metrics['test/accuracy']:.4g}  in 0:00:")


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


def writer(path: Path) -> ResultsWriter:
    return ResultsWriter(path, experiment="lvu_scene", seed=5)


@pytest.mark.filterwarnings("ignore")
def test_results_hold_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, model = writer(tmp_path / "run" / "results.json"), Tiny()
    trainer = make_trainer(tmp_path, results, max_epochs=1)
    trainer.fit(model, still(), still())
    assert not results.path.exists()  # the validations of a fit are no result
    trainer.validate(model, still(), verbose=False)
    trainer.test(model, still(), verbose=False)
    results.checkpoint = "last"
    trainer.test(model, still(), verbose=False)
    found = json.loads(results.path.read_text())
    assert list(found) == ["experiment", "task", "seed", "commit", "versions", "config", "val", "test", "test_last"]
    assert (found["experiment"], found["task"], found["seed"]) == ("lvu_scene", "scene", 5)
    assert found["config"] == {"model": {"channels": [4, 2]}}
    assert set(found["versions"]) == {"python", "torch", "lightning", "timm", "vtm"}
    assert found["versions"]["torch"] == torch.__version__
    value = float(trainer.callback_metrics["test/accuracy"])
    assert found["test"] == {
        "level": "video",
        "metric": "accuracy",
        "value": pytest.approx(value),
        "interval": pytest.approx(wilson_interval(round(value * 10), 10)),
        "n": 10,
        "macro_accuracy": pytest.approx(value),  # the two classes are equally frequent
        "clip_level": {"value": pytest.approx(value), "n": 10},
        "floor": 0.5,
        "missing": 0,
        "ids_sha256": "0" * 64,
        "checkpoint": "best",
    }
    assert found["test_last"] == {**found["test"], "checkpoint": "last"}
    assert found["val"] == found["test"]  # the same videos
    printed = capsys.readouterr().out
    assert results_table({name: found[name] for name in ("val", "test")}) in printed
    assert results_table({"test_last": found["test_last"]}) in printed


def test_results_are_readable_by_others_and_never_half_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        results = writer(tmp_path / "results.json")
        trainer = make_trainer(tmp_path, results)
        trainer.test(Tiny(), still(), verbose=False)
        assert results.path.stat().st_mode & 0o777 == 0o644
        written = results.path.read_bytes()
        unwritable = Tiny()
        unwritable.config = {"model": object()}
        with pytest.raises(TypeError, match="object is not JSON serializable"):
            trainer.test(unwritable, still(), verbose=False)
        assert results.path.read_bytes() == written
        assert [file.name for file in tmp_path.iterdir() if "results" in file.name] == ["results.json"]
    finally:
        os.umask(before)


def test_table_is_aligned() -> None:
    score = {"metric": "mse", "value": 4.01, "floor": 4.084, "interval": [3.1, 5.0], "n": 126, "missing": 12}
    table = results_table({"test": {**score, "clip_level": {"value": 4.2, "n": 900}}}).splitlines()
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["test", "mse", "4.0100", "3.1000", "to", "5.0000", "4.0840", "126", "12", "4.2000"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_names_the_checkout_of_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "callbacks.py"
    source.write_text("one")
    assert source_commit(source) is None  # no checkout
    git("init")
    assert source_commit(source) is None  # a checkout of something else, as around a virtual environment
    git("add", ".")
    git("commit", "-m", "One")
    head = git("rev-parse", "HEAD")
    assert source_commit(source) == head
    source.write_text("two")
    assert source_commit(source) == f"{head}+dirty"


@pytest.fixture
def no_wandb_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nothing answers


TWO_JOBS = """
import sys
import vtm.callbacks
assert "wandb" not in sys.modules
vtm.callbacks.finish_wandb()
for job in ("a", "b"):
    logger = vtm.callbacks.wandb_logger(project="p", save_dir=f"{sys.argv[1]}/{job}")
    logger.log_metrics({"loss": 1.0}, step=3)
    print(logger.version)
vtm.callbacks.finish_wandb()
import wandb
assert wandb.run is None
"""


@pytest.mark.usefixtures("no_wandb_account")
def test_without_a_key_every_job_is_an_offline_run_in_its_own_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_JOBS, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    said = done.stdout.splitlines()
    assert len(said) == 4
    for job, sentence, version in (("a", *said[:2]), ("b", *said[2:])):
        (folder,) = (tmp_path / job / "wandb").glob("offline-run-*")
        assert folder.name.endswith(version)
        assert sentence == (
            f"W&B: no API key was found, so this run is logged offline in {folder}; "
            f"to upload it, run `wandb login` and then `wandb sync {folder}`."
        )
    assert "wandb" not in done.stderr


class Run:
    """What `wandb.init` returns, as far as it is used before Lightning takes over."""

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")

    def define_metric(self, *_: object, **__: object) -> None: ...


@pytest.mark.usefixtures("no_wandb_account")
def test_a_server_that_does_not_answer_means_offline_unless_online_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        if arguments.get("mode") != "offline":
            raise wandb.errors.CommError("timed out\nmore")
        return Run(tmp_path)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb_logger(project="p", save_dir=tmp_path / "new", name="n", tags=["t"])
    assert [call.get("mode") for call in calls] == [None, "offline"]
    assert all((call["name"], call["tags"], call["dir"]) == ("n", ["t"], str(tmp_path / "new")) for call in calls)
    assert calls[0]["settings"].init_timeout == 10
    assert capsys.readouterr().out.startswith("W&B: the server did not accept the run (timed out), so this run is ")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(wandb.errors.CommError):
        wandb_logger(project="p", save_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb_account")
def test_a_key_without_a_network_falls_back_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    script = "import sys, vtm.callbacks as c; c.wandb_logger(project='p', save_dir=sys.argv[1]); c.finish_wandb()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=80)
    assert "so this run is logged offline in" in done.stdout


def test_other_ranks_start_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(project="p", save_dir=tmp_path / "run")
    assert logger.version is None
    assert not (tmp_path / "run").exists()

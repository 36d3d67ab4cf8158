"""The files that a test leaves, `results.json` and predictions, and the printed report."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vtm.data.dataset import Batch, Clip, collate
from vtm.results.summary import NOTE, results_report
from vtm.system.measure import device_name
from vtm.tasks.intervals import wilson_interval
from vtm.tasks.metric import VideoAccuracy
from vtm.tasks.predictions import Predictions
from vtm.training.results_writer import ResultsWriter

PUBLISHED = {
    "Alpha": {"value": 0.595},
    "Beta": {"value": 0.7558, "n": 86},
    "Gamma": {"value": 0.9, "remark": "clip-level, 7B LLM"},
    "Delta": {"value": 0.7558, "n": 81, "remark": "test set merged"},
}


class Still(Dataset[Clip]):
    """Ten videos of two equally frequent classes."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Clip:
        pixels = torch.full((4,), index, dtype=torch.uint8)
        return Clip(pixels, None, None, torch.tensor(index % 2), index, f"{index}", False, None)


class Tiny(LightningModule):
    """A network whose validation score is highest after its second epoch."""

    task = SimpleNamespace(name="scene")
    class_names: list[str] | None = ["even", "odd"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model": {"channels": [4, 2]}}
        self.net = nn.Linear(4, 2)
        self.metrics = nn.ModuleDict({"val": VideoAccuracy(2), "test": VideoAccuracy(2)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch.inputs.float()), batch.target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score("val", batch)
        self.log("val/score", float(self.current_epoch == 1))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score("test", batch)

    def _score(self, stage: str, batch: Batch) -> None:
        self.metrics[stage].update(self.net(batch.inputs.float()).softmax(1), batch.target, batch.index)
        self.log(f"{stage}/accuracy", self.metrics[stage])

    def summary(self, stage: str) -> dict[str, Any]:
        score = self.metrics[stage].summary()
        videos = score.pop("videos")
        ids, targets = [f"video {index}" for index in videos], [index % 2 for index in videos]
        predictions = Predictions(ids, targets, score.pop("scores"), self.class_names)
        return {
            **score,
            "predictions": predictions,
            **({} if self.class_names is None else {"per_class": predictions.per_class()}),
            "floor": 0.5,
            "missing": 1,
            "missing_ids": ["an id"],
            "ids_sha256": "0" * 64,
            "selection": "val",
            "damaged_videos": 0,
            "train_videos": {"n": 8, "missing": 2},
            "tokens": [240, 60, 12],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vtm"] = {"format": 2, "encoder": "none", "classes": None, "config": self.config}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
        **options,
    )


def still() -> DataLoader[Any]:
    return DataLoader(Still(), batch_size=4, collate_fn=collate)


def writer(path: Path) -> ResultsWriter:
    return ResultsWriter(path, experiment="lvu_scene", seed=5, published=PUBLISHED)


@pytest.mark.filterwarnings("ignore")
def test_results_hold_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, model = writer(tmp_path / "run" / "results.json"), Tiny()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/score", mode="max", save_on_train_epoch_end=True)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    trainer = make_trainer(tmp_path, results, best, last, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(model, still(), still())
    assert not results.path.exists()  # validations during a fit are not written
    for path in results.each({"best": best.best_model_path, "last": last.best_model_path}):
        trainer.validate(model, still(), ckpt_path=path, verbose=False)
        trainer.test(model, still(), ckpt_path=path, verbose=False)
    found = json.loads(results.path.read_text())
    run = ["experiment", "task", "seed", "commit", "versions", "config", "published"]
    assert list(found) == [*run, "val", "test", "val_last", "test_last"]
    assert (found["experiment"], found["task"], found["seed"]) == ("lvu_scene", "scene", 5)
    assert found["config"] == {"model": {"channels": [4, 2]}}
    assert set(found["versions"]) == {"python", "torch", "lightning", "timm", "av", "vtm"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["published"] == {"note": NOTE, "figures": PUBLISHED}
    costs = [found[name].pop("cost") for name in ("val", "test", "val_last", "test_last")]
    value = float(trainer.callback_metrics["test/accuracy"])
    assert found["test_last"] == {
        "level": "video",
        "metric": "accuracy",
        "value": pytest.approx(value),
        "interval": pytest.approx(wilson_interval(round(value * 10), 10)),
        "n": 10,
        "macro_accuracy": pytest.approx(value),  # the two classes are equally frequent
        "per_class": found["val_last"]["per_class"],
        "clip_level": {"value": pytest.approx(value), "n": 10},
        "floor": 0.5,
        "missing": 1,
        "missing_ids": ["an id"],
        "ids_sha256": "0" * 64,
        "selection": "val",
        "damaged_videos": 0,
        "train_videos": {"n": 8, "missing": 2},
        "checkpoint": "last",
        "epoch": 3,
    }
    assert [found["test_last"]["per_class"][name]["n"] for name in ("even", "odd")] == [5, 5]
    assert found["val_last"] == found["test_last"]  # the same videos
    assert (found["test"]["checkpoint"], found["test"]["epoch"]) == ("best", 2)
    for cost in costs:
        assert cost.pop("clips_per_second") > 0
        assert (cost.pop("peak_gb") or 0) < 10
        assert cost == {
            "device": device_name("cpu"), "inputs": "frames", "batch_size": 4, "tokens": [240, 60, 12]
        }  # fmt: skip
    scores = {name: found[name] for name in ("val", "test", "val_last", "test_last")}
    printed = capsys.readouterr().out
    files = "confusion.csv, confusion.pdf, confusion.png, predictions.csv, predictions_last.csv"
    assert printed == f"{results_report(found, scores)}\nwritten to {results.path}, with {files}\n"  # once


@pytest.mark.filterwarnings("ignore")
def test_the_epoch_is_that_of_the_checkpoint_in_a_process_that_never_trained(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    make_trainer(tmp_path, last, max_epochs=2).fit(Tiny(), still(), still())
    results = writer(tmp_path / "results.json")
    tester = make_trainer(tmp_path, results)
    for path in results.each({"given": last.best_model_path}):
        tester.test(Tiny(), still(), ckpt_path=path, verbose=False)
    test = json.loads(results.path.read_text())["test"]
    assert (test["checkpoint"], test["epoch"]) == ("given", 2)
    tester.test(Tiny(), still(), verbose=False)
    assert (
        json.loads(results.path.read_text())["test"]["epoch"] is None
    )  # unknown, and not the epoch of the previous test


@pytest.mark.filterwarnings("ignore")
def test_the_best_epoch_that_is_the_last_is_tested_once_and_written_as_both(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    make_trainer(tmp_path, last, max_epochs=2).fit(Tiny(), still(), still())
    results = writer(tmp_path / "results.json")
    tester = make_trainer(tmp_path, results)
    paths = [*results.each({"best": last.best_model_path, "last": last.best_model_path})]
    assert paths == [last.best_model_path]
    tester.test(Tiny(), still(), ckpt_path=paths[0], verbose=False)
    found = json.loads(results.path.read_text())
    assert (found["test"].pop("checkpoint"), found["test_last"].pop("checkpoint")) == ("best", "last")
    assert found["test"] == found["test_last"]
    assert [*results.each({"best": "", "last": ""})] == []  # nothing was saved


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_every_test_leaves_its_predictions_and_the_best_its_confusion_matrix(tmp_path: Path) -> None:
    results, model = writer(tmp_path / "results.json"), Tiny()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/score", mode="max", save_on_train_epoch_end=True)
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    trainer = make_trainer(tmp_path, results, best, last, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(model, still(), still())
    confusion = ["confusion.csv", "confusion.pdf", "confusion.png"]
    written = []
    for path in results.each({"best": best.best_model_path, "last": last.best_model_path}):
        trainer.validate(model, still(), ckpt_path=path, verbose=False)
        trainer.test(model, still(), ckpt_path=path, verbose=False)
        written.append(sorted(file.name for file in tmp_path.iterdir() if file.suffix in (".csv", ".pdf", ".png")))
    assert written == [[*confusion, "predictions.csv"], [*confusion, "predictions.csv", "predictions_last.csv"]]
    found = json.loads(results.path.read_text())
    for name, stage in (("predictions.csv", "test"), ("predictions_last.csv", "test_last")):
        rows = read(tmp_path / name)
        assert list(rows[0]) == ["id", "target", "prediction", "probability_even", "probability_odd"]
        assert [row["id"] for row in rows] == [f"video {index}" for index in range(10)]
        assert [row["target"] for row in rows] == ["even", "odd"] * 5
        right = sum(row["target"] == row["prediction"] for row in rows)
        assert found[stage]["value"] == pytest.approx(right / 10)
    counts = {row["target"]: row for row in read(tmp_path / "confusion.csv")}
    for name, score in found["test"]["per_class"].items():
        assert int(counts[name][name]) / score["n"] == pytest.approx(score["accuracy"])


@pytest.mark.filterwarnings("ignore")
def test_the_best_epoch_that_is_the_last_has_its_predictions_in_both_files(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    make_trainer(tmp_path, last, max_epochs=1).fit(Tiny(), still(), still())
    results = writer(tmp_path / "results.json")
    for path in results.each({"best": last.best_model_path, "last": last.best_model_path}):
        make_trainer(tmp_path, results).test(Tiny(), still(), ckpt_path=path, verbose=False)
    assert read(tmp_path / "predictions.csv") == read(tmp_path / "predictions_last.csv") != []


def test_a_regression_leaves_predictions_only(tmp_path: Path) -> None:
    class Values(Tiny):
        class_names = None

        def summary(self, stage: str) -> dict[str, Any]:
            found = super().summary(stage)
            values = [probabilities[1] for probabilities in found["predictions"].scores]
            return found | {"predictions": replace(found["predictions"], scores=values)}

    make_trainer(tmp_path, writer(tmp_path / "results.json")).test(Values(), still(), verbose=False)
    assert list(read(tmp_path / "predictions.csv")[0]) == ["id", "target", "prediction"]
    assert not list(tmp_path.glob("confusion*"))


def test_without_published_figures_there_is_no_note_on_them(tmp_path: Path) -> None:
    results = ResultsWriter(tmp_path / "results.json", experiment="demo", seed=0, published={})
    tester = make_trainer(tmp_path, results)
    tester.test(Tiny(), still(), verbose=False)
    assert json.loads(results.path.read_text())["published"] == {"figures": {}}


@pytest.mark.parametrize(("count", "batch_size"), [(14, 4), (4, 4), (3, 3)])
def test_cost_has_the_speed_and_the_kind_of_inputs(tmp_path: Path, count: int, batch_size: int) -> None:
    results = writer(tmp_path / "results.json")
    clips = [Clip(torch.zeros(4), None, None, torch.tensor(i % 2), i, f"{i}", False, None) for i in range(count)]
    loader = DataLoader(clips, batch_size=4, collate_fn=collate)
    make_trainer(tmp_path, results).test(Tiny(), loader, verbose=False)
    cost = json.loads(results.path.read_text())["test"]["cost"]
    assert (cost["inputs"], cost["batch_size"], cost["tokens"]) == ("features", batch_size, [240, 60, 12])
    assert cost["clips_per_second"] > 0
    assert cost["peak_gb"] is None  # not on a CPU
    assert cost["device"] == device_name("cpu")


def test_other_ranks_take_part_in_the_summary_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    module: Any = SimpleNamespace(summary=lambda stage: asked.append(stage) or {})
    trainer: Any = SimpleNamespace(is_global_zero=False, ckpt_path=None)
    writer(tmp_path / "results.json").on_test_end(trainer, module)
    assert asked == ["test"]
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


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


@pytest.mark.filterwarnings("ignore")
def test_earlier_results_are_kept_until_the_next_test_is_complete(tmp_path: Path) -> None:
    results = writer(tmp_path / "results.json")
    results.path.write_text("earlier")
    trainer = make_trainer(tmp_path, results)
    trainer.validate(Tiny(), still(), verbose=False)
    assert results.path.read_text() == "earlier"
    trainer.test(Tiny(), still(), verbose=False)
    assert {"val", "test"} <= json.loads(results.path.read_text()).keys()

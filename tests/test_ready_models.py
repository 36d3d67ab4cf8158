"""A ready model is tested, fine-tuned with merging, resumed and exported by the commands, as a user calls them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

import train
from vtm import load
from vtm.export import export
from vtm.visualize import visualize

CLASSES = ["purple-pink", "red-orange", "yellow-green", "cyan-blue"]  # not in the order of the data
PROCESSOR = {"size": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.25]}
RUN = [
    "experiment=folder", "data=demo", "data.num_train=8", "data.num_val=4", "data.num_test=8", "data.scene.seconds=4",
    "data.scene.height=48", "data.scene.width=64", "data.scene.object_size=16", "data.num_workers=0",
    "data.batch_size=4", "trainer=cpu", "scheduler.warmup_epochs=0", "logger=csv", "encoder=pixels",
    "model=video_transformer", "data/protocol=dense", "data.protocol.num_frames=4", "data.protocol.rate=4",
    "model/merge=merge_similar",
]  # fmt: skip

pytestmark = pytest.mark.slow


class StopAfter(Callback):
    """Stop a run after some epochs, as if it were interrupted then."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a trained classifier, as a user has it, with its own processor file."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        num_frames=4, image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=48, id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )  # fmt: skip
    folder = tmp_path / "videomae"
    model = transformers.VideoMAEForVideoClassification(config)
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_ready_model_is_tested_fine_tuned_resumed_and_exported(call, saved, tmp_path):
    run = [*RUN, f"data.root={tmp_path / 'demo'}", f"model.host.name={saved}"]
    zero = tmp_path / "zero"
    views = ["data.protocol.views=2", "data.protocol.num_crops=3", "model.merge.count=0"]
    call(train.main, tmp_path, *run, "train=false", *views, f"hydra.run.dir={zero}")
    found = results(zero)
    assert found["config"]["encoder"]["mean"] == [0.5, 0.4, 0.3]
    assert (found["test"]["n"], found["test"]["clip_level"]["n"], "val" in found) == (8, 48, False)
    assert found["test"]["cost"]["tokens"] == [32, 32, 32, 32]

    tuned = ["model.merge.count=3", "model.frozen_layers=1", "optimizer.lr=3e-3", "trainer.max_epochs=6"]
    whole = tmp_path / "whole"
    call(train.main, tmp_path, *run, *tuned, f"hydra.run.dir={whole}", "trainer.log_every_n_steps=1")
    assert results(whole)["test"]["cost"]["tokens"] == [32, 29, 26, 23]
    assert sum(losses(whole)[-4:]) < 0.8 * sum(losses(whole)[:4])
    other, last = tmp_path / "other", whole / "checkpoints" / "last.ckpt"
    dropping = ["train=false", f"ckpt_path={last}", "model/merge=drop_similar", "model.merge.count=5"]
    call(train.main, tmp_path, *run, *dropping, f"hydra.run.dir={other}")  # merging has no weights
    assert results(other)["test"]["cost"]["tokens"] == [32, 27, 22, 17]
    part = tmp_path / "part"
    stop = "+callbacks.stop={_target_: tests.test_ready_models.StopAfter, epochs: 3}"
    call(train.main, tmp_path, *run, *tuned, f"hydra.run.dir={part}", stop)
    last = part / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 2
    call(train.main, tmp_path, *run, *tuned, f"ckpt_path={last}")
    expected, resumed = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, part)
    )
    assert resumed["epoch"] == expected["epoch"] == 5
    assert all(torch.equal(resumed["state_dict"][name], value) for name, value in expected["state_dict"].items())

    model_file = tmp_path / "model.safetensors"
    saved.rename(saved.with_name("moved"))  # a model file needs no other
    assert list(export(whole / "checkpoints" / "last.ckpt", model_file, ""))
    model = load(model_file)
    with (whole / "predictions_last.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:2]:
        prediction = model.predict(tmp_path / "demo" / "videos" / row["id"])
        scores = [float(row[f"probability_{label}"]) for label in model.labels]
        torch.testing.assert_close(prediction.scores, scores, rtol=1e-4, atol=1e-5)
        assert prediction.label == row["prediction"]
    video = tmp_path / "demo" / "videos" / rows[0]["id"]
    assert len(list(visualize(model, video, tmp_path / "pictures", kinds=("page",)))) == 1
    with pytest.raises(ValueError, match="VideoTransformer takes whole clips only"):
        model.predict(video, stream=True)
    with pytest.raises(Exception, match=r"whose blocks merge for a fixed one: export to safetensors"):
        list(export(whole / "checkpoints" / "last.ckpt", tmp_path / "model.pt2", ""))


def test_an_experiment_with_settings_of_another_network_is_refused(call, tmp_path):
    run = ["experiment=demo", f"data.root={tmp_path / 'demo'}", "encoder=pixels", "model=video_transformer"]
    small = ["data.num_train=4", "data.num_val=4", "data.num_test=4", "data.scene.seconds=1"]
    with pytest.raises(SystemExit, match=r"experiment demo sets model\.window_frames.*such as experiment=folder"):
        call(train.main, tmp_path, *run, *small, "model.host.pretrained=false")


def test_a_last_layer_without_training_is_not_tested(call, saved, tmp_path):
    run = [*RUN, f"data.root={tmp_path / 'demo'}", "model.merge.count=0", "train=false"]
    with pytest.raises(SystemExit, match=r"train=false needs ckpt_path=<file>.*last layer of the network is new"):
        call(train.main, tmp_path, *run, f"model.host.name={saved}", "model.new_classifier=true")
    with pytest.raises(SystemExit, match=r"train=false needs ckpt_path=<file>"):
        call(train.main, tmp_path, *run, "model.host.pretrained=false")

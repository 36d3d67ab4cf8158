"""The LightningModule on a tiny encoder and clips in memory: checkpoints, fine-tuning, evaluation, schedule."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vtm.data.dataset import Clip, collate
from vtm.data.sampling import Single
from vtm.data.source import Video
from vtm.encoders import Encoder
from vtm.merging import (
    FeatureGrid,
    NoMerger,
    TokenMerger,
    center_partition,
    motion_partition,
    saliency_partition,
    saliency_weights,
)
from vtm.models import VTM
from vtm.tasks.classification import Classification
from vtm.tasks.fusion import AuxiliaryLoss
from vtm.tasks.regression import Regression
from vtm.tasks.task import Task
from vtm.training.callbacks import EpochSeed
from vtm.training.checkpoint import fine_tune
from vtm.training.module import VTMModule
from vtm.training.optim import cosine_with_warmup

CLASSIFICATION = partial(Classification, label_smoothing=0.1, class_weights="balanced", fusion=AuxiliaryLoss(1.0))


class PatchEncoder(Encoder):
    """One random convolution: 16 pixels to 2 x 2 tokens."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(
            "patch", frames_per_step=1, chunk=8, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=16, squash=False,
            normalize=True, pretrained=False, checkpoint=None, seed=seed, precision="float32", storage="float32",
        )  # fmt: skip

    def build(self, *, load: bool) -> nn.Module:
        return nn.Conv2d(3, 8, 8, 8)

    def encode(self, backbone: nn.Module, frames: Tensor) -> Tensor:
        return backbone(frames).permute(0, 2, 3, 1)


class Clips(L.LightningDataModule):
    """Twelve bright or dark videos of four frames, with two clips each in evaluation."""

    protocol = Single(num_frames=4)
    selection = "val"
    source = SimpleNamespace(motion=False)

    def __init__(self, targets: list[float] | None = None, *, repeats: int = 2) -> None:
        super().__init__()
        self.class_names = ["dark", "bright"]
        self.targets = targets or [0, 1, 1] * 4
        self.repeats = repeats

    def read_split(self, split: str) -> list[Video]:
        return [Video(f"{split}/{i}", Path("none"), target) for i, target in enumerate(self.targets)]

    videos = listed = read_split

    def missing(self, split: str) -> list[str]:
        return ["train/lost"] if split == "train" else []

    def train_targets(self) -> Tensor:
        return torch.tensor(self.targets)

    def _loader(self, split: str, repeats: int) -> DataLoader[Clip]:
        clips = []
        for i, target in enumerate(self.targets):
            for repeat in range(repeats):
                generator = torch.Generator().manual_seed(100 * i + repeat)
                pixels = torch.randint(0, 128, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
                pixels += 100 if target == 1 else 0
                clips.append(
                    Clip(
                        pixels, None, None, torch.tensor(target), i, f"{split}/{i}@{repeat}", i % 2 == repeat == 1, None
                    )
                )
        return DataLoader(clips, batch_size=4, collate_fn=collate)

    def train_dataloader(self) -> DataLoader[Clip]:
        return self._loader("train", 1)

    def val_dataloader(self) -> DataLoader[Clip]:
        return self._loader("val", self.repeats)

    def test_dataloader(self) -> DataLoader[Clip]:
        return self._loader("test", self.repeats)


def module(
    task: Task | None = None,
    *,
    data: Clips | None = None,
    outputs: int = 2,
    encoder: Encoder | None = None,
    channels: int = 4,
    **merger: Any,
) -> VTMModule:
    torch.manual_seed(0)
    merge_layer = partial(
        TokenMerger, partition=saliency_partition, partition_factor=2, merge_count=0.5,
        weighting=partial(saliency_weights, beta=1.0), saliency_weight=1.0, **merger,
    )  # fmt: skip
    network = VTM(
        8, outputs, window_frames=(2, 4), channels=(channels, 4), num_heads=2, dropout=0.1, merge_layer=merge_layer
    )
    return VTMModule(
        encoder or PatchEncoder(), network, task or CLASSIFICATION(outputs), data or Clips(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        scheduler=partial(cosine_with_warmup, warmup_epochs=1),
        config={"seed": 0, "model": {"channels": [channels, 4]}},
    )  # fmt: skip


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 2, "callbacks": [EpochSeed(0)], **quiet, **options}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = trainer(folder)
    run.fit(module(), Clips())
    run.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_checkpoint_is_plain_describes_itself_and_holds_no_encoder(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["vtm"] == {
        "format": 2, "threads": 1, "encoder": PatchEncoder().key, "classes": ["dark", "bright"],
        "config": {"seed": 0, "model": {"channels": [4, 4]}},
    }  # fmt: skip
    assert content["state_dict"]
    assert not any(name.startswith("encoder.") for name in content["state_dict"])
    assert "task.class_weights" in content["state_dict"]


def test_a_checkpoint_restores_the_tested_model(checkpoint, tmp_path):
    first, second = module(), module()
    for parameter in second.model.parameters():
        parameter.data.zero_()
    trainer(tmp_path).test(first, Clips(), ckpt_path=checkpoint, verbose=False)
    trainer(tmp_path).test(second, Clips(), ckpt_path=checkpoint, verbose=False)
    assert first.summary("test") == second.summary("test")
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_other_classes_is_refused(checkpoint, tmp_path):
    data = Clips()
    data.class_names = ["bright", "dark"]
    with pytest.raises(ValueError, match=r"other classes: it has dark where the data have bright"):
        trainer(tmp_path).test(module(data=data), data, ckpt_path=checkpoint)


def test_a_checkpoint_of_another_encoder_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"belongs to encoder patch-random0-.*, but this run has patch-random1-"):
        trainer(tmp_path).test(module(encoder=PatchEncoder(1)), Clips(), ckpt_path=checkpoint)


@pytest.mark.parametrize("what", ["fit", "test"])
def test_a_checkpoint_of_other_settings_is_refused(checkpoint, tmp_path, what):
    other = module()
    other.config = {"seed": 0, "model": {"channels": [8, 4]}}
    message = r"was trained with model\.channels = \[4, 4\], but this run has \[8, 4\]"
    with pytest.raises(ValueError, match=message):
        getattr(trainer(tmp_path), what)(other, Clips(), ckpt_path=checkpoint)


def test_a_run_is_resumed_with_its_seed_and_tested_with_any(checkpoint, tmp_path):
    other = module()
    other.config = {"seed": 1, "model": {"channels": [4, 4]}}
    with pytest.raises(
        ValueError, match=r"was trained with seed = 0, but this run has 1; a run is resumed with the se"
    ):
        trainer(tmp_path).fit(other, Clips(), ckpt_path=checkpoint)
    trainer(tmp_path).test(other, Clips(), ckpt_path=checkpoint, verbose=False)


def test_blocks_longer_than_the_clips_are_not_trained(tmp_path):
    lit = module()
    lit.model = VTM(
        8, 2, window_frames=(2, 4, 8), channels=(4, 4, 4), num_heads=2, dropout=0.0, merge_layer=NoMerger
    )  # fmt: skip
    trainer(tmp_path).fit(lit, Clips())
    assert [all(p.requires_grad for p in block.parameters()) for block in lit.model.blocks] == [True, True, False]


def test_videos_of_one_performance_widen_the_interval(tmp_path):
    class Performances(Clips):
        def read_split(self, split):
            videos = super().read_split(split)
            return [replace(video, cluster=f"performance {i // 6}") for i, video in enumerate(videos)]

        videos = listed = read_split

    alone, together = module(), module(data=Performances())
    trainer(tmp_path).test(alone, Clips(), verbose=False)
    trainer(tmp_path).test(together, Performances(), verbose=False)
    assert alone.summary("test")["value"] == together.summary("test")["value"]
    assert alone.summary("test")["interval"] != together.summary("test")["interval"]
    predictions = together.summary("test")["predictions"]
    number = {video.id: i for i, video in enumerate(Clips().videos("test"))}
    assert predictions.clusters == [f"performance {number[id] // 6}" for id in predictions.ids]
    assert alone.summary("test")["predictions"].clusters is None


def test_a_foreign_checkpoint_is_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["vtm"]
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of vtm, or is damaged"):
        trainer(tmp_path).test(module(), Clips(), ckpt_path=tmp_path / "foreign.ckpt")


def test_fine_tuning_takes_the_network_and_a_new_head(checkpoint):
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    lit = module(outputs=5)
    head = lit.model.head.weight.detach().clone()
    fine_tune(lit.model, checkpoint, encoder_key=lit.encoder.key)
    assert torch.equal(lit.model.head.weight, head)
    for name, value in lit.model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, trained[f"model.{name}"])


def test_fine_tuning_another_network_names_a_tensor(checkpoint):
    with pytest.raises(ValueError, match=r"holds another network: \d+ of its tensors, such as blocks\.0\.auxiliary"):
        fine_tune(module(channels=8).model, checkpoint, encoder_key=PatchEncoder().key)


def test_the_summary_has_all_fields_of_a_score(tmp_path):
    lit = module()
    trainer(tmp_path).test(lit, Clips(), verbose=False)
    summary = lit.summary("test")
    assert summary["n"] == 12
    assert (summary["missing"], summary["missing_ids"]) == (0, [])
    assert summary["selection"] == "val"
    assert summary["damaged_videos"] == 6  # one clip of every second video
    assert summary["train_videos"] == {"n": 11, "missing": 1}
    assert summary["clip_level"]["n"] == 24
    assert summary["floor"] == pytest.approx(8 / 12)
    assert len(summary["ids_sha256"]) == 64
    assert summary["tokens"] == [16, 12, 9]  # two windows of 8 leave 6 each, these 12 leave 9


def test_the_summary_holds_the_predictions_of_the_evaluated_videos(tmp_path):
    lit = module()
    trainer(tmp_path, limit_test_batches=4).test(lit, Clips(), verbose=False)
    summary = lit.summary("test")
    predictions = summary["predictions"]
    assert predictions.ids == [f"test/{i}" for i in range(8)]
    assert (predictions.targets, predictions.class_names) == ([0, 1, 1, 0, 1, 1, 0, 1], ["dark", "bright"])
    right = [guess == target for guess, target in zip(predictions.classes(), predictions.targets, strict=True)]
    assert sum(right) / 8 == pytest.approx(summary["value"])
    assert summary["per_class"] == predictions.per_class()


def test_ranks_that_see_other_videos_are_stopped(tmp_path, monkeypatch):
    run, lit = trainer(tmp_path), module()
    monkeypatch.setattr(type(run.strategy), "broadcast", lambda self, value, src=0: "what rank 0 sees")
    with pytest.raises(
        RuntimeError, match=r"other processes see different train videos from this one, which sees 12; wait"
    ):
        run.fit(lit, Clips())


def test_a_partial_test_counts_only_its_videos(tmp_path):
    lit = module()
    trainer(tmp_path, limit_test_batches=2).test(lit, Clips(), verbose=False)
    assert (lit.summary("test")["n"], lit.summary("test")["missing"]) == (4, 8)


def test_regression_trains_and_scores(tmp_path):
    targets = [0.5, 2.5, -1.0] * 4
    data = Clips(targets)
    data.class_names = None
    lit = module(Regression(1, fusion=AuxiliaryLoss(0.5)), data=data, outputs=1)
    run = trainer(tmp_path)
    run.fit(lit, data)
    run.test(lit, data, verbose=False)
    summary = lit.summary("test")
    assert summary["metric"] == "mse"
    assert "per_class" not in summary
    predictions = summary["predictions"]
    errors = [(value - target) ** 2 for value, target in zip(predictions.scores, predictions.targets, strict=True)]
    assert sum(errors) / 12 == pytest.approx(summary["value"])
    assert run.callback_metrics["test/score"] == -run.callback_metrics["test/mse"]


def test_training_lowers_the_loss(tmp_path):
    lit, data = module(Classification(2, label_smoothing=0.0, class_weights=None, fusion=AuxiliaryLoss(1.0))), Clips()
    run = trainer(tmp_path, max_epochs=20)
    run.validate(lit, data, verbose=False)
    before = run.callback_metrics["val/loss"]
    run.fit(lit, data)
    assert run.callback_metrics["val/loss"] < before
    assert run.callback_metrics["val/accuracy"] > 0.9


def test_sampling_in_evaluation_does_not_depend_on_the_batch(tmp_path):
    lit = module(sample_in_eval=True).eval()
    (batch,) = [batch for i, batch in enumerate(Clips().val_dataloader()) if i == 0]
    together = lit(batch).logits
    for i in range(4):
        row = batch._replace(inputs=batch.inputs[i : i + 1], id=batch.id[i : i + 1])
        torch.testing.assert_close(lit(row).logits[0], together[i])
    assert torch.equal(lit(batch).logits, together)
    other = lit(batch._replace(id=[f"{clip}-other" for clip in batch.id])).logits
    assert not torch.equal(other, together)


def test_stored_features_score_like_their_frames(tmp_path):
    lit = module().eval()
    batch = next(iter(Clips().val_dataloader()))
    features = lit.encoder(batch.inputs)
    assert torch.equal(lit(batch._replace(inputs=features)).logits, lit(batch).logits)


def test_targets_beyond_the_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class 7"):
        trainer(tmp_path).fit(module(data=Clips([0, 7, 1])), Clips([0, 7, 1]))


@pytest.mark.parametrize(
    "settings",
    [{"partition": center_partition}, {"partition": saliency_partition, "saliency_weight": 1.0}],
    ids=["center", "learnable"],
)
def test_with_a_class_token_any_strategy_merges(tmp_path, settings):
    encoder = PatchEncoder()
    encoder.grid = FeatureGrid(1, 3, prefix=1)
    encoder.encode = lambda backbone, frames: backbone(frames).flatten(2).mT[:, None]  # (n, 1, 4, C)
    lit = module(encoder=encoder)
    merge_layer = partial(TokenMerger, partition_factor=2, merge_count=0.5, **settings)
    sizes = {"window_frames": (2, 4), "channels": (4, 4), "num_heads": 2, "dropout": 0.1}
    lit.model = VTM(8, 2, encoder.grid, merge_layer=merge_layer, **sizes)
    trainer(tmp_path).validate(lit, Clips(), verbose=False)
    assert lit.summary("val")["tokens"] == [16, 12, 9]


def test_a_network_that_merges_by_motion_needs_data_that_read_it(tmp_path):
    lit = module()
    lit.model.blocks[0].merger.partition = motion_partition
    with pytest.raises(ValueError, match="merges by motion, but the data do not read it: set motion=true"):
        trainer(tmp_path).validate(lit, Clips(), verbose=False)


class Rates(L.Callback):
    """The learning rate of every optimization step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def rates(folder: Path, *, clips: int = 12, ckpt_path: Path | None = None, lit: Any = None, **options: Any) -> Rates:
    """Train on some of the clips, four in a batch, and return the learning rates; write last.ckpt."""
    found = Rates()
    run = trainer(folder, callbacks=[EpochSeed(0), found], **options)
    data = Clips(([0, 1, 1] * 16)[:clips])
    lit = lit or module(data=data)
    run.fit(lit, data, ckpt_path=ckpt_path, weights_only=True)
    run.save_checkpoint(folder / "last.ckpt")
    return found


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({}, {"accumulate_grad_batches": 3}),
        ({"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 1}),
        ({}, {"clips": 44}),
        ({"clips": 44}, {"clips": 4}),
        ({"limit_train_batches": 1}, {}),
        ({}, {"limit_train_batches": 2}),
    ],
)
def test_the_learning_rate_of_a_resumed_run_follows_the_epochs(tmp_path, before, after):
    whole = rates(tmp_path / "whole", max_epochs=6, **after).rates
    rates(tmp_path / "first", max_epochs=3, **before)
    resumed = rates(tmp_path / "resumed", max_epochs=6, ckpt_path=tmp_path / "first" / "last.ckpt", **after).rates
    assert len(whole) == 2 * len(resumed)
    assert resumed == whole[len(resumed) :]
    assert resumed == sorted(resumed, reverse=True)
    assert 0 < resumed[-1] < resumed[0] < 1e-2


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_the_learning_rate_of_a_resumed_run_follows_the_steps_if_they_are_limited(tmp_path):
    rates(tmp_path, max_epochs=2)  # of 3 steps each
    options = {"max_epochs": -1, "max_steps": 10, "clips": 20}
    resumed = rates(tmp_path, ckpt_path=tmp_path / "last.ckpt", **options).rates
    assert resumed == rates(tmp_path, **options).rates[6:]
    assert len(resumed) == 4


def test_a_schedule_that_cannot_move_is_refused_with_both_steps(tmp_path):
    def lit(clips: int) -> VTMModule:
        lit = module(data=Clips(([0, 1, 1] * 16)[:clips]))
        lit.scheduler = lambda optimizer, **_: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return lit

    first = rates(tmp_path, max_epochs=2, lit=lit(12)).rates
    more = rates(tmp_path, max_epochs=3, lit=lit(12), ckpt_path=tmp_path / "last.ckpt").rates
    assert [*first, *more] == pytest.approx([1e-2 * 0.9**step for step in range(9)])
    with pytest.raises(ValueError, match=r"is at step 9 of the .* would be at step 33; resume with the data"):
        rates(tmp_path, max_epochs=4, clips=44, lit=lit(44), ckpt_path=tmp_path / "last.ckpt")


def test_a_training_without_an_end_in_epochs_or_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.max_epochs = -1 without trainer\.max_steps leaves .*; set trainer"):
        rates(tmp_path, max_epochs=-1, max_time="00:00:01:00")


def test_weights_that_are_not_finite_are_not_saved(checkpoint, tmp_path):
    lit, run = module(), trainer(tmp_path)
    run.fit(lit, Clips())
    lit.model.head.bias.data[0] = float("inf")
    with pytest.raises(RuntimeError, match=r"not finite in epoch \d+, at step \d+, so they are not saved; lower opt"):
        run.save_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").exists()

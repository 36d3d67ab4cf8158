"""The sheet logged to W&B: in which epochs, of which clip, from frames or features."""

import os
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib import image
from torch import Tensor, nn

import vtm.training.picture_logger
from vtm.data.datasets.folder import FolderDataModule
from vtm.data.datasets.needle import NeedleDataModule, Needles, NeedleSource
from vtm.data.sampling import Single, Windows
from vtm.data.source import VideoFiles
from vtm.encoders import Encoder, Precomputed
from vtm.merging import FeatureGrid, TokenMerger, saliency_partition
from vtm.models import VTM
from vtm.pictures.features import feature_colors
from vtm.pictures.layers import enlarge
from vtm.tasks.classification import Classification
from vtm.tasks.fusion import AuxiliaryLoss
from vtm.tasks.regression import Regression
from vtm.training.loggers import closing_wandb, tensorboard_logger, wandb_logger
from vtm.training.module import VTMModule
from vtm.training.optim import cosine_with_warmup
from vtm.training.picture_logger import PictureLogger

CLASSIFY = Classification(2, label_smoothing=0.0, class_weights=None, fusion=AuxiliaryLoss(1.0))
LOADING = {"batch_size": 2, "num_workers": 0, "seed": 0, "allow_missing": False}


class Patches(Encoder):
    """One random convolution: 32 pixels to 2 × 2 tokens, or to a row of five of which the first is the average."""

    def __init__(self, *, row: bool = False, frames_per_step: int = 1) -> None:
        self.row = row
        super().__init__(
            "patch", frames_per_step=frames_per_step, chunk=8, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=32,
            squash=False, normalize=True, pretrained=False, checkpoint=None, seed=0, precision="float32",
            storage="float32",
        )  # fmt: skip
        if row:
            self.grid = FeatureGrid(2, 2, prefix=1)

    def build(self, *, load: bool) -> nn.Module:
        return nn.Conv2d(3, 8, 16, 16)

    def encode(self, backbone: nn.Module, frames: Tensor) -> Tensor:
        tokens = backbone(frames[:: self.frames.frames_per_step]).permute(0, 2, 3, 1)
        if not self.row:
            return tokens
        row = tokens.flatten(1, 2)
        return torch.cat([row.mean(1, keepdim=True), row], dim=1)[:, None]


class Kept(WandbLogger):
    """A W&B logger that only keeps the pictures."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        self.kept.append({"key": key, "images": images, "step": step, **kwargs})

    name = version = save_dir = None
    log_hyperparams = log_metrics = save = finalize = after_save_checkpoint = lambda *_, **__: None


def module(encoder: Any, data: Any, task: Any = CLASSIFY, *, outputs: int = 2) -> VTMModule:
    merger = partial(
        TokenMerger, partition=saliency_partition, partition_factor=2, merge_count=0.5, saliency_weight=1.0
    )
    network = VTM(
        8, outputs, window_frames=(2, 4), channels=(8, 8), num_heads=2, dropout=0.0, merge_layer=merger
    )  # fmt: skip
    return VTMModule(
        encoder, network, task, data, optimizer=partial(torch.optim.AdamW, lr=1e-3),
        scheduler=partial(cosine_with_warmup, warmup_epochs=0), config={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_video) -> Path:
    """Videos of 2.5 to 9 s, two of each class in every split."""
    root = tmp_path_factory.mktemp("folder")
    rows = ["path,label,split"]
    for number in range(12):
        split, label = ("train", "val", "test")[number % 3], "ab"[number % 2]
        make_video(root / "videos" / f"{number:02}.mp4", 2.5 if number == 1 else 4 + number / 2)
        rows.append(f"{number:02}.mp4,{label},{split}")
    (root / "videos.csv").write_text("\n".join(rows) + "\n")
    return root


def videos(root: Path, encoder: Encoder, protocol: Any, *, regression: bool = False) -> FolderDataModule:
    source = partial(VideoFiles, motion=False)
    return FolderDataModule(
        root=root, protocol=protocol, source=source, encoder=encoder, regression=regression, **LOADING
    )


def fit(folder: Path, model: VTMModule, *loggers: Any, every: int = 2, epochs: int = 4) -> L.Trainer:
    trainer = L.Trainer(
        default_root_dir=folder, max_epochs=epochs, logger=list(loggers), callbacks=[PictureLogger(every_epochs=every)],
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, model.data)
    return trainer


def first_row(sheet: Any, frames: Tensor, grid: tuple[int, int]) -> bool:
    """Return whether a sheet shows these pictures as its frames."""
    pictures = enlarge(frames, grid, 250)
    _, height, width, _ = pictures.shape
    windows = [
        np.s_[196 : 196 + height, x : x + width] for x in range(232, 232 + len(frames) * (width + 10), width + 10)
    ]
    return all(np.array_equal(sheet[at], picture) for at, picture in zip(windows, pictures, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_sheets_come_every_few_epochs_and_after_the_last(tmp_path, root):
    encoder, logger = Patches(), Kept()
    data = videos(root, encoder, Single(num_frames=4))
    model = module(encoder, data)
    trainer = fit(tmp_path, model, logger, epochs=4)
    assert [kept["step"] for kept in logger.kept] == [2 * epoch for epoch in (1, 3, 4)]
    trainer.validate(model, data, verbose=False)
    trainer.test(model, data, verbose=False)
    assert len(logger.kept) == 3
    batch = next(iter(data.val_dataloader()))
    for kept in logger.kept:
        assert kept["key"] == "val/merged"
        assert kept["caption"] == ["01.mp4@0.00, true: b"]
        assert first_row(kept["images"][0], batch.inputs[0], (2, 2))
    assert not np.array_equal(logger.kept[0]["images"][0], logger.kept[-1]["images"][0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("row", "frames_per_step", "protocol", "steps"),
    [
        (True, 1, Single(num_frames=4), 4),
        (False, 2, Single(num_frames=4), 4),
        (False, 1, Windows(num_frames=4, stride=1), 3),  # 2.5 s: the last step is padded
    ],
    ids=["cls", "two frames a step", "padded"],
)
def test_the_frames_are_those_of_the_batch(tmp_path, root, row, frames_per_step, protocol, steps):
    encoder, logger = Patches(row=row, frames_per_step=frames_per_step), Kept()
    data = videos(root, encoder, protocol)
    fit(tmp_path, module(encoder, data), logger, epochs=1)
    batch = next(iter(data.val_dataloader()))
    (kept,) = logger.kept
    assert first_row(kept["images"][0], batch.inputs[0][::frames_per_step][:steps], (2, 2))
    assert kept["images"][0].shape[1] == 232 + max(steps * 260 - 10, 1000) + 36


@pytest.mark.filterwarnings("ignore")
def test_features_are_shown_in_colors(tmp_path):
    clips = Needles(
        num_classes=2, frames=4, height=3, width=4, channels=8, num_needles=3, num_decoys=2, clutter=0.2,
        num_patterns=2, noise=0.1, needle_speed=0.0, other_speed=1.0, seed=0,
    )  # fmt: skip
    data = NeedleDataModule(
        clips=clips, num_train=4, num_val=4, num_test=2, root="nowhere", encoder=None, protocol=Single(num_frames=4),
        source=partial(NeedleSource, motion=False), **LOADING,
    )  # fmt: skip
    logger = Kept()
    fit(tmp_path, module(Precomputed("needle", grid=(3, 4), channels=8), data), logger, epochs=1)
    (kept,) = logger.kept
    features = next(iter(data.val_dataloader())).inputs[0]
    assert first_row(kept["images"][0], feature_colors(features), (3, 4))
    assert kept["caption"][0].endswith("true: class 0")


@pytest.mark.filterwarnings("ignore")
def test_a_regression_is_shown_with_its_value(tmp_path, root, monkeypatch):
    table = (root / "videos.csv").read_text().replace(",a,", ",1.5,").replace(",b,", ",-2,")
    (tmp_path / "videos.csv").write_text(table)
    (tmp_path / "videos").symlink_to(root / "videos")
    encoder, logger = Patches(), Kept()
    data = videos(tmp_path, encoder, Single(num_frames=4), regression=True)
    task = Regression(1, fusion=AuxiliaryLoss(1.0))
    shown = []
    monkeypatch.setattr(
        vtm.training.picture_logger, "draw_sheet", lambda view, **words: shown.append((view.scores, words))
    )
    fit(tmp_path / "run", module(encoder, data, task, outputs=1), logger, epochs=1)
    assert logger.kept[0]["caption"] == ["01.mp4@0.00, true: −2.00"]
    ((scores, words),) = shown
    ((name, value),) = scores
    assert (name, type(value)) == ("value", float)
    assert (words["title"], words["truth"]) == ("01.mp4@0.00", "−2.00")


@pytest.mark.filterwarnings("ignore")
def test_the_sheet_shows_the_true_and_the_predicted_class(tmp_path, root, monkeypatch):
    encoder, shown = Patches(), []
    monkeypatch.setattr(
        vtm.training.picture_logger, "draw_sheet", lambda view, **words: shown.append((view.scores, words))
    )
    fit(tmp_path, module(encoder, videos(root, encoder, Single(num_frames=4))), Kept(), epochs=1)
    ((scores, words),) = shown
    assert (words["title"], words["truth"]) == ("01.mp4@0.00", "b")
    assert sorted(name for name, _ in scores) == ["a", "b"]


@pytest.mark.filterwarnings("ignore")
def test_without_wandb_nothing_is_drawn(tmp_path, root, monkeypatch):
    monkeypatch.setattr(vtm.training.picture_logger, "draw_sheet", None)
    encoder = Patches()
    fit(tmp_path, module(encoder, videos(root, encoder, Single(num_frames=4))), epochs=1)


@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_the_sheet(tmp_path, root, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    encoder = Patches()
    data = videos(root, encoder, Single(num_frames=4))
    with closing_wandb():
        fit(tmp_path, module(encoder, data), wandb_logger(project="p", save_dir=tmp_path), epochs=1)
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/images/val/merged_*.png")
    batch = next(iter(data.val_dataloader()))
    sheet = (image.imread(path)[..., :3] * 255).round().astype(np.uint8)
    assert first_row(sheet, batch.inputs[0], (2, 2))


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_takes_the_sheet(tmp_path, root):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    encoder = Patches()
    data = videos(root, encoder, Single(num_frames=4))
    logger = tensorboard_logger(save_dir=tmp_path)
    fit(tmp_path, module(encoder, data), logger, epochs=1)
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (drawn,) = events.Images("val/merged")
    sheet = (image.imread(BytesIO(drawn.encoded_image_string))[..., :3] * 255).round().astype(np.uint8)
    assert first_row(sheet, next(iter(data.val_dataloader())).inputs[0], (2, 2))
    (text,) = events.Tensors("val/merged/text_summary")
    assert text.tensor_proto.string_val == [b"01.mp4@0.00, true: b"]


def test_epochs_are_counted_from_one():
    with pytest.raises(ValueError, match="expected every_epochs of at least 1, got 0"):
        PictureLogger(every_epochs=0)

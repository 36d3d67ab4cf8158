"""Every experiment trains and tests on small videos with the ids of the real lists, and on their stored features."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

import train
from tests.official_lists import LABELS, TEMPLATES, write_epic_kitchens, write_kinetics400, write_ssv2
from vtm import check_data, extract
from vtm.data.datamodule import VideoDataModule
from vtm.training import results_writer
from vtm.video.writing import write_video

ROOT = Path(__file__).parents[1]
OTHERS = ("demo", "folder", "needle", "needle_videos")  # without official lists
READY = ("epic_videomae", "k400_motionformer", "k400_timesformer", "k400_videomae", "k400_vivit", "ssv2_videomae")
EXPERIMENTS = sorted(
    path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml") if path.stem not in OTHERS + READY
)
SMALL = [
    "encoder=vit_tiny_random", "encoder.image_size=32", "encoder.model_args.depth=1", "encoder.storage=bfloat16",
    "model.channels=[8,8,8]", "model.num_heads=2", "data.num_workers=0", "data.batch_size=4", "data.allow_missing=true",
    "trainer=cpu", "trainer.max_epochs=1", "scheduler.warmup_epochs=0", "logger=csv",
]  # fmt: skip
PRESENT = 3  # videos of each split
STORED = ("breakfast", "coin", "lvu_like", "lvu_scene")  # every data set and task; the others only have other lists

pytestmark = pytest.mark.slow


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def write_some(data: VideoDataModule) -> None:
    """Write a few videos of each split, with the lengths in the lists."""
    for split in ("train", "val", "test"):
        videos = data.read_split(split)
        for number, video in enumerate(videos[:: len(videos) // PRESENT][:PRESENT]):
            noise = np.random.default_rng(number).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
            seconds = round(video.end or 20) + 1
            video.path.parent.mkdir(parents=True, exist_ok=True)
            frames = (noise[second // 5 % 4] for second in range(seconds))
            write_video(video.path, frames, fps=1, options={"preset": "ultrafast"})


def train_on_videos(name: str, call: Callable[..., None], tmp_path: Path) -> tuple[list[str], dict[str, Any]]:
    """Train and test an experiment on videos; return its overrides and results."""
    folder = ROOT / "data" / name.partition("_")[0]
    if not (folder / "annotations").is_dir():
        pytest.skip(f"no lists in {folder}")
    root = tmp_path / "data"
    root.mkdir()
    (root / "annotations").symlink_to((folder / "annotations").resolve())
    protocol = "data.protocol.stride=40" if name.startswith("lvu") else "data.protocol.train_positions=128"
    overrides = [f"experiment={name}", f"data.root={root}", protocol, *SMALL]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=overrides)
    write_some(instantiate(config.data, encoder=instantiate(config.encoder)))
    call(train.main, tmp_path / "videos", *overrides)
    found = results(tmp_path / "videos")
    assert found["test"]["n"] == PRESENT
    assert found["test"]["missing"] == len(found["test"]["missing_ids"]) > 0
    return overrides, found


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in STORED])
def test_experiment_from_videos(name, call, tmp_path):
    train_on_videos(name, call, tmp_path)


@pytest.mark.parametrize("name", STORED)
def test_experiment_from_videos_and_from_features(name, call, tmp_path):
    overrides, ours = train_on_videos(name, call, tmp_path)
    call(extract.main, tmp_path / "extract", *overrides)
    call(train.main, tmp_path / "features", *overrides, "data/source=features")
    theirs = results(tmp_path / "features")
    for stage in ("val", "test", "val_last", "test_last"):
        del ours[stage]["cost"], theirs[stage]["cost"]
        assert ours[stage] == theirs[stage]

    with pytest.raises(SystemExit, match=r"videos are not sound, see .*problems.csv"):
        call(check_data.main, tmp_path / "check", *overrides)
    with pytest.raises(SystemExit, match=r"videos are missing.*check_data"):
        call(train.main, tmp_path / "strict", *overrides, "data.allow_missing=false")


def write_lists(name: str, root: Path) -> None:
    """Write lists like the official ones."""
    if name.startswith("k400"):
        write_kinetics400(root, val=[(label, f"video{number:06}", 5, 15) for number, label in enumerate(LABELS[:6])])
    elif name.startswith("ssv2"):
        pairs = [(str(number), template) for number, template in enumerate(3 * TEMPLATES[:40])]
        write_ssv2(root, train=pairs, validation=[("999", TEMPLATES[0]), ("998", TEMPLATES[1]), ("997", TEMPLATES[2])])
    else:
        segments = [
            (f"P{number:02}_101_{number}", f"00:00:0{number % 5}.50", f"00:00:1{number % 10}.00", number, number)
            for number in range(36)
        ]
        write_epic_kitchens(root, train=segments[:30], validation=segments[30:])


TINY = {"num_frames": 4, "image_size": 32, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48}
HOSTS: dict[str, dict[str, Any]] = {
    "videomae": {**TINY, "num_hidden_layers": 2, "patch_size": 8},
    "timesformer": {**TINY, "num_hidden_layers": 2, "patch_size": 8},
    "vivit": {**TINY, "num_hidden_layers": 2, "tubelet_size": [2, 8, 8]},
    "motionformer": {"num_frames": 4, "image_size": 32, "width": 24, "depth": 2, "num_heads": 3},
}


@pytest.mark.filterwarnings("ignore:.*without training videos:UserWarning")
@pytest.mark.parametrize("name", READY)
def test_experiment_of_a_ready_model(name, call, tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(results_writer, "draw_confusion", lambda *given: None)  # of 400 classes, it takes seconds
    root, host = tmp_path / "data", name.partition("_")[2]
    write_lists(name, root)
    config = ",".join(f"{key}:{value}" for key, value in HOSTS[host].items()).replace(" ", "")
    overrides = [
        f"experiment={name}", f"data.root={root}", "data.num_workers=0", "data.batch_size=4", "data.allow_missing=true",
        "trainer=cpu", "trainer.max_epochs=1", "scheduler.warmup_epochs=0", "logger=csv", "model/merge=merge_similar",
        "model.merge.count=1", "host_defaults.num_frames=4", "host_defaults.image_size=32", "data.protocol.rate=2",
        "model.host.pretrained=false", f"+model.host.config={{{config}}}",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", overrides=overrides)
    write_some(instantiate(composed.data, encoder=instantiate(composed.encoder)))
    call(train.main, tmp_path / "run", *overrides)
    found = results(tmp_path / "run")
    assert found["test"]["n"] == PRESENT
    tokens = found["test"]["cost"]["tokens"]
    assert len(tokens) == 3
    assert tokens[0] > tokens[1] > tokens[2]
    (best, *_) = sorted(composed.published, key=lambda method: -composed.published[method].value)
    assert best in capsys.readouterr().out  # the published rows beside ours


def test_saliency_is_learnt_where_uniform_merging_loses_the_needles(call, tmp_path):
    easy = ["data.clips.num_needles=6", "data.clips.num_decoys=0", "data.clips.num_classes=4", "data.clips.noise=0.2"]
    few = ["data.num_train=480", "data.num_val=80", "data.num_test=160", "trainer=cpu", "trainer.max_epochs=8"]
    scores = {}
    for merging in ("learnable", "uniform"):
        call(train.main, tmp_path / merging, "experiment=needle", f"merging={merging}", *easy, *few)
        scores[merging] = results(tmp_path / merging)["test_last"]
    assert scores["learnable"]["value"] > 0.95
    assert scores["learnable"]["details"]["kept_3"] > 0.9
    assert scores["uniform"]["value"] < scores["learnable"]["value"] - 0.1
    assert scores["uniform"]["details"]["oracle"] == 1

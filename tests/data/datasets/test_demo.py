import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vtm.data.datasets.demo import DemoDataModule, Scene
from vtm.data.sampling import Single
from vtm.video.reading import read_frames
from vtm.video.scanning import duration

SMALL = Scene(
    num_classes=4,
    seconds=6,
    fps=4,
    height=48,
    width=64,
    object_size=16,
    min_visible=0.3,
    max_visible=0.4,
    num_distractors=2,
    object_speed=8,
    distractor_speed=32,
    pan_speed=32,
)


@pytest.fixture(scope="module")
def make(loading):
    def make(root, *, scene=SMALL, num_train=8, data_seed=0, seed=0):
        return DemoDataModule(
            scene=scene,
            num_train=num_train,
            num_val=4,
            num_test=5,
            data_seed=data_seed,
            **loading(root, protocol=Single(num_frames=6), seed=seed),
        )

    return make


@pytest.fixture(scope="module")
def demo(make, tmp_path_factory):
    module = make(tmp_path_factory.mktemp("demo"))
    module.prepare_data()
    return module


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_splits_are_balanced_and_readable(demo):
    assert {split: len(demo.videos(split)) for split in ("train", "val", "test")} == {"train": 8, "val": 4, "test": 5}
    assert torch.bincount(demo.train_targets()).tolist() == [2, 2, 2, 2]
    video = demo.videos("test")[2]
    assert video.id == f"test/{demo.class_names[2]}/0002.mp4"
    assert video.target == 2
    assert duration(video.path) == pytest.approx(6.0) == video.end
    batch = next(iter(demo.test_dataloader()))
    assert batch.inputs.shape == (2, 6, 3, 48, 48)
    assert batch.inputs.float().std() > 10


def test_the_same_settings_give_the_same_bytes(make, demo, tmp_path):
    again = make(tmp_path / "again", seed=7)
    again.prepare_data()
    assert contents(again.root) == contents(demo.root)
    other = make(tmp_path / "other", data_seed=1)
    other.prepare_data()
    name = demo.videos("train")[0].id
    assert (other.root / "videos" / name).read_bytes() != (demo.root / "videos" / name).read_bytes()


def test_interrupted_writing_goes_on_with_the_missing_files(make, demo, tmp_path, monkeypatch):
    module = make(tmp_path)
    render = Scene.render
    calls = []

    def fails_after_five(scene, label, rng):
        calls.append(label)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return render(scene, label, rng)

    monkeypatch.setattr(Scene, "render", fails_after_five)
    with pytest.raises(KeyboardInterrupt):
        module.prepare_data()
    assert not (tmp_path / "demo.json").exists()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(there) == 5
    monkeypatch.undo()
    make(tmp_path).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert contents(tmp_path) == contents(demo.root)


def test_a_complete_set_is_not_written_again(make, demo):
    before = {path: path.stat().st_mtime_ns for path in demo.root.rglob("*")}
    make(demo.root).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in demo.root.rglob("*")} == before


def test_a_set_with_other_settings_is_refused(make, demo, tmp_path):
    with pytest.raises(ValueError, match=r"demo.json.*'num_train': 8.*'num_train': 12.*another root"):
        make(demo.root, num_train=12).prepare_data()
    (tmp_path / "demo.json.begun").write_text("{}")
    with pytest.raises(ValueError, match=r"demo.json.begun"):
        make(tmp_path).prepare_data()


def test_progress_goes_to_the_log_line_by_line(make, tmp_path, capsys):
    make(tmp_path).prepare_data()
    assert capsys.readouterr().err.startswith("writing demonstration videos: 17 of 17, ")


def bare(scene, **changes):
    """Mark the pixels of the object: where the same video of classes 0 and 1 differs, without distractors and noise."""
    scene = replace(scene, num_distractors=0, noise=0.0, **changes)
    first, second = (np.stack(list(scene.render(label, np.random.default_rng(3)))) for label in (0, 1))
    return (first != second).any(-1)  # (F, H, W), where the object is


def test_the_object_is_rare_small_and_inside_the_center_crop():
    scene = replace(SMALL, seconds=24, fps=8)
    where = bare(scene)
    share = where.any((1, 2)).mean()
    assert 0.29 < share < 0.41
    frames = where[where.any((1, 2))]
    assert frames.sum((1, 2)).max() <= np.pi / 4 * 16**2 * 1.1
    assert not where[:, :, :8].any()
    assert not where[:, :, -8:].any()
    starts = np.flatnonzero(np.diff(where.any((1, 2)).astype(int)) == 1)
    assert 1 <= len(starts) <= 4


def test_visibility_is_a_setting():
    assert bare(SMALL, min_visible=1.0, max_visible=1.0).any((1, 2)).all()
    assert bare(SMALL, min_visible=1e-6, max_visible=1e-6).any((1, 2)).sum() == 1


@pytest.mark.parametrize("seed", range(5))
def test_three_to_five_shots_move(seed):
    scene = replace(SMALL, seconds=24, fps=8, num_distractors=0, noise=0.0)
    frames = np.stack(list(scene.render(0, np.random.default_rng(seed)))).astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert (change > 0.2).mean() > 0.9
    color = frames.mean((1, 2))  # drifts in a shot and jumps at a cut
    assert 2 <= (np.abs(np.diff(color, axis=0)).sum(1) > 30).sum() <= 4


HUES = {"red": 0, "orange": 30, "yellow": 58, "green": 120, "cyan": 180, "blue": 230, "purple": 275, "pink": 320}


def test_both_colors_of_the_class_and_no_others_survive_the_encoder(make, tmp_path):
    module = make(tmp_path, scene=replace(SMALL, num_distractors=0), num_train=4)
    module.prepare_data()
    for video in module.videos("train"):
        frames = read_frames(video.path, [number / 4 for number in range(24)], size=48).pixels.float()
        colorful = frames.amax(1) - frames.amin(1) > 150  # (T, S, S)
        assert 0.25 < colorful.any(2).any(1).float().mean() < 0.45
        pixels = frames.permute(0, 2, 3, 1)[colorful] / 255
        hues = 360 * np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels.tolist()])
        near = [
            (np.abs((hues - HUES[color] + 180) % 360 - 180) < 20).mean()
            for color in module.class_names[video.target].split("-")
        ]
        assert min(near) > 0.2
        assert sum(near) > 0.8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": 5}, "num_classes"),
        ({"min_visible": 0.5, "max_visible": 0.4}, "min_visible"),
        ({"object_size": 25}, "object_size"),
        ({"width": 512}, "height and width"),
    ],
)
def test_impossible_scenes_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **changes)


def test_every_class_has_two_colors_of_its_own():
    names = replace(SMALL, num_classes=4).class_names
    colors = [color for name in names for color in name.split("-")]
    assert sorted(colors) == sorted(HUES)

from pathlib import Path

import pytest
import torch

from vtm.data.breakfast import BreakfastDataModule
from vtm.data.sampling import Single

ROOT = Path(__file__).parents[2] / "data" / "breakfast"
LOADING = {
    "protocol": Single(num_frames=4),
    "image_size": 48,
    "frames_per_step": 2,
    "batch_size": 1,
    "num_workers": 0,
    "seed": 0,
}
ROWS = {
    "train": ["P39-cam01-P39_tea,5,tea,1", "P40-cam01-P40_tea,4,tea,1", "P46-stereo-P46_cereals_ch0,4,cereals,0"],
    "test": ["P47-cam01-P47_cereals,4,cereals,0", "P47-webcam02-P47_cereals,4,cereals,0"],
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name, rows in ROWS.items():
        text = "\n".join(["file_name,duration,action,class_id", *rows, ""])
        (tmp_path / "annotations" / f"{name}.csv").write_text(text)
    return tmp_path


@pytest.mark.skipif(not (ROOT / "annotations").is_dir(), reason="the lists of Breakfast are not there")
def test_real_lists_have_the_published_numbers():
    module = BreakfastDataModule(root=ROOT, **LOADING)
    splits = {split: module.read_split(split) for split in ("train", "val", "test")}
    assert len(splits["train"]) + len(splits["val"]) == 1357
    assert len(splits["test"]) == 355
    assert len({video.id for videos in splits.values() for video in videos}) == 1712
    people = {split: {video.id.split("-")[0] for video in videos} for split, videos in splits.items()}
    assert people["train"] == {f"P{number:02}" for number in range(3, 40)}
    assert people["val"] == {f"P{number}" for number in range(40, 47)}
    assert people["test"] == {f"P{number}" for number in range(47, 55)}
    counts = torch.bincount(torch.tensor([v.target for split in ("train", "val") for v in splits[split]])).tolist()
    assert counts == [146, 133, 147, 122, 137, 130, 136, 126, 152, 128]
    assert torch.bincount(torch.tensor([v.target for v in splits["test"]])).tolist() == [
        38, 34, 37, 35, 36, 36, 33, 36, 35, 35,
    ]  # fmt: skip
    assert module.class_names[:4] == ["cereals", "coffee", "tea", "pancake"]
    assert module.num_outputs == 10


def test_held_out_participants_are_the_validation_part(root):
    module = BreakfastDataModule(root=root, **LOADING)
    assert [video.id for video in module.read_split("train")] == ["P39-cam01-P39_tea"]
    assert [video.id for video in module.read_split("val")] == ["P40-cam01-P40_tea", "P46-stereo-P46_cereals_ch0"]
    assert [video.target for video in module.read_split("val")] == [1, 0]
    assert module.class_names == ["cereals", "tea"]


def test_videos_lie_in_folders_or_flat(stamps, root):
    stamps.write(root / "videos" / "P47" / "cam01" / "P47_cereals.avi", 60, fps=15, codec="mpeg4")
    stamps.write(root / "videos" / "P47-webcam02-P47_cereals.mp4", 75, fps=15)
    batches = list(BreakfastDataModule(root=root, **LOADING).test_dataloader())
    assert [batch.id for batch in batches] == [["P47-cam01-P47_cereals@0.00"], ["P47-webcam02-P47_cereals@0.00"]]
    assert stamps.read(batches[0].inputs[0]) == [7, 8, 22, 23, 37, 38, 52, 53]  # two from each of 0.5, 1.5, … s


def test_missing_videos_are_named_by_their_place_in_the_distribution(root):
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 train videos.*videos/P39/cam01/P39_tea"):
        BreakfastDataModule(root=root, **LOADING).train_dataloader()


def test_other_names_are_refused(root):
    path = root / "annotations" / "test.csv"
    path.write_text("file_name,duration,action,class_id\nP47_cereals,4,cereals,0\n")
    with pytest.raises(ValueError, match=r"test.csv.*got P47_cereals"):
        BreakfastDataModule(root=root, **LOADING).read_split("test")

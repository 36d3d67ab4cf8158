import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from vtm.data.datasets.breakfast import BreakfastDataModule
from vtm.data.sampling import Single

ROOT = Path(__file__).parents[3] / "data" / "breakfast"
ROWS = {
    "train": ["P39-cam01-P39_tea,5,tea,1", "P40-cam01-P40_tea,4,tea,1", "P46-stereo-P46_cereals_ch0,4,cereals,0"],
    "test": ["P47-cam01-P47_cereals,4,cereals,0", "P47-webcam02-P47_cereals,4,cereals,0"],
}


CAMERAS = ("cam01", "cam02", "stereo", "webcam01", "webcam02")


@pytest.fixture
def make(loading):
    return lambda root, *, hold_out=True: BreakfastDataModule(
        hold_out=hold_out, **loading(root, protocol=Single(num_frames=4), batch_size=1)
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name, rows in ROWS.items():
        text = "\n".join(["file_name,duration,action,class_id", *rows, ""])
        (tmp_path / "annotations" / f"{name}.csv").write_text(text)
    return tmp_path


real = pytest.mark.skipif(not (ROOT / "annotations").is_dir(), reason="the lists of Breakfast are not there")


def people(videos):
    return {video.id.split("-")[0] for video in videos}


def per_camera(videos):
    counts = Counter(video.id.split("-")[1] for video in videos)
    assert set(counts) == set(CAMERAS)
    return [counts[camera] for camera in CAMERAS]


def per_class(videos):
    return torch.bincount(torch.tensor([video.target for video in videos])).tolist()


@real
def test_real_lists_have_the_published_numbers(make):
    module = make(ROOT, hold_out=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the official lists have no fault
        train, test = module.read_split("train"), module.read_split("test")
    assert (len(train), len(test), len({video.id for video in (*train, *test)})) == (1357, 355, 1712)
    assert people(train) == {f"P{number:02}" for number in range(3, 47)}
    assert people(test) == {f"P{number}" for number in range(47, 55)}
    assert per_class(train) == [146, 133, 147, 122, 137, 130, 136, 126, 152, 128]
    assert per_class(test) == [38, 34, 37, 35, 36, 36, 33, 36, 35, 35]
    assert per_camera(train) == [367, 195, 248, 288, 259]
    assert per_camera(test) == [66, 77, 56, 77, 79]
    stereo = [video for video in (*train, *test) if "-stereo-" in video.id]
    assert all(video.id.endswith("_ch0") for video in stereo)
    assert stereo[0].path.relative_to(ROOT).parts[2:] == ("stereo", stereo[0].id.split("-")[2] + ".mp4")
    assert len({video.cluster for video in test}) == 80
    assert {video.cluster for video in train}.isdisjoint(video.cluster for video in test)
    assert module.num_outputs == 10
    assert module.class_names == [
        "cereals", "coffee", "tea", "pancake", "friedegg", "scrambledegg", "sandwich", "juice", "milk", "salat",
    ]  # fmt: skip


@real
def test_real_validation_part_is_of_other_people(make):
    module = make(ROOT)
    train, val = module.read_split("train"), module.read_split("val")
    assert (len(train), len(val)) == (1040, 317)
    assert people(train) == {f"P{number:02}" for number in range(3, 40)}
    assert people(val) == {f"P{number}" for number in range(40, 47)}
    assert [v.id for v in module.read_split("test")] == [v.id for v in make(ROOT, hold_out=False).read_split("test")]


def test_held_out_participants_are_the_validation_part(make, root):
    module = make(root)
    assert [video.id for video in module.read_split("train")] == ["P39-cam01-P39_tea"]
    assert [video.id for video in module.read_split("val")] == ["P40-cam01-P40_tea", "P46-stereo-P46_cereals_ch0"]
    assert [video.target for video in module.read_split("val")] == [1, 0]
    assert module.class_names == ["cereals", "tea"]
    assert module.selection == "val"


def test_without_holding_out_the_test_part_validates(make, root):
    module = make(root, hold_out=False)
    assert [video.id for video in module.read_split("train")] == [row.split(",")[0] for row in ROWS["train"]]
    assert module.read_split("val") == module.read_split("test") != []
    assert module.selection == "test"


def test_videos_lie_in_folders_or_flat(stamps, make, root):
    stamps.write(root / "videos" / "P47" / "cam01" / "P47_cereals.avi", 60, fps=15, codec="mpeg4")
    stamps.write(root / "videos" / "P47-webcam02-P47_cereals.mp4", 75, fps=15)
    batches = list(make(root).test_dataloader())
    assert [batch.id for batch in batches] == [["P47-cam01-P47_cereals@0.00"], ["P47-webcam02-P47_cereals@0.00"]]
    assert stamps.read(batches[0].inputs[0]) == [7, 22, 37, 52]  # at 0.5, 1.5, … s


def test_videos_of_any_suffix_are_found_when_they_come(make, root):
    videos = root / "videos"
    (videos / "P47" / "cam01").mkdir(parents=True)
    (videos / "P47" / "cam01" / "P47_cereals.mov").touch()
    module = make(root)
    names = ["P47/cam01/P47_cereals.mov", "P47/webcam02/P47_cereals.mp4"]
    assert [video.path.relative_to(videos).as_posix() for video in module.read_split("test")] == names
    (videos / "P47-webcam02-P47_cereals.MP4").touch()
    names[1] = "P47-webcam02-P47_cereals.MP4"
    assert [video.path.relative_to(videos).as_posix() for video in module.read_split("test")] == names


def test_missing_videos_are_named_by_their_place_in_the_distribution(make, root):
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 train videos.*videos/P39/cam01/P39_tea"):
        make(root).train_dataloader()


def test_other_names_are_refused(make, root):
    path = root / "annotations" / "test.csv"
    path.write_text("file_name,duration,action,class_id\nP47_cereals,4,cereals,0\n")
    with pytest.raises(ValueError, match=r"test.csv.*got P47_cereals"):
        make(root).read_split("test")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["P47-cam01-P47_tea,4,tea,1"] * 2, r"test.csv, line 3: .*once, got P47-cam01-P47_tea \(test\).*line 2"),
        (["P39-cam02-P39_tea,4,tea,1"], r"line 2: .*got P39 in test, who is in train too \(.*train.csv, line 2"),
        (["P46-cam02-P46_tea,4,tea,1"], r"got P46 in test, who is in train too \(.*train.csv, line 4"),
        (["p39-cam02-p39_tea,4,tea,1"], r"got p39 in test, who is in train too"),
        (["P47-cam01-P39_tea,4,tea,1"], r"line 2: expected names <participant>.*got P47-cam01-P39_tea"),
        (["P47-cam01-P47_tea ,4,tea,1"], r"line 2: expected names <participant>"),
        (["../P47-cam01-../P47_tea,4,tea,1"], r"line 2: expected names <participant>"),
        (["P47-..-P47_tea,4,tea,1"], r"line 2: expected names <participant>"),
        (["P47-cam01-P47_milk,4,milk,2"], r"line 2: .*classes that have training videos, got 'milk' for P47"),
        (["P47-cam01-P47_tea,4,tea,0"], r"annotations: expected one name per class, got cereals and tea for class 0"),
        (["P47-cam01-P47_tea,4,tea,one"], r"test.csv, line 2: class_id: expected a class index.*got 'one'"),
        ([], r"annotations: expected videos in train, val, test, got none in test"),
    ],
)  # fmt: skip
def test_mistakes_in_the_test_list_are_named_before_training(make, root, rows, says):
    text = "\n".join(["file_name,duration,action,class_id", *rows, ""])
    (root / "annotations" / "test.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        make(root).read_split("train")


def test_a_class_of_the_held_out_videos_alone_is_warned_of(make, root):
    with pytest.warns(UserWarning, match=r"without training videos, here 1: 'cereals' \(val, .*train.csv, line 4\)"):
        make(root).read_split("train")

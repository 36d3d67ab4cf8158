import os
from collections import Counter

import pytest
import torch

from vtm.data.datasets.folder import FolderDataModule, split_by_hash


@pytest.fixture
def make(tmp_path, loading):
    """Write files to tmp_path and make their data module."""

    def make(*, regression=False, table=None, videos=()):
        if table is not None:
            (tmp_path / "videos.csv").write_text(table, encoding="utf-8")
        for name in videos:
            path = tmp_path / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return FolderDataModule(regression=regression, **loading(tmp_path))

    return make


def splits(module):
    return {split: [(v.id, v.target) for v in module.read_split(split)] for split in ("train", "val", "test")}


SPLIT_FOLDERS = [
    "train/b/1.mp4",
    "train/a/deep/er/2.MOV",
    "train/a/3.m4v",
    "val/a/1.mpg",
    "test/b/1.ts",
    "test/b/2.flv",
]


def test_split_and_class_folders(make, tmp_path):
    module = make(videos=[*SPLIT_FOLDERS, "train/a/notes.txt", "train/a/.hidden.mp4", ".trash/c/1.mp4", "README"])
    assert module.class_names == ["a", "b"]
    assert module.num_outputs == 2
    assert splits(module) == {
        "train": [("train/a/3.m4v", 0), ("train/a/deep/er/2.MOV", 0), ("train/b/1.mp4", 1)],
        "val": [("val/a/1.mpg", 0)],
        "test": [("test/b/1.ts", 1), ("test/b/2.flv", 1)],
    }
    assert module.read_split("val")[0].path == tmp_path / "videos" / "val" / "a" / "1.mpg"
    assert module.train_targets().tolist() == [0, 0, 1]


def test_class_folders_are_divided_and_that_is_said_once(make, recwarn):
    module = make(videos=[f"{name}/{number}.webm" for name in ("Zoo", "é t é") for number in range(20)])
    parts = splits(module)
    assert module.class_names == ["Zoo", "é t é"]
    assert {split: Counter(target for _, target in part) for split, part in parts.items()} == {
        "train": {0: 14, 1: 14},
        "val": {0: 3, 1: 3},
        "test": {0: 3, 1: 3},
    }
    assert len({key for part in parts.values() for key, _ in part}) == 40
    assert all(part == sorted(part) for part in parts.values())
    (warning,) = recwarn
    assert "28 train, 6 val, 6 test" in str(warning.message)


def test_the_hash_decides_and_not_the_order():
    labels = {f"{number}.mp4": "ab"[number % 2] for number in range(14)}
    expected = split_by_hash(labels)
    assert split_by_hash(dict(reversed(labels.items()))) == expected
    assert [key for key, split in sorted(expected.items()) if split == "val"] == ["7.mp4", "8.mp4"]
    assert Counter((labels[key], split) for key, split in expected.items()) == {
        ("a", "train"): 5, ("a", "val"): 1, ("a", "test"): 1, ("b", "train"): 5, ("b", "val"): 1, ("b", "test"): 1,
    }  # fmt: skip


def test_table_with_splits(make, tmp_path):
    table = (
        '\ufeffpath,label,split\n./b.mp4,dog,train\n"sub/a, b.mp4",cat,train\n\nc.mkv, cat ,val\n日 本.mp4,dog,test\n'
    )
    module = make(table=table, videos=["not/listed.mp4"])
    assert module.class_names == ["cat", "dog"]
    assert splits(module) == {
        "train": [("b.mp4", 1), ("sub/a, b.mp4", 0)],
        "val": [("c.mkv", 0)],
        "test": [("日 本.mp4", 1)],
    }
    assert module.read_split("test")[0].path == tmp_path / "videos" / "日 本.mp4"


def test_table_of_numbers_for_regression(make):
    table = "path,label,split\na.mp4,1.5,train\nb.mp4,-2,train\nc.mp4,1e3,val\nd.mp4,0,test\n"
    module = make(regression=True, table=table)
    assert module.class_names is None
    assert module.num_outputs == 1
    assert module.train_targets().tolist() == [1.5, -2.0]
    assert module.train_targets().dtype == torch.float32
    assert splits(module)["val"] == [("c.mp4", 1000.0)]


def test_table_without_splits_is_divided(make):
    rows = "".join(f"{number}.mp4,{number}\n" for number in range(10))
    module = make(regression=True, table=f"path,label\n{rows}")
    with pytest.warns(UserWarning, match=r"videos.csv: .*6 train, 2 val, 2 test.*videos.csv with a column split"):
        parts = splits(module)
    assert sorted(target for part in parts.values() for _, target in part) == list(range(10))


def test_table_comes_before_the_folders(make):
    table = "path,label,split\ntrain/b/1.mp4,x,train\nval/a/1.mpg,y,train\ntest/b/1.ts,x,val\ntest/b/2.flv,x,test\n"
    assert make(table=table, videos=SPLIT_FOLDERS).class_names == ["x", "y"]


def test_a_link_back_to_its_class_repeats_nothing(make, tmp_path):
    data = make(videos=[f"{split}/{label}/1.mp4" for split in ("train", "val", "test") for label in "ab"])
    (tmp_path / "videos" / "train" / "a" / "back").symlink_to(tmp_path / "videos" / "train" / "a")
    assert [video.id for video in data.read_split("train")] == ["train/a/1.mp4", "train/b/1.mp4"]


def test_videos_behind_links_are_found_and_read(stamps, make, tmp_path):
    module = make(videos=["train/b/1.mp4", "val/a/1.mp4"])
    stamps.write(tmp_path / "disk" / "in ner" / "a.Mp4", 20)
    stamps.write(tmp_path / "disk2" / "b.mp4", 40)
    for link, target in (("train/a", "disk"), ("test", "disk3")):
        (tmp_path / "videos" / link).symlink_to(tmp_path / target)
    (tmp_path / "disk3" / "b").mkdir(parents=True)
    (tmp_path / "disk3" / "b" / "deep").symlink_to(tmp_path / "disk2")
    assert splits(module)["train"] == [("train/a/in ner/a.Mp4", 0), ("train/b/1.mp4", 1)]
    batch = next(iter(module.test_dataloader()))
    assert batch.id == ["test/b/deep/b.mp4@0.00"]
    assert stamps.read(batch.inputs[0]) == [10, 30]


def test_listed_videos_that_are_missing_are_named(make):
    table = "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc d.mp4,x,val\nd.mp4,x,test\n"
    with pytest.raises(FileNotFoundError, match=r"1 of the 1 val videos.*videos/c d.mp4"):
        make(table=table, videos=["a.mp4", "b.mp4"]).videos("val")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("name,label\n", r"videos.csv: .*path,label,split or path,label, got 'name,label'"),
        ("", r"videos.csv: .*columns.*got ''"),
        ("path,label,split\n", r"videos.csv: expected videos, got none"),
        ("path,label,split\na.mp4,x\n", r"videos.csv, line 2: .*\['a.mp4', 'x'\]"),
        ("path,label,split\n/disk/a.mp4,x,train\n", r"line 2: .*relative to .*videos, got '/disk/a.mp4'.*link"),
        ("path,label,split\n../a.mp4,x,train\n", r"line 2: .*relative.*got '../a.mp4'"),
        ("path,label,split\n,x,train\n", r"line 2: .*relative.*got ''"),
        ("path,label,split\na.mp4,x,train\n\nb.mp4, ,train\n", r"line 4: expected a label for b.mp4"),
        ("path,label,split\na.mp4,x,training\n", r"line 2: .*train, val or test as split of a.mp4, got 'training'"),
        ("path,label,split\na.mp4,x,\n", r"line 2: .*train, val or test as split of a.mp4, got ''"),
        (
            "path,label,split\na.mp4,x,train\nb.mp4,y,test\n./a.mp4,x,val\n",
            r"line 4: .*a.mp4 \(val\).*\(train\) of .*line 2",
        ),
        ("path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,test\n", r"videos.csv: .*got none in val"),
        ("path,label,split\na.mp4,x,train\nb.mp4,x,val\nc.mp4,x,test\n", r"videos.csv: .*2 classes, got only 'x'"),
        (
            "path,label,split\na.mp4,x,train\nb.mp4,1,val\nc.mp4,x,test\n",
            r"line 3: .*got '1' for b.mp4.*regression=true",
        ),
        ('path,label,split\n"a.mp4,x,train\n', r"videos.csv: .*comma-separated table in UTF-8"),
        ("path,label\n" + "".join(f"{n}.mp4,{'xy'[n > 2]}\n" for n in range(5)), r"3 videos of class 'y'.*got 2"),
    ],
)
def test_mistakes_in_the_table_are_named_by_line(make, rows, says):
    with pytest.raises(ValueError, match=says):
        make(table=rows).read_split("train")


@pytest.mark.parametrize("label", ["much", "nan", "inf", "1,5", "0x1"])
def test_values_must_be_finite_numbers(make, label):
    table = f'path,label,split\na.mp4,1,train\nb.mp4,"{label}",train\nc.mp4,1,val\nd.mp4,1,test\n'
    with pytest.raises(ValueError, match=rf"line 3: .*finite number as label of b.mp4, got '{label}'.*classification"):
        make(regression=True, table=table).read_split("train")


def test_other_encodings_are_refused(make, tmp_path):
    (tmp_path / "videos.csv").write_bytes("path,label\né.mp4,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"videos.csv: .*UTF-8"):
        make().read_split("train")


@pytest.mark.parametrize(
    ("videos", "says"),
    [
        (
            ["a/x.txt", "a/y.tiff", "b/1.mp4"],
            r"videos/a: .*suffixes.*\.mov.*got 2 other files, such as x.txt, y.t",
        ),
        (["1.mp4", "a/1.mp4"], r"videos/1.mp4: .*expected videos in class folders"),
        (["train/1.mp4"], r"videos/train/1.mp4: .*expected videos in class folders"),
        (["notes.txt"], r"videos: expected videos, got none"),
        (["train/a/1.mp4", "valid/a/1.mp4", "test/a/1.mp4"], r"videos: .*train, val, test.*got valid; .*videos.csv"),
        (["Training/a/1.mp4", "Testing/a/1.mp4"], r"got Testing, Training"),
        (["train/a/1.mp4", "car/1.mp4"], r"got car"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/a/1.mp4"], r"videos: .*got none in test"),
        (["train/a/1.mp4", "train/b/1.mp4", "val/c/1.mp4", "test/a/1.mp4"], r"videos/val/c: .*got 'c' for val/c/1.mp4"),
        (["train/a/1.mp4", "val/a/1.mp4", "test/a/1.mp4"], r"2 classes, got only 'a'"),
        (["a/1.mp4", "a/2.mp4", "a/3.mp4", "b/1.mp4", "b/2.mp4"], r"3 videos of class 'b'.*got 2"),
    ],
)
def test_mistakes_in_the_folders_are_named(make, videos, says):
    with pytest.raises(ValueError, match=says):
        make(videos=videos).read_split("train")


def test_one_file_in_two_splits_is_refused(make, tmp_path):
    module = make(videos=SPLIT_FOLDERS)
    (tmp_path / "videos" / "test" / "a").mkdir()
    (tmp_path / "videos" / "test" / "a" / "again.mp4").symlink_to(tmp_path / "videos" / "train" / "a" / "3.m4v")
    with pytest.raises(
        ValueError, match=r"test/a/again.mp4 \(test\), which is the same file as train/a/3.m4v \(train\) of .*train/a"
    ):
        module.read_split("train")


def test_names_that_are_no_text_are_refused(make, tmp_path):
    module = make(videos=SPLIT_FOLDERS)
    (tmp_path / "videos" / "train" / "a" / os.fsdecode(b"\xe9.mp4")).touch()
    with pytest.raises(ValueError, match=r"UTF-8.*udce9.mp4"):
        module.read_split("train")


def test_regression_wants_the_table(make):
    with pytest.raises(ValueError, match=r"expected numbers to predict in .*videos.csv"):
        make(regression=True, videos=SPLIT_FOLDERS).read_split("train")


def test_nothing_there_says_what_to_put_where(make, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: expected videos.csv or the folder videos.*README"):
        make().train_targets()


def test_classes_with_numbers_as_names_may_be_values_to_predict(make):
    module = make(videos=[name.replace("/a/", "/0.5/").replace("/b/", "/10/") for name in SPLIT_FOLDERS])
    with pytest.warns(UserWarning, match=r"all 2 classes have numbers as names; .* task=regression data.regression=tr"):
        assert module.class_names == ["0.5", "10"]


SOUND = "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,val\nd.mp4,y,test\n"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (SOUND + "e.mp4,nan,train\n", r"line 6: expected the name of a class as label of e.mp4, got 'nan'.*pandas"),
        (SOUND + "e.mp4,x,Train\n", r"line 6: .*got 'Train'; 'train' exists, but 'T' in the table is 't' in the names"),
        (SOUND + "e.mp4,X,val\n", r"line 6: .*got 'X' for e.mp4 \(val\); 'x' exists, but .*upper and lower case"),
        (SOUND + '"e\nf.mp4",x,val\n', r"expected a name without control characters .*got 'e\\nf.mp4'"),
        (SOUND + "e\\..\\..\\f.mp4,x,val\n", r'line 6: expected a relative path without ".."'),
        (SOUND.replace(",", ";"), r"got 'path;label;split' with semicolons instead of commas"),
        (SOUND.replace(",", "\t"), r"with tabs instead of commas"),
        (SOUND.replace("path,", "Path,"), r"'Path' exists, but 'p' in the expected name is 'P' in the header"),
        (SOUND.partition("\n")[2], r"got 'a.mp4,x,train': the line with the names of the columns is missing"),
        (SOUND.replace("path,", ",path,"), r"got ',path,label,split' with further columns"),
    ],
)  # fmt: skip
def test_mistakes_that_are_hard_to_see_in_a_table_are_explained(make, table, says):
    with pytest.raises(ValueError, match=says):
        make(table=table).read_split("test")


def test_a_hard_link_is_the_same_file(make, tmp_path):
    module = make(videos=SPLIT_FOLDERS)
    os.link(tmp_path / "videos" / "train" / "a" / "3.m4v", tmp_path / "videos" / "test" / "b" / "3.m4v")
    with pytest.raises(ValueError, match=r"test/b/3.m4v \(test\), which is the same file as train/a/3.m4v \(train\)"):
        module.read_split("train")


@pytest.mark.parametrize("name", ["Train", "train ", "tr\u200bain"])
def test_a_folder_that_only_looks_like_a_split_is_explained(make, name):
    with pytest.raises(ValueError, match=r"expected only the splits train, val, test as folders, got .*'train' exists"):
        make(videos=[f"{name}/a/1.mp4", "val/a/1.mp4", "test/a/1.mp4"]).read_split("train")


def test_numbers_with_underscores_are_refused(make):
    table = "path,label,split\na.mp4,1,train\nb.mp4,1_5,train\nc.mp4,1,val\nd.mp4,1,test\n"
    with pytest.raises(ValueError, match=r"line 3: .*finite number as label of b.mp4, got '1_5'"):
        make(regression=True, table=table).read_split("train")

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from vtm.data.coin import COINDataModule, hold_out_tenth
from vtm.data.sampling import Single

ROOT = Path(__file__).parents[2] / "data" / "coin"
LOADING = {
    "protocol": Single(num_frames=4),
    "image_size": 48,
    "frames_per_step": 2,
    "batch_size": 1,
    "num_workers": 0,
    "seed": 0,
}


@pytest.mark.skipif(not (ROOT / "annotations").is_dir(), reason="the lists of COIN are not there")
@pytest.mark.filterwarnings("ignore:.*have no label:UserWarning")
def test_real_lists_have_the_published_numbers():
    module = COINDataModule(root=ROOT, **LOADING)
    train, val, test = (module.read_split(split) for split in ("train", "val", "test"))
    assert len(test) == 2797
    assert len({video.id for video in (*train, *val, *test)}) == len(train) + len(val) + len(test)
    assert module.num_outputs == 180
    counted = (Counter(v.target for v in (*train, *val)), Counter(v.target for v in test))
    assert len(val) == sum(max(1, round(count / 10)) for count in counted[0].values())
    with (ROOT / "annotations" / "class_counts.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            label = int(row["recipe_type"])
            assert module.class_names[label] == row["class"]
            assert counted[1][label] == int(row["test_official"])
            if (ROOT / "annotations" / "COIN.json").is_file():
                assert counted[0][label] >= int(row["train_official_labelled"])
            else:
                assert counted[0][label] == int(row["train_official_labelled"])
    regions = [video.end - video.start for video in test]
    assert min(regions) == pytest.approx(3.3, abs=0.05)
    assert sum(regions) / len(regions) == pytest.approx(94.0, abs=0.1)
    assert sum(region < 64 * 32 / 30 for region in regions) == 1092


def entry(label, subset, **more):
    return {"recipe_type": label, "class": f"Task{label}", "subset": subset, "duration": 9.0, **more}


@pytest.fixture
def database():
    region = {"start": 1.0, "end": 5.0}
    train = {f"train{number:02}": entry(number % 2, "training", **region) for number in range(40)}
    return {**train, "b": entry(1, "testing", **region), "a": entry(0, "testing", start=0.5, end=4.5)}


def make(root, database, name="COIN.json"):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps({"database": database}))
    return COINDataModule(root=root, **LOADING)


def test_official_layout_is_read(tmp_path, database):
    module = make(tmp_path, database)
    assert module.class_names == ["Task0", "Task1"]
    test = module.read_split("test")
    assert [(v.id, v.target, v.start, v.end) for v in test] == [("a", 0, 0.5, 4.5), ("b", 1, 1.0, 5.0)]
    assert test[0].path == tmp_path / "videos" / "0" / "a.mp4"
    parts = [module.read_split(split) for split in ("train", "val")]
    assert [Counter(video.target for video in part) for part in parts] == [{0: 18, 1: 18}, {0: 2, 1: 2}]


def test_validation_part_is_the_same_in_every_run():
    classes = {f"id{number}": number // 25 for number in range(100)}
    held_out = hold_out_tenth(classes)
    assert held_out == hold_out_tenth(dict(reversed(classes.items())))
    assert Counter(classes[key] for key in held_out) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert hold_out_tenth({"only": 0}) == {"only"}


def test_videos_lie_by_task_or_flat_and_only_the_region_is_seen(stamps, tmp_path, database):
    stamps.write(tmp_path / "videos" / "0" / "a.webm", 90, codec="libvpx-vp9")
    stamps.write(tmp_path / "videos" / "b.mkv", 90)
    batches = list(make(tmp_path, database).test_dataloader())
    assert [batch.id for batch in batches] == [["a@0.50"], ["b@1.00"]]
    assert stamps.read(batches[1].inputs[0]) == [15, 16, 25, 26, 35, 36, 45, 46]


def test_rebuilt_list_warns_of_its_gaps(tmp_path, database):
    database["whole"] = entry(0, "testing")
    database["unlabelled"] = entry(None, "training")
    module = make(tmp_path, database, name="COIN.rebuilt.json")
    with pytest.warns(UserWarning, match=r"rebuilt.json: 1 videos have no label.*1 have no region"):
        test = module.read_split("test")
    assert [(video.id, video.start, video.end) for video in test][-1] == ("whole", 0.0, None)


def test_official_list_comes_first(tmp_path, database):
    make(tmp_path, {}, name="COIN.rebuilt.json")
    assert len(make(tmp_path, database).read_split("test")) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"x": entry(0, "validation")}, r"COIN.json.*subset of x, got validation"),
        ([{"x": entry(0, "testing")}], r"COIN.json.*official layout"),
    ],
)
def test_other_layouts_are_refused(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        make(tmp_path, content).read_split("test")

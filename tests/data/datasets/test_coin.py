import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from vtm.data.datasets.coin import COINDataModule, read_coin
from vtm.data.datasets.official import hold_out_tenth
from vtm.data.sampling import Single

ROOT = Path(__file__).parents[3] / "data" / "coin"
LISTS = ROOT / "annotations"
ID_LISTS = ("train_split.txt", "test_split.txt")

pytestmark = pytest.mark.filterwarnings("ignore:.*The official COIN.json has none of these differences:UserWarning")
real = pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of COIN are not there")


@pytest.fixture
def make(loading):
    return lambda root, *, hold_out=True: COINDataModule(
        hold_out=hold_out, **loading(root, protocol=Single(num_frames=4), batch_size=1)
    )


def ids(*parts):
    return {video.id for part in parts for video in part}


@real
def test_real_lists_have_the_published_numbers(make):
    module = make(ROOT, hold_out=False)
    train, test = module.read_split("train"), module.read_split("test")
    assert len(test) == 2797
    assert len(ids(train, test)) == len(train) + len(test)
    for name, part in zip(ID_LISTS, (train, test), strict=True):
        assert ids(part) <= set((LISTS / name).read_text().split())
    if (LISTS / "COIN.json").is_file():
        assert len(train) == 9030
    else:
        assert len(train) == 9030 - 611
        assert sum(video.end is None for video in train) == 855
    assert module.num_outputs == 180
    counted = [Counter(video.target for video in part) for part in (train, test)]
    with (LISTS / "class_counts.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            label = int(row["recipe_type"])
            assert module.class_names[label] == row["class"]
            assert counted[1][label] == int(row["test_official"])
            if not (LISTS / "COIN.json").is_file():
                assert counted[0][label] == int(row["train_official_labelled"])
    regions = [video.end - video.start for video in test]
    assert min(regions) == pytest.approx(3.3, abs=0.05)
    assert sum(regions) / len(regions) == pytest.approx(94.0, abs=0.1)
    assert sum(region < 64 * 32 / 30 for region in regions) == 1092


@real
def test_real_validation_part_is_a_tenth_of_every_class(make):
    module, whole = make(ROOT), make(ROOT, hold_out=False).read_split("train")
    train, val = module.read_split("train"), module.read_split("val")
    assert sorted((*train, *val), key=lambda video: video.id) == whole
    counted, held_out = (Counter(video.target for video in part) for part in (whole, val))
    assert held_out == {label: max(1, round(count / 10)) for label, count in counted.items()}


@pytest.fixture(scope="module")
def rebuilt():
    return json.loads((LISTS / "COIN.rebuilt.json").read_text())["database"]


@pytest.fixture(scope="module")
def entries_rebuilt():
    return read_coin(LISTS / "COIN.rebuilt.json")


def flat(database):
    """Write the entries as MA-LMM and HERMES do, without the index of the task, which must be looked up."""
    kept = {"training": "train", "testing": "val"}
    return {
        key: {
            "subset": kept[entry["subset"]],
            "target": entry["class"] and re.sub(r"(?<!^)([A-Z])", r" \1", entry["class"]).lower(),
            **{name: entry[name] for name in ("start", "end") if name in entry},
            **({} if entry["source"] == "id_only" else {"num_frames_actual": 100}),
        }
        for key, entry in database.items()
    }


def one_key(database):
    return [{key: entry} for key, entry in database.items()]


def with_uid(database):
    words = {"training": "train", "testing": "test"}
    return [{**entry, "video_uid": key, "subset": words[entry["subset"]]} for key, entry in database.items()]


@real
@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (flat, r"flat dictionary, as of MA-LMM and HERMES; train stands for training; val stands for testing; .*"
               r"611 videos that its authors could not download are expected"),
        (one_key, r"list of one-key dictionaries, as of SCHEMA and PDPP; 611 videos"),
        (with_uid, r"video_uid, as of videollm-online; test stands for testing; train stands for training; 611"),
        (lambda database: {"database": with_uid(database)}, r"video_uid, as of videollm-online"),
    ],
    ids=["flat", "one_key", "with_uid", "with_uid in a database"],
)  # fmt: skip
def test_all_layouts_of_the_real_list_give_the_same(tmp_path, rebuilt, entries_rebuilt, layout, says):
    for name in (*ID_LISTS, "taxonomy_targets.csv"):
        (tmp_path / name).symlink_to(LISTS / name)
    (tmp_path / "COIN.json").write_text(json.dumps(layout(rebuilt)))
    with pytest.warns(UserWarning, match=says):
        entries = read_coin(tmp_path / "COIN.json")
    assert entries == entries_rebuilt


@real
def test_real_list_of_pdpp_gets_the_official_split(tmp_path):
    lists = [json.loads((LISTS / f"coin_{name}.json").read_text()) for name in ("train_70", "test_30")]
    (tmp_path / "COIN.json").write_text(json.dumps([*lists[0], *lists[1]]))
    with pytest.raises(
        ValueError, match=r"COIN.json: is a list.*split that is not official; put train_split.txt and test_split"
    ):
        read_coin(tmp_path / "COIN.json")
    for name in ID_LISTS:
        (tmp_path / name).symlink_to(LISTS / name)
    with pytest.warns(UserWarning, match=r"500 videos have the wrong subset.*7564 of 9030 training and 2506 of 2797"):
        entries = read_coin(tmp_path / "COIN.json")
    assert Counter(entry.subset for entry in entries.values()) == {"training": 7564, "testing": 2506}


def entry(label, subset, **more):
    return {"recipe_type": label, "class": f"Task{label}", "subset": subset, "duration": 9.0, **more}


@pytest.fixture
def database():
    region = {"start": 1.0, "end": 5.0}
    train = {f"train{number:02}": entry(number % 2, "training", **region) for number in range(40)}
    return {**train, "b": entry(1, "testing", **region), "a": entry(0, "testing", start=0.5, end=4.5)}


def write(root, content, name="COIN.json", **texts):
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text)
    return folder / name


def test_official_layout_is_read(tmp_path, make, database):
    write(tmp_path, {"database": database})
    module = make(tmp_path)
    assert module.class_names == ["Task0", "Task1"]
    assert module.selection == "val"
    test = module.read_split("test")
    assert [(v.id, v.target, v.start, v.end) for v in test] == [("a", 0, 0.5, 4.5), ("b", 1, 1.0, 5.0)]
    assert test[0].path == tmp_path / "videos" / "0" / "a.mp4"
    parts = [module.read_split(split) for split in ("train", "val")]
    assert [Counter(video.target for video in part) for part in parts] == [{0: 18, 1: 18}, {0: 2, 1: 2}]


def test_without_holding_out_the_test_part_validates(tmp_path, make, database):
    write(tmp_path, {"database": database})
    module = make(tmp_path, hold_out=False)
    assert ids(module.read_split("train")) == {f"train{number:02}" for number in range(40)}
    assert module.read_split("val") == module.read_split("test") != []
    assert module.selection == "test"


def test_the_official_list_needs_no_warning(tmp_path, recwarn):
    entries = {f"train{number}": entry(number % 180, "training", end=5.0) for number in range(9030)}
    entries |= {f"test{number}": entry(number % 180, "testing", end=5.0) for number in range(2797)}
    read = read_coin(write(tmp_path, {"database": entries}))
    assert len(read) == 11827
    assert read["test5"] == (5, "Task5", "testing", 0.0, 5.0)
    assert not recwarn.list
    entries["train0"]["subset"] = "testing"
    with pytest.raises(ValueError, match=r"COIN.json: .*9029 of 9030 training and 2798 of 2797 test.*put train_split"):
        read_coin(write(tmp_path, {"database": entries}))


def test_incomplete_lists_are_counted(tmp_path, database):
    with pytest.warns(UserWarning, match=r"COIN.json: 40 of 9030 training and 2 of 2797 test videos are listed\. "):
        read_coin(write(tmp_path, {"database": database}))


def test_validation_part_is_the_same_in_every_run():
    classes = {f"id{number}": number // 25 for number in range(100)}
    held_out = hold_out_tenth(classes)
    assert held_out == hold_out_tenth(dict(reversed(classes.items())))
    assert Counter(classes[key] for key in held_out) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert hold_out_tenth({"only": 0}) == {"only"}


def test_videos_lie_by_task_or_flat_and_only_the_region_is_seen(stamps, tmp_path, make, database):
    stamps.write(tmp_path / "videos" / "0" / "a.webm", 90, codec="libvpx-vp9")
    stamps.write(tmp_path / "videos" / "b.mkv", 90)
    write(tmp_path, {"database": database})
    batches = list(make(tmp_path).test_dataloader())
    assert [batch.id for batch in batches] == [["a@0.50"], ["b@1.00"]]
    assert stamps.read(batches[1].inputs[0]) == [15, 25, 35, 45]


def test_videos_of_any_suffix_are_found_when_they_come(tmp_path, make, database):
    write(tmp_path, {"database": database})
    module, videos = make(tmp_path), tmp_path / "videos"
    (videos / "0").mkdir(parents=True)
    (videos / "0" / "a.mov").touch()
    names = ["0/a.mov", "1/b.mp4"]
    assert [video.path.relative_to(videos).as_posix() for video in module.read_split("test")] == names
    (videos / "b.MP4").touch()
    assert [video.path.relative_to(videos).as_posix() for video in module.read_split("test")] == ["0/a.mov", "b.MP4"]


def test_rebuilt_list_warns_of_its_gaps(tmp_path, make, database):
    database["whole"] = entry(0, "testing")
    database["unlabeled"] = entry(None, "training") | {"class": None}
    write(tmp_path, {"database": database}, name="COIN.rebuilt.json")
    with pytest.warns(UserWarning, match=r"rebuilt.json: .*1 videos have no label.*1 have no region"):
        test = make(tmp_path).read_split("test")
    assert [(video.id, video.start, video.end) for video in test][-1] == ("whole", 0.0, None)


def test_official_list_comes_first(tmp_path, make, database):
    write(tmp_path, {}, name="COIN.rebuilt.json")
    write(tmp_path, {"database": database})
    assert len(make(tmp_path).read_split("test")) == 2


TAXONOMY = "recipe_type,class,domain,n_steps,step_ids\n7,PerformCPR,Nursing and Care,1,2\n9,UseNetiPot,Nursing,1,3\n"


@pytest.mark.parametrize("name", ["PerformCPR", "perform cpr", "perform c p r", "Perform_CPR"])
def test_classes_without_a_number_are_looked_up_in_any_spelling(tmp_path, name):
    content = {"a": {"subset": "train", "target": name}, "b": {"subset": "val", "target": "use neti pot"}}
    path = write(tmp_path, content)
    (path.parent / "taxonomy_targets.csv").write_text(TAXONOMY)
    entries = read_coin(path)
    assert entries["a"] == (7, "PerformCPR", "training", 0.0, None)
    assert entries["b"] == (9, "UseNetiPot", "testing", 0.0, None)


def test_classes_without_a_number_are_looked_up_in_other_entries(tmp_path):
    content = {"a": {"subset": "train", "target": "task4"}, "b": entry(4, "val")}
    assert read_coin(write(tmp_path, content))["a"][:2] == (4, "Task4")


def test_lists_of_ids_decide_the_split(tmp_path):
    content = {"database": {"a": entry(0, "testing"), "b": entry(1, "testing"), "c": entry(1, "training")}}
    path = write(tmp_path, content, train_split="a\nc\nz\n", test_split="b\n")
    with pytest.warns(
        UserWarning, match=r"COIN.json: 1 videos have the wrong subset and are moved to the one in train_split.txt"
    ):
        entries = read_coin(path)
    assert {key: e.subset for key, e in entries.items()} == {"a": "training", "b": "testing", "c": "training"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"x": entry(0, "dev")}, r"COIN.json: .*subset of x, got dev"),
        ({"x": entry(0, "train"), "y": entry(0, "val"), "z": entry(0, "test")}, r"subsets.*got test, train, val"),
        ({"x": entry(0, "train")}, r"got none for testing"),
        (
            [{"x": entry(0, "train")}, {"y": entry(0, "test")}],
            r"list of one-key.*put train_split.txt and test_split.txt",
        ),
        ([{"x": entry(0, "train"), "y": entry(0, "test")}], r"layout that data/README.md describes"),
        ({"database": 3}, r"layout that data/README.md describes"),
        ({"x": 3}, r"layout that data/README.md describes"),
        ([{**entry(0, "train"), "video_uid": "x"}] * 2, r"got x several times"),
        ({"x": entry(0, "train"), "y": entry(1, "test") | {"class": "Task0"}}, r"recipe_type 0 for y, Task0, got 1"),
        ({"x": entry(0, "train") | {"class": None}}, r"class or target of x"),
        ({"x": entry(None, "train") | {"class": "Nap"}}, r"180 tasks as class of x, got Nap.*taxonomy_targets.csv"),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        read_coin(write(tmp_path, content))


def test_a_web_page_is_no_list(tmp_path):
    (tmp_path / "COIN.json").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"COIN.json: expected JSON.*not its web page"):
        read_coin(tmp_path / "COIN.json")


def test_mistakes_in_the_lists_of_ids_are_named(tmp_path, database):
    with pytest.raises(FileNotFoundError, match=r"annotations/test_split.txt is missing.*neither of the two"):
        read_coin(write(tmp_path, {"database": database}, train_split="a"))
    with pytest.raises(
        ValueError, match=r"COIN.json: expected ids that are in train_split.txt and test_split.txt, got t"
    ):
        read_coin(write(tmp_path, {"database": database}, test_split="b"))


def wrong(**changes):
    return {"x": entry(0, "training", **changes), "y": entry(1, "testing")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (wrong(start=-3.0), r"COIN.json: x: start: expected a finite number of at least 0, got -3.0"),
        (wrong(start=float("nan")), r"x: start: .*got nan"),
        (wrong(start="soon"), r"x: start: .*got 'soon'"),
        (wrong(end=float("inf")), r"x: end: .*got inf"),
        (wrong(end=[9]), r"x: end: .*got \[9\]"),
        (wrong(end=True), r"x: end: .*got True"),
        (wrong(start=9.5, end="1.5"), r"x: expected an end after the start 9.5 s, got 1.5 s"),
        (wrong(start=2, end=2), r"x: expected an end after the start 2 s, got 2 s"),
        (wrong(end=0), r"x: expected an end after the start 0 s, got 0 s"),
        (wrong(recipe_type="x"), r"x: recipe_type: expected a class index.*got 'x'"),
        (wrong(recipe_type=0.5), r"x: recipe_type: .*got 0.5"),
        (wrong(recipe_type=-1), r"x: recipe_type: .*got -1"),
        ([{"video_uid": 5, "subset": "train"}], r"layout that data/README.md describes"),
    ],
)
def test_wrong_numbers_in_a_list_are_named(tmp_path, content, says):
    with pytest.raises(ValueError, match=says):
        read_coin(write(tmp_path, content))


def test_numbers_may_be_written_as_text(tmp_path):
    read = read_coin(write(tmp_path, wrong(recipe_type="0", start="1.5", end="9.5")))
    assert read["x"] == (0, "Task0", "training", 1.5, 9.5)


@pytest.mark.parametrize("nested", ["[" * 100_000, "9" * 5000])
def test_hostile_json_is_refused(tmp_path, nested):
    (tmp_path / "COIN.json").write_text(nested)
    with pytest.raises(ValueError, match=r"COIN.json: expected JSON in UTF-8"):
        read_coin(tmp_path / "COIN.json")


def test_a_key_twice_is_refused(tmp_path):
    text = json.dumps({"database": wrong()})
    (tmp_path / "COIN.json").write_text(text.replace('"y"', '"x"'))
    with pytest.raises(ValueError, match=r"COIN.json: expected every key once, got 'x' several times"):
        read_coin(tmp_path / "COIN.json")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../b", "a\0", "a\nb", "\ud800"])
def test_ids_never_lead_out_of_the_videos(tmp_path, make, database, name):
    write(tmp_path, {"database": database | {name: entry(0, "testing")}})
    with pytest.raises(ValueError, match=r"COIN.json: expected .* as the name of a video, got"):
        make(tmp_path).read_split("train")


def test_a_class_of_the_test_videos_alone_is_refused(tmp_path, make, database):
    write(tmp_path, {"database": database | {"c": entry(2, "testing")}})
    with pytest.raises(ValueError, match=r"COIN.json: .*that have training videos, got 'Task2' for c \(test\)"):
        make(tmp_path).read_split("train")


def test_an_id_in_both_lists_of_ids_is_refused(tmp_path, database):
    path = write(tmp_path, {"database": database}, train_split="a\nb\n", test_split="c\nb \n")
    with pytest.raises(ValueError, match=r"test_split.txt, line 2: .*got b, which is in train_split.txt too"):
        read_coin(path)


def test_an_unknown_id_is_compared_with_the_official_ones(tmp_path):
    path = write(tmp_path, {"database": wrong()}, train_split="X\n", test_split="y\n")
    with pytest.raises(ValueError, match=r"got x; 'X' exists, but 'x' in COIN.json is 'X' in the lists of ids: upper"):
        read_coin(path)

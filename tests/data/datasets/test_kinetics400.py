import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tests.official_lists import LABELS, write_kinetics400
from vtm.data.datasets.kinetics400 import Kinetics400DataModule
from vtm.data.sampling import Single

ROOT = Path(__file__).parents[3]
LISTS = ROOT / "data" / "kinetics400" / "annotations"
VAL = [
    ("abseiling", "-3B32lodo2M", 59, 69),  # as in the real list
    ("air drumming", "_dbcJuKJQNs", 40, 50),
    ("passing American football (in game)", "0wR5jVB-WPk", 417, 427),
]


@pytest.fixture
def make(loading):
    return lambda root, *, hold_out=False: Kinetics400DataModule(
        hold_out=hold_out, **loading(root, protocol=Single(num_frames=4), batch_size=1)
    )


@pytest.fixture
def root(tmp_path):
    return write_kinetics400(tmp_path, val=VAL)


@pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of Kinetics-400 are not there")
def test_real_lists_have_the_published_numbers(make):
    module = make(LISTS.parent)
    assert len(module.read_split("train")) == 246_534
    assert len(module.read_split("test")) == 19_906


def test_clips_are_read_in_the_order_of_the_list(make, root):
    module = make(root)
    test = module.read_split("test")
    assert [(v.id, v.target) for v in test] == [
        ("-3B32lodo2M_000059_000069", 0),
        ("_dbcJuKJQNs_000040_000050", 1),
        ("0wR5jVB-WPk_000417_000427", 2),
    ]
    assert {(v.start, v.end, v.cluster) for v in test} == {(0.0, None, None)}  # the files are cut already
    assert (module.class_names, module.num_outputs) == (LABELS, 400)


def test_classes_have_the_indices_of_published_checkpoints(make, root):
    from torchvision.models.video import Swin3D_B_Weights  # takes seconds

    names = list(Swin3D_B_Weights.KINETICS400_V1.meta["categories"])
    order = [names.index(name) for name in ("abseiling", "lunge", "sharpening knives", "tying tie", "zumba")]
    assert order == [0, 183, 290, 370, 399]  # as in pytorchvideo's kinetics_classnames.json
    shuffled = random.Random(0).sample(names, len(names))
    path = root / "annotations" / "train.csv"
    lines = [f'"{name}",filler{i:05},0,10,train,0' for i, name in enumerate(shuffled)]
    path.write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *lines, ""]))
    assert make(root).class_names == names


def test_the_column_is_cc_is_optional_and_later_lists_say_validate(make, root):
    path = root / "annotations" / "val.csv"
    path.write_text("label,youtube_id,time_start,time_end,split\nabseiling,3caPS4FHFF8,36,46,validate\n")
    assert [video.id for video in make(root).read_split("test")] == ["3caPS4FHFF8_000036_000046"]


def test_the_validation_list_is_the_test_split(make, root):
    module = make(root)
    assert module.read_split("val") == module.read_split("test")
    assert (module.selection, len(module.read_split("train"))) == ("test", 800)
    module = make(root, hold_out=True)
    parts = [{video.id for video in module.read_split(split)} for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [400, 400, 3]


def test_a_tenth_of_each_class_is_held_out(make, tmp_path):
    train = [(LABELS[target], f"{number:05}-{target:05}", 0, 10) for target in (0, 1) for number in range(17)]
    module = make(write_kinetics400(tmp_path, train=train, val=VAL), hold_out=True)
    assert module.selection == "val"
    held_out, kept = ([v.target for v in module.read_split(split)] for split in ("val", "train"))
    assert [held_out.count(label) for label in (0, 1)] == [2, 2]
    assert [kept.count(label) for label in (0, 1)] == [17, 17]


def test_clips_lie_with_or_without_folders(stamps, make, root):
    videos = root / "videos"
    stamps.write(videos / "val" / "abseiling" / "-3B32lodo2M_000059_000069.mp4", 100)
    stamps.write(videos / "val" / "_dbcJuKJQNs_000040_000050.mkv", 100)
    stamps.write(videos / "passing American football (in game)" / "0wR5jVB-WPk_000417_000427.mp4", 80)
    batches = list(make(root).test_dataloader())
    assert [batch.id for batch in batches] == [[f"{video.id}@0.00"] for video in make(root).read_split("test")]
    assert stamps.read(batches[0].inputs[0]) == [12, 37, 62, 87]  # the clip begins at 0 s, not at time_start
    (videos / "val" / "_dbcJuKJQNs_000040_000050.mkv").rename(videos / "_dbcJuKJQNs_000040_000050.mkv")
    make(root).check_videos(training=False)


def test_whole_videos_are_not_taken_for_clips(stamps, make, root):
    (root / "videos").mkdir()
    (root / "videos" / "-3B32lodo2M.mp4").touch()
    with pytest.raises(
        FileNotFoundError, match=r"3 of the 3 test videos .*/val/abseiling/-3B32lodo2M_000059_000069.mp4"
    ):
        make(root).test_dataloader()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("air drummin,_dbcJuKJQNs,40,50,val,0", r"val.csv, line 2: expected a label that is in train.csv, got 'air dr"),
        ("Abseiling,_dbcJuKJQNs,40,50,val,0", r"'abseiling' exists, but"),
        ("abseiling,dbcJuKJQNs,40,50,val,0", r"line 2: expected a YouTube id of 11 letters.*got 'dbcJuKJQNs'"),
        ("abseiling,../cJuKJQNs,40,50,val,0", r"line 2: expected a YouTube id"),
        ("abseiling,_dbcJuKJQNs,40.5,50,val,0", r"line 2: expected whole seconds, time_start < time_end, got 40.5"),
        ("abseiling,_dbcJuKJQNs,50,50,val,0", r"line 2: expected whole seconds"),
        ("abseiling,_dbcJuKJQNs,,50,val,0", r"line 2: time_start: expected a finite number of at least 0, got ''"),
        ("abseiling,_dbcJuKJQNs,40,50,train,0", r"line 2: expected val as split, got 'train'; get the original file"),
        ("abseiling,_dbcJuKJQNs,40,50,val", r"line 2: expected the 6 fields"),
        ('"abseiling,_dbcJuKJQNs,40,50,val,0', r"val.csv: expected a table with the columns"),
        ("abseiling,filler00000,3,13,val,0", r"val.csv, line 2: .*every video once.*\(train\) of .*train.csv, line 2"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_are_named(make, root, row, says):
    (root / "annotations" / "val.csv").write_text(f"label,youtube_id,time_start,time_end,split,is_cc\n{row}\n")
    with pytest.raises(ValueError, match=says):
        make(root).check_lists()


def test_the_list_without_labels_and_lists_of_fewer_classes_are_refused(make, root):
    val, train = root / "annotations" / "val.csv", root / "annotations" / "train.csv"
    good = val.read_text()
    val.write_text("youtube_id,time_start,time_end,split\n_dbcJuKJQNs,40,50,test\n")
    with pytest.raises(ValueError, match=r"val.csv, line 1: expected the columns \['label', 'youtube_id'"):
        make(root).check_lists()
    val.write_text(good)
    train.write_text(train.read_text().replace('"x action 396"', '"x action 395"'))
    with pytest.raises(ValueError, match=r"train.csv: expected the 400 official classes, got 399.*use data=folder"):
        make(root).check_lists()
    train.unlink()
    with pytest.raises(FileNotFoundError, match=r"annotations/train.csv is missing"):
        make(root).check_lists()


@pytest.mark.parametrize("overrides", [["data=kinetics400"], ["data=ssv2"], ["data=epic_kitchens", "data.target=noun"]])
def test_the_configurations_of_the_official_sets_instantiate(overrides, tmp_path, loading):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=["run_dir=runs/x", *overrides])
    module = instantiate(config.data, encoder=loading(tmp_path)["encoder"])
    assert module.root == Path("data") / overrides[0].removeprefix("data=")
    assert module.hold_out

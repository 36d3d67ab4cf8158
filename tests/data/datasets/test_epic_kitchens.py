from pathlib import Path

import pytest

from tests.official_lists import KEYS, write_epic_kitchens
from vtm.data.datasets.epic_kitchens import EpicKitchensDataModule
from vtm.data.sampling import Single

LISTS = Path(__file__).parents[3] / "data" / "epic_kitchens" / "annotations"
TRAIN = [(f"P01_{number:02}_{part}", "00:00:00.14", "00:00:03.37", 0, 1) for number in range(1, 21) for part in (0, 1)]
VALIDATION = [
    ("P02_101_0", "00:00:00.50", "00:00:02.50", 0, 1),
    ("P02_101_1", "00:00:02.00", "00:00:06.00", 2, 0),  # which overlaps the other
    ("P03_22_10", "01:02:03.45", "01:02:04.00", 1, 2),
]

pytestmark = pytest.mark.filterwarnings("ignore:.*without training videos:UserWarning")


@pytest.fixture
def make(loading):
    return lambda root, *, target="verb", hold_out=False: EpicKitchensDataModule(
        target=target, hold_out=hold_out, **loading(root, protocol=Single(num_frames=4), batch_size=1)
    )


@pytest.fixture
def root(tmp_path):
    return write_epic_kitchens(tmp_path, train=TRAIN, validation=VALIDATION)


@pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of EPIC-KITCHENS-100 are not there")
def test_real_lists_have_the_published_numbers(make):
    for target, classes, used in (("verb", 97, 78), ("noun", 300, 211)):
        module = make(LISTS.parent, target=target)
        test = module.read_split("test")
        assert (len(test), len({video.cluster for video in test})) == (9668, 138)
        assert (module.num_outputs, len({video.target for video in test})) == (classes, used)
        lengths = [video.end - video.start for video in test]
        assert 0.49 < min(lengths) < max(lengths) < 148


@pytest.mark.parametrize(("target", "targets"), [("verb", [0, 2, 1]), ("noun", [1, 0, 2])])
def test_segments_are_read_by_time(make, root, target, targets):
    module = make(root, target=target)
    test = module.read_split("test")
    assert [v.target for v in test] == targets
    assert [(v.id, v.start, v.end) for v in test] == [
        ("P02_101_0", 0.5, 2.5),
        ("P02_101_1", 2.0, 6.0),
        ("P03_22_10", pytest.approx(3723.45), 3724.0),
    ]
    assert [v.cluster for v in test] == ["P02_101", "P02_101", "P03_22"]
    assert module.class_names == KEYS[target]


def test_the_validation_list_is_the_test_split(make, root):
    module = make(root)
    assert module.read_split("val") == module.read_split("test")
    assert (module.selection, len(module.read_split("train"))) == ("test", 40)


def test_a_tenth_of_the_recordings_is_held_out(make, root):
    module = make(root, hold_out=True)
    train, val = ([video.cluster for video in module.read_split(split)] for split in ("train", "val"))
    assert (len(train), len(val), len(set(val))) == (36, 4, 2)
    assert set(train).isdisjoint(val)
    assert module.selection == "val"


def test_segments_of_long_recordings_are_decoded(stamps, make, tmp_path):
    root = write_epic_kitchens(tmp_path, train=TRAIN, validation=VALIDATION[:2])
    stamps.write(root / "videos" / "P02" / "videos" / "P02_101.MP4", 90, fps=10)
    batches = list(make(root).test_dataloader())
    assert [batch.id for batch in batches] == [["P02_101_0@0.50"], ["P02_101_1@2.00"]]
    assert stamps.read(batches[0].inputs[0]) == [7, 12, 17, 22]
    assert stamps.read(batches[1].inputs[0]) == [25, 35, 45, 55]


def test_recordings_may_lie_in_one_folder(make, root):
    (root / "videos").mkdir()
    for name in ("P02_101.MP4", "P03_22.mkv"):
        (root / "videos" / name).touch()
    paths = [video.path.relative_to(root / "videos").as_posix() for video in make(root).read_split("test")]
    assert paths == ["P02_101.MP4", "P02_101.MP4", "P03_22.mkv"]


def test_missing_recordings_are_named(make, root):
    with pytest.raises(
        FileNotFoundError, match=r"3 of the 3 test videos are missing, such as .*P02/videos/P02_101.mp4"
    ):
        make(root).test_dataloader()


def test_another_target_is_refused(make, root):
    with pytest.raises(ValueError, match=r"expected data.target=verb or noun, got action"):
        make(root, target="action")


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        (("P01_01_9", "00:00:00.14", "00:00:03.37", 0, 1), r"line 2: .*in one list, got P01_01.*train.csv, line 3"),
        (("P2_1_0", "00:00:00.14", "00:00:03.37", 0, 1), r"line 2: expected a recording such as P01_01.*got 'P2_1'"),
        (("../P02_01_0", "00:00:00.14", "00:00:03.37", 0, 1), r"line 2: expected a recording such as P01_01"),
        (("P02_01_0", "00:00.14", "00:00:03.37", 0, 1), r"line 2: start_timestamp: expected HH:MM:SS.ss, got '00:0"),
        (("P02_01_0", "00:00:00.14", "3.37", 0, 1), r"line 2: stop_timestamp: expected HH:MM:SS.ss, got '3.37'"),
        (("P02_01_0", "00:00:70.14", "00:01:13.37", 0, 1), r"line 2: start_timestamp: expected HH"),
        (("P02_01_0", "00:00:03.37", "00:00:03.37", 0, 1), r"line 2: expected start_timestamp < stop_timestamp"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_are_named(make, tmp_path, segment, says):
    with pytest.raises(ValueError, match=says):
        make(write_epic_kitchens(tmp_path, train=TRAIN, validation=[segment])).check_lists()


def test_a_segment_twice_is_refused(make, tmp_path):
    root = write_epic_kitchens(tmp_path, train=TRAIN, validation=VALIDATION[:1] * 2)
    with pytest.raises(ValueError, match=r"line 3: expected every video once, got P02_101_0"):
        make(root).check_lists()


def test_classes_that_are_not_the_official_ones_are_refused(make, root):
    nouns, verbs = (root / "annotations" / f"EPIC_100_{name}_classes.csv" for name in ("noun", "verb"))
    good = nouns.read_text()
    nouns.write_text(f"{good}300,hand:left,['hand:left'],hand\n")  # as EPIC_100_noun_classes_v2.csv, with 305
    with pytest.raises(ValueError, match=r"noun_classes.csv: expected the 300 official classes, got 301"):
        make(root, target="noun").check_lists()
    nouns.write_text(good.replace("\n299,", "\n399,"))
    with pytest.raises(ValueError, match=r"noun_classes.csv: expected the 300 official classes, got 400"):
        make(root, target="noun").check_lists()
    path = root / "annotations" / "EPIC_100_train.csv"
    path.write_text(path.read_text().replace(",take,0,", ",take,97,"))
    with pytest.raises(ValueError, match=r"train.csv, line 2: expected a verb_class below 97, got 97"):
        make(root).check_lists()
    verbs.unlink()
    with pytest.raises(FileNotFoundError, match=r"EPIC_100_verb_classes.csv is missing"):
        make(root).check_lists()

import json
from pathlib import Path

import pytest

from tests.official_lists import TEMPLATES, write_ssv2
from vtm.data.datasets.ssv2 import SSv2DataModule
from vtm.data.sampling import Single

LISTS = Path(__file__).parents[3] / "data" / "ssv2" / "annotations"
TRAIN = [(str(number), "Attaching [something] to [something]") for number in range(100, 130)]
VALIDATION = [("74225", "Attaching [something] to [something]"), ("116154", "Approaching [something] with your camera")]


pytestmark = pytest.mark.filterwarnings("ignore:.*without training videos:UserWarning")


@pytest.fixture
def make(loading):
    return lambda root, *, hold_out=False: SSv2DataModule(
        hold_out=hold_out, **loading(root, protocol=Single(num_frames=4), batch_size=1)
    )


@pytest.fixture
def root(tmp_path):
    return write_ssv2(tmp_path, train=TRAIN, validation=VALIDATION)


@pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of SSv2 are not there")
def test_real_lists_have_the_published_numbers(make):
    module = make(LISTS.parent)
    assert (len(module.read_split("train")), len(module.read_split("test"))) == (168_913, 24_777)
    assert module.class_names[0] == "Approaching something with your camera"
    assert module.class_names[173] == "Wiping something off of something"


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_templates_without_brackets_are_the_classes(make, tmp_path, prefix):
    module = make(write_ssv2(tmp_path, train=TRAIN, validation=VALIDATION, prefix=prefix))
    assert [(v.id, v.target, v.start, v.end) for v in module.read_split("test")] == [
        ("74225", 1, 0.0, None),
        ("116154", 0, 0.0, None),
    ]
    assert (module.class_names, module.num_outputs) == (TEMPLATES, 174)


def test_classes_have_the_numbers_of_the_list_of_labels(make, root):
    path = root / "annotations" / "labels.json"
    path.write_text(json.dumps({name: str(173 - number) for number, name in enumerate(TEMPLATES)}))
    module = make(root)
    assert module.class_names == TEMPLATES[::-1]
    assert [video.target for video in module.read_split("test")] == [172, 173]


def test_the_validation_list_is_the_test_split(make, root):
    module = make(root)
    assert module.read_split("val") == module.read_split("test")
    assert (module.selection, len(module.read_split("train"))) == ("test", 30)
    module = make(root, hold_out=True)
    assert (module.selection, len(module.read_split("train")), len(module.read_split("val"))) == ("val", 27, 3)


def test_classes_without_training_videos_are_warned_of(make, root):
    with pytest.warns(UserWarning, match=r"here 1: 'Approaching something with your camera' \(test, .*json, entry 2\)"):
        make(root).check_lists()


def test_videos_of_any_suffix_are_read(stamps, make, root):
    stamps.write(root / "videos" / "74225.webm", 40, fps=12, codec="libvpx-vp9")
    stamps.write(root / "videos" / "116154.mp4", 48, fps=12)
    batches = list(make(root).test_dataloader())
    assert [batch.id for batch in batches] == [["74225@0.00"], ["116154@0.00"]]
    assert stamps.read(batches[1].inputs[0]) == [6, 18, 30, 42]


def test_missing_videos_are_named(make, root):
    with pytest.raises(FileNotFoundError, match=r"2 of the 2 val videos are missing, such as .*videos/74225.mp4"):
        make(root).check_videos(training=False)


ENTRY = {"id": "74225", "template": "Attaching [something] to [something]"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"id": "74225"}], r"validation.json, entry 1: expected an id.*and a template.*not the list of test videos"),
        ([ENTRY, ENTRY | {"id": 7}], r"entry 2: expected an id, digits as text"),
        ([ENTRY | {"id": "../7"}], r"entry 1: expected an id, digits as text"),
        ([7], r"entry 1: expected an id"),
        (ENTRY, r"validation.json: expected \[\{"),
        ([ENTRY | {"template": "Hiding [something]"}], r"entry 1: expected a template that is in labels.json, got 'H"),
        ([ENTRY | {"template": "attaching [something] to [something]"}], r"'Attaching something to something' exists"),
        ([ENTRY, ENTRY], r"entry 2: expected every video once, got 74225 \(test\).*entry 1"),
        ([ENTRY | {"id": "101"}], r"every video once, got 101 \(test\).*101 \(train\) of .*train.json, entry 2"),
        ([], r"annotations: expected videos in train, test, got none in test"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_are_named(make, root, content, says):
    (root / "annotations" / "validation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says):
        make(root).check_lists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"Attaching something to something": "0"}, r"labels.json: expected the 174 official classes, got 1,"),
        ({name: str(n) for n, name in enumerate(TEMPLATES, start=1)}, r"labels.json: expected the 174 .*, got 175,"),
        (dict.fromkeys(TEMPLATES, "0"), r"labels.json: expected one name per class, got Appr"),
        (dict.fromkeys(TEMPLATES, "zero"), r"labels.json: Approaching .*: expected a class index"),
        (TEMPLATES, r'labels.json: expected \{"<template>": "<number>"\}'),
    ],
    ids=["few", "gap", "equal", "text", "list"],
)  # fmt: skip
def test_mistakes_in_the_labels_are_named(make, root, content, says):
    (root / "annotations" / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says):
        make(root).check_lists()


def test_a_web_page_is_no_list(make, root):
    (root / "annotations" / "train.json").write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"train.json: expected JSON.*not its web page"):
        make(root).check_lists()

"""Lists are checked as a whole: names, repetitions, splits, values and classes."""

import unicodedata

import pytest

from vtm.data.datasets.checking import Item, check_ids, check_items, check_labels


def items(*rows):
    """Make items of a small sound list and further rows of (id, label, split)."""
    sound = [("a", "x", "train"), ("b", "y", "train"), ("c", "x", "val"), ("d", "y", "test")]
    return [Item(*row, f"list, line {number}") for number, row in enumerate((*sound, *rows), start=2)]


def test_a_sound_list_is_accepted_in_silence(recwarn):
    check_items(items(("e/f-g h.mp4", "x", "test"), ("..a", "x", "train"), ("b..", "y", "val")), source="list")
    assert not recwarn.list


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "..", "../x", "a/../../b", "a/..", "\\x", "..\\x", "a\\..\\..\\b", "C:\\x", "c:/x"],
)
def test_names_that_lead_out_of_the_folder_are_refused(name):
    with pytest.raises(ValueError, match=r'list, line 6: expected a relative path without ".." .*got .*correct'):
        check_ids(items((name, "x", "test")))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\r", "control characters"),
        ("\udce9", "UTF-8"),
        ("é" * 128, "255 bytes"),
    ],
)
def test_names_that_are_no_file_names_are_refused(name, says):
    with pytest.raises(ValueError, match=f"list, line 6: expected .*{says}"):
        check_ids(items((name, "x", "test")))


@pytest.mark.parametrize("name", ["d", "./d", "d/", "d/."])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_video_twice_is_refused_with_both_lines(name, split):
    with pytest.raises(
        ValueError, match=rf"line 6: .* \({split}\), which is the same file as d \(test\) of list, line 5"
    ):
        check_ids(items((name, "y", split)))


@pytest.mark.parametrize(
    ("name", "says"),
    [("A", "case"), ("a ", "space"), (unicodedata.normalize("NFD", "é"), "decomposed"), ("sub\\a", "backslash")],
)
def test_names_that_look_the_same_are_pointed_out(name, says):
    with pytest.warns(UserWarning, match=rf"line 8: .*taken as two videos, but .*{says}.*remove one"):
        check_ids(items(("é", "x", "train"), ("sub/a", "x", "train"), (name, "x", "test")))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(split):
    with pytest.raises(ValueError, match=f"list: expected videos in train, val, test, got none in {split}"):
        check_labels([item for item in items() if item.split != split], source="list")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_values_that_are_not_finite_are_refused(value, split):
    numbers = [item._replace(label=1.0) for item in items()]
    check_labels(numbers, source="list")
    with pytest.raises(ValueError, match=rf"line 6: expected a finite value for e, got {value}"):
        check_labels([*numbers, Item("e", value, split, "list, line 6")], source="list")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_without_training_videos_is_refused_or_warned_of(split):
    rows = items(("e", "z", split))
    with pytest.raises(ValueError, match=rf"line 6: .*have training videos, got 'z' for e \({split}\)"):
        check_labels(rows, source="list")
    with pytest.warns(UserWarning, match=rf"without training videos, here 1: 'z' \({split}, list, line 6\)"):
        check_labels(rows, source="list", known={"x", "y", "z"})


def test_a_class_that_only_looks_like_another_is_explained():
    with pytest.raises(ValueError, match=r"got 'X' for e \(test\); 'x' exists, but 'X' in test is 'x' in train: upper"):
        check_labels(items(("e", "X", "test")), source="list")
    with pytest.warns(UserWarning, match=r"'X' and 'x' are two classes, but .*upper and lower case differ"):
        check_labels(items(("e", "X", "train")), source="list")


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes, got only 'x'"):
        check_labels([item._replace(label="x") for item in items()], source="list")

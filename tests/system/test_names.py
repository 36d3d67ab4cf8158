"""Names that look alike are found, and the message says how they differ."""

import unicodedata
from pathlib import Path

import pytest

from vtm.system.names import PathIndex, explain_difference, explain_missing, fold, spellings

NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "other", "says"),
    [
        (NFC, NFD, "'é' is composed in the list and decomposed in the file"),
        (NFD, NFC, "'é' is decomposed in the list and composed in the file"),
        (NFC + NFD, NFC + NFC, "'é' is partly composed in the list and composed in the file"),
        ("\uac00", "\u1100\u1161", "'\uac00' is composed in the list and decomposed in the file"),
        ("a.mp4 ", "a.mp4", "the name ends with a space in the list"),
        ("a.mp4", " a.mp4", "the name begins with a space in the file"),
        ("a .mp4", "a.mp4", "the spaces differ: 'a .mp4' in the list, 'a.mp4' in the file"),
        ("a /b", "a/b", "the spaces differ: 'a /b' in the list, 'a/b' in the file"),
        ("a b", "a\u00a0b", r"the spaces differ: 'a b' in the list, 'a\xa0b' in the file"),
        ("a\\b\\c", "a/b/c", "the list has a backslash where the file has a slash"),
        ("Scene", "scene", "'S' in the list is 's' in the file: upper and lower case differ"),
        ("a–b", "a-b", "'–' (U+2013) in the list only looks like '-'"),
        ("it's", "it’s", "'’' (U+2019) in the file only looks like \"'\""),
        ("\u0441at", "cat", "'\u0441' (U+0441) in the list only looks like 'c'"),
        ("\ufeffpath", "path", "the name has the invisible character U+FEFF in the list"),
        ("pa\u200bth", "path", "the name has the invisible character U+200B in the list"),
        ('"a"', "a", "the name has quotation marks around it in the list"),
    ],
)
def test_each_difference_is_described(name, other, says):
    assert fold(name) == fold(other)
    assert explain_difference(name, other, here="the list", there="the file") == says


def test_several_differences_are_all_described():
    says = explain_difference(f"{NFC}\\A ", f"{NFD}/a", here="the list", there="the file")
    for part in ("backslash", "ends with a space", "decomposed", "upper and lower case"):
        assert part in says


@pytest.mark.parametrize("other", ["dogs", "do", "d o g", "dög", "do/g", "", "dog"])
def test_other_names_are_not_offered(other):
    assert explain_missing("dog", [other], here="the list", there="the file") == ""


def test_other_spellings_have_the_same_fold():
    names = spellings(f"{NFC}\\a ")
    assert {f"{NFD}/a", f"{NFC}\\a", f"{NFC}/a "} <= set(names)
    assert all(fold(name) == fold(f"{NFC}\\a ") for name in names)
    assert spellings("plain") == []


@pytest.mark.parametrize(
    ("asked", "there", "says"),
    [
        (f"{NFC}/1.mp4", f"{NFD}/1.mp4", "'é' is composed in the list and decomposed in the file name"),
        ("cat\\1.mp4", "cat/1.mp4", "the list has a backslash"),
        ("cat/1.mp4 ", "cat/1.mp4", "the name ends with a space in the list"),
        ("cat/Deep/1.mp4", "Cat/deep/1.MP4", "upper and lower case differ"),
        ("Ab-c.mp4", "ab-c.webm", "'A' in the list is 'a' in the file name"),
    ],
)
def test_the_file_that_a_missing_path_stands_for_is_named(tmp_path, asked, there, says):
    (tmp_path / there).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / there).touch()
    message = PathIndex().explain(tmp_path / asked, suffixes=(".mp4", ".webm"))
    assert message.startswith(f"; {tmp_path / there} exists, but ")
    assert says in message


def test_nothing_is_named_where_nothing_is_alike(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.txt").touch()
    for name in ("dog/1.mp4", "cat/1.mp4", "cat/2.txt", "cat/1.txt/deep"):
        assert PathIndex().explain(tmp_path / name, suffixes=(".mp4",)) == ""
    assert PathIndex().explain(Path("nowhere at all")) == ""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from vtm.check_data import Finding, check, update_unusable
from vtm.data.datamodule import read_unusable
from vtm.data.source import Video
from vtm.features.file import FeatureError, OtherTimesError
from vtm.video.decoding import TooShortError, VideoError

ERRORS = {
    "short": TooShortError("ends early"),
    "broken": VideoError("is not a video"),
    "damaged": FeatureError("has damage"),
    "outdated": OtherTimesError("has other times"),
    "locked": PermissionError("is not ours to read"),
}


class Source:
    def version(self, video):
        return None if video.id == "absent" else "1-2"

    def locate(self, video):
        return f"place/{video.id}"

    def check(self, video, protocol, *, train):
        assert train == (video.target == 1)
        if video.id in ERRORS:
            raise ERRORS[video.id]


def test_every_video_of_every_split_is_judged():
    splits = {"train": ["good", "short", "broken"], "val": ["absent", "outdated"], "test": ["damaged", "locked"]}
    lists = {
        split: [Video(name, Path(name), int(split == "train")) for name in names] for split, names in splits.items()
    }
    findings = check(SimpleNamespace(source=Source(), protocol=None, listed=lists.get))
    assert [(finding.split, finding.id, finding.state, finding.reason) for finding in findings] == [
        ("train", "good", "sound", ""),
        ("train", "short", "too short", "ends early"),
        ("train", "broken", "unreadable", "is not a video"),
        ("val", "absent", "missing", ""),
        ("val", "outdated", "missing", "has other times"),
        ("test", "damaged", "unreadable", "has damage"),
        ("test", "locked", "unreadable", "is not ours to read"),
    ]
    assert [finding.version for finding in findings] == ["1-2", "1-2", "1-2", "", "1-2", "1-2", "1-2"]
    assert findings[0].path == "place/good"


def test_a_missing_video_is_compared_with_the_files(tmp_path):
    (tmp_path / "Caf\u00e9.mp4").touch()
    path = tmp_path / "Cafe\u0301.mp4"
    source = SimpleNamespace(version=lambda video: None, locate=lambda video: str(video.path))
    lists = {"train": [Video("a", path, 0)], "val": [], "test": []}
    (found,) = check(SimpleNamespace(source=source, protocol=None, listed=lists.get))
    assert found.state == "missing"
    assert "'é' is decomposed in the list and composed in the file name" in found.reason


def finding(name, state):
    return Finding("test", name, state, f"{name}.mp4", "1-2", "why, and what")


def listed(path):
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def test_the_list_of_unusable_videos_keeps_entries_that_were_not_checked(tmp_path):
    path = tmp_path / "new" / "unusable.csv"
    update_unusable(path, [finding("a", "sound"), finding("b", "missing")])
    assert not path.exists()  # nothing to list
    update_unusable(path, [finding("a", "unreadable"), finding("b", "too short"), finding("c", "missing")])
    assert listed(path) == {"a": "why, and what", "b": "why, and what"}
    assert [file.name for file in path.parent.iterdir()] == ["unusable.csv"]  # and no file of a lock
    update_unusable(path, [finding("b", "sound"), finding("d", "unreadable")])
    assert set(listed(path)) == {"a", "d"}
    update_unusable(path, [finding("a", "sound"), finding("d", "sound")])
    assert listed(path) == {}


@pytest.mark.parametrize("name", ["=1+1.mp4", "-a.mp4", "'@a", "\udcff.mp4", "\t=a"])
def test_names_in_the_list_are_no_formulas_and_are_read_as_they_were(tmp_path, name):
    path = tmp_path / "unusable.csv"
    update_unusable(path, [finding(name, "unreadable")])
    update_unusable(path, [finding("b", "unreadable")])  # reads and writes the other row again
    assert read_unusable(path).keys() == {name, "b"}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    update_unusable(path, [finding(name, "sound")])
    assert read_unusable(path).keys() == {"b"}


def test_commands_that_end_at_once_all_get_into_the_list(tmp_path):
    path = tmp_path / "unusable.csv"
    names = [f"{number:02}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: update_unusable(path, [finding(name, "unreadable")]), names))
    assert sorted(listed(path)) == names


def test_a_list_that_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        update_unusable(tmp_path / "file" / "unusable.csv", [finding("a", "unreadable")])

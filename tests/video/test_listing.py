"""Folders are listed as a whole, once, and whatever links there are."""

import os
from pathlib import Path

import pytest

from vtm.video.listing import entries, find_video, is_video, walk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a/2.mp4", "a/1.txt", "a/deep/3.mkv", ".hidden.mp4", ".cache/4.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def listed(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in walk(folder)]


def test_what_is_not_hidden_is_listed_in_order(folder):
    assert [path.name for path in entries(folder)] == ["a", "b.mp4"]
    assert listed(folder) == ["a/1.txt", "a/2.mp4", "a/deep/3.mkv", "b.mp4"]
    assert [path.name for path in walk(folder) if is_video(path)] == ["2.mp4", "3.mkv", "b.mp4"]


def test_folders_behind_links_are_entered_once(folder, tmp_path):
    (folder / "a" / "deep" / "back").symlink_to(folder)
    (folder / "a" / "deep" / "up").symlink_to("..")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "5.mp4").touch()
    (tmp_path / "other" / "first").symlink_to(folder)
    (folder / "elsewhere").symlink_to(tmp_path / "other")
    (folder / "elsewhere_again").symlink_to(tmp_path / "other")
    assert listed(folder) == ["a/1.txt", "a/2.mp4", "a/deep/3.mkv", "b.mp4", "elsewhere/5.mp4"]


def test_a_broken_link_is_listed_and_a_pipe_is_not(folder):
    (folder / "lost.mp4").symlink_to("nowhere.mp4")
    (folder / "round.mp4").symlink_to("round.mp4")
    os.mkfifo(folder / "pipe.mp4")
    assert listed(folder)[-3:] == ["b.mp4", "lost.mp4", "round.mp4"]


def test_find_video_prefers_the_first_stem_that_is_there(tmp_path):
    (tmp_path / "b.avi").touch()
    (tmp_path / "c.webm").touch()
    assert find_video(tmp_path, "a", "b", "c") == tmp_path / "b.avi"
    assert find_video(tmp_path, "c") == tmp_path / "c.webm"
    assert find_video(tmp_path, "a", "d") == tmp_path / "a.mp4"

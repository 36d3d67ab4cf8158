"""Folders are listed completely, and each only once, whatever links they contain."""

import os
from pathlib import Path

import pytest

from vtm.video.listing import SUFFIXES, VideoIndex, entries, is_video, list_videos, walk


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


def test_the_first_stem_that_is_there_is_found(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.avi", "c.webm", "deep/d.e.mov"):
        (tmp_path / name).touch()
    index = VideoIndex(tmp_path)
    assert index.find("a", "b", "c") == tmp_path / "b.avi"
    assert index.find("c") == tmp_path / "c.webm"
    assert index.find("other/d.e", "deep/d.e", "c") == tmp_path / "deep" / "d.e.mov"


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".MP4", ".Mov"])
def test_a_video_is_found_with_any_suffix(tmp_path, suffix):
    for name in (f"a{suffix}", "a.txt", "a", "ab.mp4", "A.mp4"):
        (tmp_path / name).touch()
    assert VideoIndex(tmp_path).find("a") == tmp_path / f"a{suffix}"


def test_of_several_suffixes_the_same_one_is_found_always(tmp_path):
    for suffix in (".avi", ".webm", ".MOV", ".mov", ".MP4", ".mp4"):  # the least preferred first
        (tmp_path / f"a{suffix}").touch()
        assert VideoIndex(tmp_path).find("a") == tmp_path / f"a{suffix}"


def test_a_missing_video_is_an_mp4_of_the_first_stem(tmp_path):
    (tmp_path / "b.txt").touch()
    (tmp_path / "file").touch()
    index = VideoIndex(tmp_path)
    assert index.find("a", "b") == tmp_path / "a.mp4"
    assert index.find("absent/a", "b") == tmp_path / "absent" / "a.mp4"
    assert index.find("file/a") == tmp_path / "file" / "a.mp4"
    assert VideoIndex(tmp_path / "absent").find("a") == tmp_path / "absent" / "a.mp4"


def test_links_are_found_but_no_folders_pipes_and_broken_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.mkv").touch()
    (tmp_path / "videos").symlink_to("disk")
    (tmp_path / "a.mp4").mkdir()
    os.mkfifo(tmp_path / "a.m4v")
    (tmp_path / "a.mov").symlink_to("a.mov")
    (tmp_path / "a.mkv").symlink_to("nowhere")
    assert VideoIndex(tmp_path).find("a") == tmp_path / "a.mp4"
    (tmp_path / "a.avi").symlink_to("disk/1.mkv")
    assert VideoIndex(tmp_path).find("a") == tmp_path / "a.avi"
    assert VideoIndex(tmp_path).find("videos/1") == tmp_path / "videos" / "1.mkv"


def test_an_index_reads_a_folder_once(tmp_path):
    old = VideoIndex(tmp_path)
    assert old.find("a") == tmp_path / "a.mp4"
    (tmp_path / "a.mkv").touch()
    assert old.find("a") == tmp_path / "a.mp4"
    assert VideoIndex(tmp_path).find("a") == tmp_path / "a.mkv"


@pytest.mark.parametrize("stem", ["../a", "/etc/passwd", "a/../../b", "a\0", "a\nb", ""])
def test_a_name_never_leads_out_of_the_folder(tmp_path, stem):
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"videos: expected .*, got .*; correct the list"):
        VideoIndex(tmp_path / "videos").find(stem)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Caf\u00e9.mp4", "'é' is composed in the given path and decomposed in the file name"),
        ("DAY 1/x.mp4", "'D' in the given path is 'd' in the file name"),
        ("day 1\\x.mp4", "the given path has a backslash where the file name has a slash"),
        ("day  1", "the spaces differ"),
    ],
)
def test_a_missing_name_is_compared_with_those_that_exist(tmp_path, name, says):
    (tmp_path / "day 1").mkdir()
    for there in ("Cafe\u0301.mp4", "day 1/x.mp4"):
        (tmp_path / there).touch()
    with pytest.raises(ValueError) as error:
        list_videos([str(tmp_path / name)])
    assert f"no such file or folder, and no video matches; {tmp_path}" in str(error.value)
    assert says in str(error.value)

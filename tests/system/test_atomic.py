"""Files are written completely or not at all."""

import os
from pathlib import Path

import pytest

from vtm.system.atomic import remove_unfinished, write_atomically


def test_the_text_is_written_as_it_is_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "list.csv"
    write_atomically(path, "γ,1\r\nx,2\n")
    assert path.read_bytes() == "γ,1\r\nx,2\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["list.csv"]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.touch()
    path.chmod(0o660)
    write_atomically(path, "new")
    assert path.stat().st_mode & 0o777 == 0o660


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_errors_name_the_file_and_not_an_unfinished_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as taken:
        write_atomically(tmp_path / "folder", "")
    with pytest.raises(OSError, match="too long") as long:
        write_atomically(tmp_path / ("a" * 256), "")
    assert taken.value.filename == str(tmp_path / "folder")
    assert long.value.filename == str(tmp_path / ("a" * 256))
    assert taken.value.filename2 is long.value.filename2 is None
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("é" * 127), "text")
    assert (tmp_path / ("é" * 127)).read_text() == "text"


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        killed = os.fork()
        if killed == 0:
            os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
            write_atomically(tmp_path / name, "new")
        os.waitpid(killed, 0)
    assert len([*tmp_path.iterdir()]) == 2
    write_atomically(tmp_path / "last.ckpt", "newer")
    remove_unfinished(tmp_path / "last.ckpt")
    assert len([*tmp_path.iterdir()]) == 2  # what is left of best.ckpt stays
    remove_unfinished(tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]

"""Damage to the archives of `torch.save` is found, wherever it is, and no sound file counts as damaged."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from vtm.system.archive import is_damaged, is_intact

OLD = Path(__file__).parents[1] / "old_files" / "runs"
CONTENT = {"floats": torch.arange(9.0), "flags": torch.zeros(3, dtype=torch.bool), "none": torch.empty(0), "é": "text"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def flipped(content: bytes) -> Iterator[bytes]:
    for bit in range(0, 8 * len(content), 7):
        yield content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize("path", sorted(OLD.rglob("*.ckpt")), ids=lambda path: str(path.relative_to(OLD)))
def test_old_checkpoints_are_intact(path: Path) -> None:
    assert is_intact(path)
    assert not is_damaged(path)


def test_a_flipped_bit_is_found_anywhere(archive: Path) -> None:
    content = archive.read_bytes()
    assert is_intact(archive)
    for damaged in flipped(content):
        archive.write_bytes(damaged)
        assert not is_intact(archive)


def test_what_is_cut_or_extended_is_damaged(archive: Path) -> None:
    content = archive.read_bytes()
    for length in (4, 5, 100, len(content) // 2, len(content) - 23, len(content) - 1):
        archive.write_bytes(content[:length])
        assert not is_intact(archive)
        assert is_damaged(archive)
    for damaged in (content + b"\0", content + b"\n" * 99, b"\0" + content, content[1:], content + content[-22:]):
        archive.write_bytes(damaged)
        assert not is_intact(archive)
    archive.write_bytes(content + b"\0")
    assert is_damaged(archive)


def test_flipped_bits_in_the_content_of_any_archive_are_damage(tmp_path: Path) -> None:
    path, text = tmp_path / "model.pth", b"weights" * 9
    for compression in (0, ZIP_DEFLATED):
        with ZipFile(path, "w", compression) as file:
            file.comment = b"published"
            file.writestr("a.txt", text)
        assert not is_damaged(path)
        content = bytearray(path.read_bytes())
        content[40] ^= 1
        path.write_bytes(content)
        assert is_damaged(path)


def test_files_without_checksums_are_not_damaged(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"PK"), ("pickle", pickle.dumps([1, 2]))):
        (tmp_path / name).write_bytes(content)
        assert not is_damaged(tmp_path / name)
        assert not is_intact(tmp_path / name)
    torch.save(CONTENT, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    assert not is_damaged(tmp_path / "legacy")


def test_the_headers_of_another_version_of_torch_are_not_damage(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(archive.read_bytes())
    content[4] ^= 1  # the version of the first header
    archive.write_bytes(content)
    assert not is_intact(archive)
    monkeypatch.setattr("vtm.system.archive._knows_headers", lambda: False)
    assert is_intact(archive)

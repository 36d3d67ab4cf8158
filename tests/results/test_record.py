"""Fields of `results.json`: the commit and the hash of the evaluated ids."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from vtm.results.record import ids_sha256, source_commit


def test_hash_of_ids_is_that_of_the_sorted_lines() -> None:
    wanted = hashlib.sha256("a/1.mp4\nb/1.mp4\né".encode()).hexdigest()
    assert ids_sha256(["é", "b/1.mp4", "a/1.mp4"]) == wanted
    assert ids_sha256(["b/1.mp4", "a/1.mp4"]) != wanted


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_names_the_checkout_of_the_file(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "results.py"
    source.write_text("one")
    assert source_commit(source) is None  # no checkout
    git("init")
    assert source_commit(source) is None  # a checkout of something else, as around a virtual environment
    git("add", ".")
    git("commit", "-m", "One")
    head = git("rev-parse", "HEAD")
    assert source_commit(source) == head
    source.write_text("two")
    assert source_commit(source) == f"{head}+dirty"

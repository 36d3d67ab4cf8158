"""Fields of `results.json`: the commit and the hash of the evaluated ids."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from vtm.results.record import describe_run, ids_sha256, read_results, score_of, source_commit, write_results


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
    assert source_commit(source) is None  # not tracked, as in a virtual environment inside a checkout
    git("add", ".")
    git("commit", "-m", "One")
    head = git("rev-parse", "HEAD")
    assert source_commit(source) == head
    source.write_text("two")
    assert source_commit(source) == f"{head}+dirty"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = describe_run(experiment="scene", seed=3, published={}, source=Path(__file__))
    run |= {"task": "classification", "config": {"task": {"_target_": "vtm.tasks.Classification"}}}
    test = {"value": 0.5, "epoch": 2, "missing_ids": ["a"], "per_class": {"day": {"accuracy": 0.5, "n": 2}}}
    write_results(tmp_path / "results.json", run, {"test": test})
    found = read_results(tmp_path / "results.json")
    assert (found["experiment"], found["seed"], found["commit"]) == ("scene", 3, run["commit"])
    assert found["versions"].keys() == {"python", "torch", "lightning", "timm", "av", "vtm"}
    assert found["config"]["task"]["_target_"] == "vtm.tasks.classification.Classification"
    assert score_of(found, "test", 2) == {"value": 0.5, "epoch": 2}
    assert score_of(found, "test", 1) is score_of(found, "val", 2) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "but it is not JSON"),
        ("[]", "but it lacks experiment"),
        ("{}", "but it lacks experiment, task, seed, commit, config, published; delete"),
    ],
)
def test_another_file_than_results_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=rf"results.json: expected the results of a run, {message}"):
        read_results(tmp_path / "results.json")

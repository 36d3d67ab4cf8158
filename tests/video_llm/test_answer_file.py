import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtm.video_llm.answer_file import KEYS, AnswerFile

PARTS = {"weights": "a", "prompt": "b", "frames": 8, "compressor": {"_target_": "x", "threshold": 0.6}}


def answer(id: str = "q", order: int = 0, **changes):
    values = ("v", 1, 2, False, 64, 32, 8, 0.5)
    return {"id": id, "order": order} | dict(zip([*KEYS[1:2], *KEYS[3:-1]], values, strict=True)) | changes


def open_file(folder: Path, **changes) -> AnswerFile:
    return AnswerFile(folder, PARTS | changes)


def add(folder: Path, *answers: dict) -> bytes:
    with open_file(folder) as file:
        for one in answers:
            file.add(one)
    return (folder / "answers.jsonl").read_bytes()


def test_answers_are_kept_and_read_again(tmp_path):
    add(tmp_path / "new", answer("q1"), answer("q2", 3, choice=4))
    with open_file(tmp_path / "new") as file:
        assert file.answers.keys() == {("q1", 0), ("q2", 3)}
        assert file.answers["q2", 3]["choice"] == 4
        assert file.answers["q2", 3]["hash"] == file.hash
    parts = json.loads((tmp_path / "new" / "hash.json").read_text())
    assert parts == PARTS | {"hash": file.hash}


def test_every_cut_of_the_last_line_is_repaired(tmp_path):
    whole = add(tmp_path, answer("é"), answer("q2"))
    first = whole.index(b"\n") + 1
    path = tmp_path / "answers.jsonl"
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with open_file(tmp_path) as file:
            assert file.answers.keys() == {("é", 0)}
            assert path.read_bytes() == whole[:first]
            file.add(answer("q2"))
        assert path.read_bytes() == whole


def test_an_answer_that_is_there_twice_counts_once(tmp_path):
    content = add(tmp_path, answer(choice=1))
    (tmp_path / "answers.jsonl").write_bytes(content + content.replace(b'"choice": 1', b'"choice": 2'))
    with open_file(tmp_path) as file:
        assert [one["choice"] for one in file.answers.values()] == [1]


def test_videos_are_taken_until_their_questions_are_answered(tmp_path):
    with open_file(tmp_path) as file:
        file.add(answer("q-v1"))
        taken = []
        for video in file.take(["v1", "v2", "v3"], is_done=lambda video: (f"q-{video}", 0) in file.answers):
            taken.append(video)
            file.add(answer(f"q-{video}"))
        assert taken == ["v2", "v3"]


def test_another_process_takes_other_videos(tmp_path):
    script = f"""
from tests.video_llm.test_answer_file import *
with open_file(Path({str(tmp_path)!r})) as file:
    print(list(file.take(["v1", "v2"], is_done=lambda video: False)))
"""
    with open_file(tmp_path) as file:
        for _ in file.take(["v1"], is_done=lambda video: False):
            command = [sys.executable, "-c", script]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
            assert done.stdout == "['v2']\n"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frames": 9}, "frames"),
        ({"compressor": PARTS["compressor"] | {"threshold": 0.5}}, "compressor"),
        ({"weights": "c", "prompt": "d"}, "weights and another prompt"),
    ],
)
def test_another_setting_is_refused_by_its_name(tmp_path, change, named):
    before = add(tmp_path, answer())
    with pytest.raises(ValueError, match=rf"has answers with another {named} than this command; choose another folder"):
        open_file(tmp_path, **change).__enter__()
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "hash.json").read_text())["frames"] == 8


def test_a_folder_without_answers_can_change_its_setting(tmp_path):
    add(tmp_path)
    with open_file(tmp_path, frames=9) as file:
        file.add(answer())
    with pytest.raises(ValueError, match="another frames"):
        open_file(tmp_path).__enter__()


def test_lines_of_another_setting_are_refused(tmp_path):
    add(tmp_path, answer(), answer("q2"))
    (tmp_path / "hash.json").unlink()
    with pytest.raises(ValueError, match="has answers of another setting, hash "):
        open_file(tmp_path, frames=9).__enter__()


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "{}",
        "[]",
        "3",
        json.dumps(answer()),
        *(json.dumps(answer(hash="a", **bad)) for bad in ({"choice": None}, {"choice": -1}, {"tokens_before": 0})),
    ],
)
def test_a_damaged_line_is_shown(tmp_path, line):
    before = add(tmp_path, answer())
    content = before + line.encode() + b"\n"
    (tmp_path / "answers.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="delete this line to answer its question again"):
        open_file(tmp_path).__enter__()
    assert (tmp_path / "answers.jsonl").read_bytes() == content


def test_failures_are_kept_until_the_next_run(tmp_path):
    with open_file(tmp_path) as file:
        file.add_failure("v1", "is no\nvideo")
        file.add_failure("v2", "is gone")
        (tmp_path / "errors.elsewhere.1.json").write_text('{"v3": "there"}')
        assert file.failures() == {"v1": "is no video", "v2": "is gone", "v3": "there"}
    with open_file(tmp_path) as file:
        assert file.failures() == {}


def test_a_file_that_was_replaced_is_not_written(tmp_path):
    with open_file(tmp_path) as file:
        file.add(answer())
        os.rename(file.path, tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match="was moved, deleted or replaced"):
            file.add(answer("q2"))

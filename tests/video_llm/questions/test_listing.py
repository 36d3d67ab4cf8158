from pathlib import Path

import pytest

from tests.video_llm.questions.lists import write_nextqa
from vtm.video_llm.questions.listing import spread
from vtm.video_llm.questions.nextqa import NExTQA
from vtm.video_llm.questions.question import Question


def listing(root: Path, **options) -> NExTQA:
    return NExTQA(**({"root": root, "allow_missing": False, "split": "val"} | options))


def add_videos(root: Path, *names: str) -> None:
    for name in names:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_limit_takes_questions_from_the_whole_list():
    questions = [Question(str(number), "v", Path("v"), "?", ("a", "b"), 0) for number in range(10)]
    assert [question.id for question in spread(questions, 4)] == ["0", "2", "5", "7"]
    assert spread(questions, None) == spread(questions, 12) == spread(questions, 10) == questions


def test_missing_videos_stop_the_command_and_are_named(tmp_path):
    write_nextqa(tmp_path)
    add_videos(tmp_path, "4010069381.mp4", "4882821564 .mp4")
    reading = listing(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        reading.select(reading.read())
    message = str(error.value)
    assert "2 of the 3 videos are missing, such as " in message
    assert f"{tmp_path}/videos/4882821564.mp4" in message
    assert "4882821564 .mp4 exists, but the spaces differ" in message
    assert "questions.allow_missing=true leaves out their questions" in message


def test_missing_videos_can_be_left_out_and_are_counted(tmp_path):
    write_nextqa(tmp_path)
    add_videos(tmp_path, "4010069381.webm")
    reading = listing(tmp_path, allow_missing=True)
    selection = reading.select(reading.read())
    assert [question.id for question in selection.questions] == ["4010069381_6", "4010069381_7"]
    assert selection.missing == ["4882821564", "2435100235"]
    assert selection.missing_questions == 2


def test_only_the_videos_of_a_limited_list_are_needed(tmp_path):
    write_nextqa(tmp_path)
    add_videos(tmp_path, "4010069381.mp4")
    reading = listing(tmp_path)
    assert [question.id for question in reading.select(reading.read(), 2).questions] == ["4010069381_6", "4010069381_7"]


def test_a_list_without_any_video_is_an_error_even_if_missing_ones_are_allowed(tmp_path):
    write_nextqa(tmp_path)
    reading = listing(tmp_path, allow_missing=True)
    with pytest.raises(FileNotFoundError, match=r"3 of the 3 videos are missing.*data/README\.md says where"):
        reading.select(reading.read())


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "ten"])
def test_a_limit_is_a_whole_number(tmp_path, limit):
    write_nextqa(tmp_path)
    reading = listing(tmp_path)
    with pytest.raises(ValueError, match="expected limit to be a whole number of at least 1"):
        reading.select(reading.read(), limit)


def test_a_missing_folder_and_a_missing_list_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder .*/none is missing; data/README\.md"):
        listing(tmp_path / "none").read()
    with pytest.raises(FileNotFoundError, match=r"The file .*/annotations/val\.csv is missing"):
        listing(tmp_path).read()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"questions\.root=.*file is a file"):
        listing(tmp_path / "file")

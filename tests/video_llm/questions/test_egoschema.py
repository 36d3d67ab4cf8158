import json

import pytest

from tests.video_llm.questions.lists import write, write_egoschema
from vtm.video_llm.questions.egoschema import EgoSchema


def read(root, *, public_only=False):
    return EgoSchema(root=root, allow_missing=False, public_only=public_only).read()


def test_entries_of_the_official_form(tmp_path):
    write_egoschema(tmp_path)
    questions = read(tmp_path)
    assert [question.answer for question in questions] == [None, 3, None, 0]
    assert questions[1].id == questions[1].video == "uid1"
    assert questions[1].text == "What is the aim in 1?"
    assert questions[1].options == tuple(f"C does {index}" for index in range(5))
    assert questions[1].path == tmp_path / "videos" / "uid1.mp4"
    assert [question.id for question in read(tmp_path, public_only=True)] == ["uid1", "uid3"]


def test_an_empty_list_is_refused(tmp_path):
    write_egoschema(tmp_path, count=0)
    write(tmp_path / "annotations" / "subset_answers.json", {})
    listing = EgoSchema(root=tmp_path, allow_missing=True, public_only=False)
    with pytest.raises(ValueError, match="expected at least one question, got an empty list"):
        listing.select(listing.read())


def test_the_first_public_list_without_questions_is_refused(tmp_path):
    write_egoschema(tmp_path)
    path = tmp_path / "annotations" / "questions.json"
    entries = json.loads(path.read_text())
    del entries[2]["question"]
    write(path, entries)
    with pytest.raises(ValueError, match=r"questions\.json, entry 3: expected a text as 'question', got None"):
        read(tmp_path)


def test_answers_belong_to_questions_and_are_options(tmp_path):
    write_egoschema(tmp_path, uid9=1)
    with pytest.raises(ValueError, match=r"subset_answers\.json: expected answers to questions .*, got uid9"):
        read(tmp_path)
    write_egoschema(tmp_path, uid1=5)
    with pytest.raises(ValueError, match=r"entry 2: expected the index of an option, 0 to 4, as answer, got 5"):
        read(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("[{", r", line 1: expected JSON"), ("{}", r": expected a list")])
def test_another_file_is_refused(tmp_path, text, message):
    write_egoschema(tmp_path)
    write(tmp_path / "annotations" / "questions.json", text)
    with pytest.raises(ValueError, match=rf"questions\.json{message}"):
        read(tmp_path)

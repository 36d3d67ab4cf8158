import pytest

from tests.video_llm.questions.lists import NEXTQA_HEADER, NEXTQA_ROWS, write, write_nextqa
from vtm.video_llm.questions.nextqa import NExTQA


def read(root):
    return NExTQA(root=root, allow_missing=False, split="val").read()


def test_rows_of_the_official_form(tmp_path):
    write_nextqa(tmp_path, folders={"4010069381": "1164/4010069381", "1": "0001/1"})
    (tmp_path / "videos" / "1164").mkdir(parents=True)
    (tmp_path / "videos" / "1164" / "4010069381.mp4").touch()
    (tmp_path / "videos" / "4882821564.mkv").touch()
    first, second, third, last = read(tmp_path)
    assert (first.id, first.video, first.answer) == ("4010069381_6", "4010069381", 0)
    assert first.text == "how do the two man play the instrument"
    assert first.options == ("roll the handle", "tap their feet", "strum", "hit", "pat")
    assert first.groups == {"category": "causal", "type": "CH"}
    assert first.path == tmp_path / "videos" / "1164" / "4010069381.mp4"
    assert second.path == tmp_path / "videos" / "4882821564.mkv"
    assert third.groups == {"category": "temporal", "type": "TN"}  # TP counts as TN, as in the official evaluation
    assert (last.text, last.options[4], last.answer) == ("how many, in all", "five, or so", 4)
    assert not last.path.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,3,4,what,5,0,CW,a,b,c,d,e", r"line 6: expected the index of an option, 0 to 4, as answer, got 5"),
        ("1,2,3,4,what,cat,0,CW,a,b,c,d,e", r"line 6: answer: expected a whole number.*'cat'"),
        ("1,2,3,4,what,0,0,XX,a,b,c,d,e", r"line 6: expected a type of CW, CH, .*, got 'XX'"),
        ("1,2,3,4,what,0,0,CW,a,b,c,d", r"line 6: expected 13 fields"),
        ("", r"line 6: expected 13 fields"),
        ("1,2,3,4,,0,0,CW,a,b,c,d,e", r"line 6: expected a question, got an empty text"),
        ("1,2,3,4,what,0,0,CW,a,b,c, ,e", r"line 6: expected a text as each option, got none as option 4"),
        ('1,2,3,4,"what,0,0,CW,a,b,c,d,e', r"line 6: expected a row of CSV"),
        (NEXTQA_ROWS[0], r"line 6: expected ids that are unique, got 4010069381_6 as in .*line 2"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    write_nextqa(tmp_path, [*NEXTQA_ROWS, row])
    with pytest.raises(ValueError, match=rf"{tmp_path}/annotations/val\.csv, {message}"):
        read(tmp_path)


def test_another_table_is_refused(tmp_path):
    write(tmp_path / "annotations" / "val.csv", NEXTQA_HEADER.replace(",", ";") + "\n")
    with pytest.raises(ValueError, match=r"line 1: expected the columns .* with semicolons instead of commas"):
        read(tmp_path)
    write(tmp_path / "annotations" / "val.csv", NEXTQA_HEADER + "\n")
    with pytest.raises(ValueError, match="expected a header and questions, got 1 lines"):
        read(tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected questions\.split=val or test, got train"):
        NExTQA(root=tmp_path, allow_missing=False, split="train")

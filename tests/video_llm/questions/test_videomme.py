import sys
from pathlib import Path

import pytest

from tests.video_llm.questions.lists import videomme_row, write
from vtm.video_llm.questions.videomme import VideoMME


def read(root):
    return VideoMME(root=root, allow_missing=False).read()


def write_parquet(root: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install pyarrow)")
    from pyarrow import parquet

    (root / "annotations").mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "annotations" / "test-00000-of-00001.parquet")


def test_rows_of_the_official_form(tmp_path):
    write_parquet(tmp_path, [videomme_row(number) for number in range(4)])
    questions = read(tmp_path)
    assert [question.id for question in questions] == ["001-1", "001-2", "001-3", "002-1"]
    assert [question.video for question in questions] == ["-fFjv93ACGo0"] * 3 + ["-fFjv93ACGo1"]
    assert questions[0].answer == 2
    assert questions[0].options == ("Apples.", "Candles.", "B. B. King.", "The three kinds are of the same number.")
    assert questions[0].groups == {"duration": "short", "domain": "Knowledge", "type": "Counting Problem"}
    assert questions[0].path == tmp_path / "videos" / "-fFjv93ACGo0.mp4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"expected a letter A to D as answer, got 'E'"),
        ({"answer": None}, r"expected a text as 'answer', got None"),
        ({"options": ["A. x", "B. y", "C. z"]}, r"expected four options that begin with"),
        ({"options": ["A. x", "C. y", "B. z", "D. w"]}, r"expected four options that begin with"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    write_parquet(tmp_path, [videomme_row(0), videomme_row(1, **change)])
    with pytest.raises(ValueError, match=rf"parquet, row 2: {message}"):
        read(tmp_path)


def test_other_files_are_refused(tmp_path):
    write_parquet(tmp_path, [{"video_id": "001"}])
    with pytest.raises(ValueError, match=r"expected the columns .* without duration, "):
        read(tmp_path)
    write(tmp_path / "annotations" / "test-00000-of-00001.parquet", "no")
    with pytest.raises(ValueError, match="expected a Parquet file"):
        read(tmp_path)


def test_pyarrow_is_optional(tmp_path, monkeypatch):
    write(tmp_path / "annotations" / "test-00000-of-00001.parquet", "no")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="is read by pyarrow, which is not installed; pip install pyarrow"):
        read(tmp_path)

"""A table of predictions goes on where it was, and never harms a file that is something else."""

import csv

import pytest

from vtm.prediction import Prediction, Window
from vtm.prediction_table import COLUMNS, PredictionTable

HEADER = ",".join(COLUMNS) + "\n"


def prediction(video: str, labels: list[str] | None = None) -> Prediction:
    scores = [3.5] if labels is None else [0.25, 0.75]
    return Prediction(video, 4.5, labels, scores, [Window(0.0, 4.5, scores)], damaged=False)


def rows(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "table.csv"


def test_rows_are_there_at_once(path):
    with PredictionTable(path, "abc") as table:
        table.add(prediction("a.mp4", ["x", "y"]))
        first = rows(path)
        table.add(prediction("b.mp4"))
    assert first == rows(path)[:1]
    assert [list(row.values()) for row in rows(path)] == [
        ["a.mp4", "y", "0.750000", "1", "4.500", "0", "abc"],
        ["b.mp4", "3.5", "", "1", "4.500", "0", "abc"],
    ]


@pytest.mark.parametrize("name", ["a\nb.mp4", "a,'\"b.mp4", "a\u2028b\x85c\x0c.mp4", "ü.mp4", "\udcff.mp4"])
def test_whatever_a_video_is_called_it_is_known_again(path, name):
    with PredictionTable(path, "abc") as table:
        table.add(prediction(name))
        table.add(prediction("next.mp4"))
    assert PredictionTable(path, "abc").videos == {name, "next.mp4"}


@pytest.mark.parametrize("torn", ["b.mp4", "b.mp4,x,0.5,1,4.500,0,ab", HEADER[:20]])
def test_half_a_row_is_taken_away(path, torn):
    path.parent.mkdir()
    whole = "" if HEADER.startswith(torn) else f"{HEADER}a.mp4,x,0.5,1,4.500,0,abc\n"
    path.write_text(whole + torn, encoding="utf-8")
    with PredictionTable(path, "abc") as table:
        assert table.videos == ({"a.mp4"} if whole else set())
        table.add(prediction("c.mp4"))
    assert [row["video"] for row in rows(path)] == (["a.mp4", "c.mp4"] if whole else ["c.mp4"])


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"notes without an end", b"\x00\xff\xfe" * 50, b"\n"])
def test_a_file_that_is_something_else_is_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.csv: expected a table with the columns video, prediction"):
        PredictionTable(path, "abc")
    assert path.read_bytes() == content


@pytest.mark.parametrize("torn", ["", "b.mp4"])
def test_the_table_of_another_model_is_left_alone(path, torn):
    path.parent.mkdir()
    content = f"{HEADER}a.mp4,x,0.5,1,4.500,0,other\n{torn}"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="has predictions of the model other, but this one is abc"):
        PredictionTable(path, "abc")
    assert path.read_text(encoding="utf-8") == content

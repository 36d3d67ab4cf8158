"""The files with the predictions of a test and its confusion matrix."""

import csv
from pathlib import Path

from vtm.results.predictions import write_confusion, write_predictions
from vtm.tasks.predictions import Predictions


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_classes_are_written_by_name_with_all_probabilities(tmp_path: Path) -> None:
    scores = [[0.75, 0.25], [0.5, 0.5], [float("nan"), float("nan")]]
    predictions = Predictions(["b/1.mp4", 'a, "2".mp4', "c"], [0, 1, 1], scores, ["day", "night, late"])
    write_predictions(tmp_path / "predictions.csv", predictions)
    columns = ["id", "target", "prediction", "probability_day", "probability_night, late"]
    assert [list(row.values()) for row in read(tmp_path / "predictions.csv")] == [
        ["b/1.mp4", "day", "day", "0.75", "0.25"],
        ['a, "2".mp4', "night, late", "day", "0.5", "0.5"],
        ["c", "night, late", "", "nan", "nan"],
    ]
    assert list(read(tmp_path / "predictions.csv")[0]) == columns


def test_values_are_written_as_numbers_that_give_the_score_again(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.csv", Predictions(["a", "b"], [2.3, 1234567.0], [1 / 3, -1e-7], None))
    assert (tmp_path / "predictions.csv").read_text() == ("id,target,prediction\na,2.3,0.333333333\nb,1234567,-1e-07\n")


def test_confusion_has_true_classes_in_rows_and_predicted_ones_in_columns(tmp_path: Path) -> None:
    predictions = Predictions(["a", "b", "c"], [0, 0, 1], [[0.1, 0.9], [0.2, 0.8], [0.1, 0.9]], ["day", "night"])
    write_confusion(tmp_path / "confusion.csv", predictions)
    assert (tmp_path / "confusion.csv").read_text() == "target,day,night\nday,0,2\nnight,0,1\n"


def test_clusters_of_dependent_videos_are_the_last_column(tmp_path: Path) -> None:
    predictions = Predictions(["a", "b"], [0, 1], [[0.5, 0.5], [0.5, 0.5]], ["day", "night"], ["movie 1", "=2"])
    write_predictions(tmp_path / "predictions.csv", predictions)
    columns = ["id", "target", "prediction", "probability_day", "probability_night", "cluster"]
    assert [list(row) for row in read(tmp_path / "predictions.csv")] == [columns, columns]
    assert [row["cluster"] for row in read(tmp_path / "predictions.csv")] == ["movie 1", "'=2"]


def test_names_are_no_formulas(tmp_path: Path) -> None:
    predictions = Predictions(["=1+1", "-a.mp4"], [0, 1], [[0.1, 0.9], [0.2, 0.8]], ["@day", "+night"])
    write_predictions(tmp_path / "predictions.csv", predictions)
    assert [list(row.values())[:3] for row in read(tmp_path / "predictions.csv")] == [
        ["'=1+1", "'@day", "'+night"],
        ["'-a.mp4", "'+night", "'+night"],
    ]
    write_confusion(tmp_path / "confusion.csv", predictions)
    assert (tmp_path / "confusion.csv").read_text() == "target,'@day,'+night\n'@day,0,1\n'+night,0,1\n"


def test_ids_may_be_names_that_are_not_utf_8(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.csv", Predictions(["\udcff.mp4"], [1.0], [2.0], None))
    assert (tmp_path / "predictions.csv").read_bytes() == b"id,target,prediction\n\xff.mp4,1,2\n"

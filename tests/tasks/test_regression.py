"""Tests of regression: loss, error and baseline."""

import csv
import math
from pathlib import Path

import pytest
import torch

from vtm.tasks.fusion import AuxiliaryLoss
from vtm.tasks.intervals import bootstrap_interval
from vtm.tasks.metric import VideoMSE
from vtm.tasks.regression import Regression, mean_baseline

LVU = Path(__file__).parents[2] / "data" / "lvu" / "annotations"


needs_lvu = pytest.mark.skipif(not LVU.is_dir(), reason=f"no annotations in {LVU}")


def test_mse_averages_the_predictions_of_a_video() -> None:
    metric = VideoMSE()
    metric.update(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]), torch.tensor([0, 0]))
    metric.update(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([8]))
    summary = metric.summary()
    assert metric.compute() == summary["value"] == 2.5  # ((2 - 4)² + (0 - 1)²) / 2
    assert summary["clip_level"] == {"value": pytest.approx((9 + 1 + 1) / 3), "n": 3}
    assert summary["interval"] == [1.0, 4.0]
    names = {"level", "metric", "value", "interval", "n", "videos", "scores", "damaged_videos", "clip_level"}
    assert set(summary) == names
    assert (summary["videos"], summary["scores"]) == ([0, 8], [2.0, 0.0])


def targets(task: str, split: str) -> list[float]:
    with open(LVU / task / f"{split}.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter=" "))[1:]
    if task == "like_ratio":
        return [10 * int(row[0]) / (int(row[0]) + int(row[1])) - 9.138220535629456 for row in rows]
    return [math.log(int(row[0])) - 11.76425435683139 if task == "view_count" else int(row[0]) for row in rows]


@needs_lvu
@pytest.mark.parametrize(
    ("task", "split", "mse"),
    [
        ("like_ratio", "test", 0.606),
        ("like_ratio", "val", 0.503),
        ("view_count", "test", 4.084),
        ("view_count", "val", 4.587),
    ],
)
def test_baseline_of_lvu_regression(task: str, split: str, mse: float) -> None:
    assert round(mean_baseline(targets(task, "train"), targets(task, split)), 3) == mse


@needs_lvu
@pytest.mark.parametrize(("task", "interval"), [("like_ratio", (0.437, 0.798)), ("view_count", (3.173, 5.085))])
def test_interval_of_the_baseline_of_lvu_regression(task: str, interval: tuple[float, float]) -> None:
    train, test = targets(task, "train"), targets(task, "test")
    errors = (torch.tensor(test, dtype=torch.float64) - sum(train) / len(train)) ** 2
    assert bootstrap_interval(errors) == pytest.approx(interval, abs=0.03)  # computed by numpy with 200 000 draws


def test_regression_loss_has_no_broadcasting() -> None:
    logits, target = torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 4.0])
    losses = Regression(1, fusion=AuxiliaryLoss(0.5)).loss(logits, logits + 2, target)
    assert (float(losses["main"]), float(losses["aux"]), float(losses["loss"])) == (2.0, 2.0, 3.0)
    assert torch.equal(Regression(1, fusion=AuxiliaryLoss(0.5)).scores(logits), torch.tensor([1.0, 4.0]))

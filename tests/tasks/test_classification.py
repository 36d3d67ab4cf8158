"""Tests of classification: loss, class weights, scores, accuracy and baseline."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vtm.tasks.classification import Classification, balanced_weights, majority_baseline
from vtm.tasks.fusion import AuxiliaryLoss
from vtm.tasks.intervals import wilson_interval
from vtm.tasks.metric import VideoAccuracy


def classification(num_classes: int = 3, **options: Any) -> Classification:
    return Classification(
        num_classes, **{"label_smoothing": 0.0, "class_weights": None, "fusion": AuxiliaryLoss(1.0), **options}
    )


LVU = Path(__file__).parents[2] / "data" / "lvu" / "annotations"


needs_lvu = pytest.mark.skipif(not LVU.is_dir(), reason=f"no annotations in {LVU}")


def clips(seed: int = 0, videos: int = 9, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return random probabilities, targets and videos of one to four clips per video, in random order."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (videos,), generator=generator)
    video = torch.arange(videos).repeat_interleave(counts)
    video = video[torch.randperm(len(video), generator=generator)]
    target = torch.randint(classes, (videos,), generator=generator)[video]
    return torch.rand(len(video), classes, generator=generator).softmax(1), target, video


def looped(scores: Tensor, target: Tensor, video: Tensor) -> dict[int, tuple[int, int]]:
    """Return the prediction and target of each video, computed one clip at a time."""
    answers = {}
    for index in sorted(set(video.tolist())):
        chosen = [n for n in range(len(video)) if video[n] == index]
        mean = [sum(float(scores[n, k]) for n in chosen) / len(chosen) for k in range(scores.shape[1])]
        answers[index] = (mean.index(max(mean)), int(target[chosen[0]]))
    return answers


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_equals_a_loop_over_videos(seed: int) -> None:
    scores, target, video = clips(seed)
    metric = VideoAccuracy(3)
    for part in torch.arange(len(video)).split(4):
        metric.update(scores[part], target[part], video[part])
    answers = looped(scores, target, video)
    right = [float(found == wanted) for found, wanted in answers.values()]
    summary = metric.summary()
    assert summary["value"] == pytest.approx(sum(right) / len(right))
    assert float(metric.compute()) == pytest.approx(summary["value"])
    assert summary["n"] == len(right) == 9
    assert summary["interval"] == list(wilson_interval(int(sum(right)), 9))
    recalls = []
    for index in sorted({wanted for _, wanted in answers.values()}):
        of_class = [float(found == wanted) for found, wanted in answers.values() if wanted == index]
        recalls.append(sum(of_class) / len(of_class))
    assert summary["macro_accuracy"] == pytest.approx(sum(recalls) / len(recalls))
    by_clip = [float(int(scores[n].argmax()) == int(target[n])) for n in range(len(video))]
    assert summary["clip_level"] == {"value": pytest.approx(sum(by_clip) / len(by_clip)), "n": len(by_clip)}


def test_clips_are_averaged_by_probabilities_and_not_by_predictions() -> None:
    metric = VideoAccuracy(2)
    metric.update(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]), torch.tensor([1, 1, 1]), torch.tensor([4, 4, 4]))
    assert metric.compute() == 1
    assert metric.summary()["clip_level"] == {"value": pytest.approx(1 / 3), "n": 3}


def test_classes_without_videos_do_not_count_in_the_macro_accuracy() -> None:
    metric = VideoAccuracy(5)
    metric.update(torch.eye(5)[[0, 0, 0, 2]], torch.tensor([0, 0, 0, 1]), torch.arange(4))
    assert metric.summary()["value"] == 0.75
    assert metric.summary()["macro_accuracy"] == 0.5


def test_nan_is_a_wrong_prediction() -> None:
    metric = VideoAccuracy(2)
    metric.update(torch.tensor([[math.nan, math.nan], [math.nan, 0.5]]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert metric.compute() == 0


def test_equal_values_of_all_clusters_have_the_wilson_interval() -> None:
    metric = VideoAccuracy(2)
    metric.update(torch.tensor([[0.1, 0.9]] * 6), torch.ones(6, dtype=torch.int64), torch.arange(6))
    assert metric.summary(clusters="aabbcc")["interval"] == list(wilson_interval(3, 3))


def targets(task: str, split: str) -> list[float]:
    with open(LVU / task / f"{split}.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter=" "))[1:]
    if task == "like_ratio":
        return [10 * int(row[0]) / (int(row[0]) + int(row[1])) - 9.138220535629456 for row in rows]
    return [math.log(int(row[0])) - 11.76425435683139 if task == "view_count" else int(row[0]) for row in rows]


@needs_lvu
@pytest.mark.parametrize(
    ("task", "percent"),
    [
        ("relationship", 52.38),
        ("way_speaking", 26.87),
        ("scene", 26.74),
        ("director", 41.12),
        ("genre", 21.17),
        ("writer", 5.36),
        ("year", 8.39),
    ],
)
def test_baseline_of_lvu_classification(task: str, percent: float) -> None:
    baseline = majority_baseline(map(int, targets(task, "train")), map(int, targets(task, "test")))
    assert round(100 * baseline, 2) == percent


def test_scores_are_probabilities_in_full_precision() -> None:
    logits = torch.randn(5, 3).bfloat16()
    scores = classification().scores(logits)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, logits.float().softmax(1))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_smoothed_and_weighted_losses_equal_torch(weights: list[float] | None) -> None:
    logits, target = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 0])
    task = classification(label_smoothing=0.2, class_weights=weights)
    tensor = None if weights is None else torch.tensor(weights)
    wanted = F.cross_entropy(logits, target, weight=tensor, label_smoothing=0.2)
    torch.testing.assert_close(task.loss(logits, None, target)["loss"], wanted)


def test_balanced_weights_give_classes_the_same_total_weight() -> None:
    classes = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(classes, 5)
    assert weights.tolist() == pytest.approx([10 / 30, 10 / 15, 0, 10 / 5, 0])
    assert (weights * classes.bincount(minlength=5)).tolist() == pytest.approx([2, 2, 0, 2, 0])


def test_balanced_weights_come_from_the_training_videos_and_are_in_the_checkpoint() -> None:
    task = classification(4, class_weights="balanced")
    logits, target = torch.randn(4, 4), torch.tensor([0, 1, 1, 2])
    assert task.loss(logits, None, target)["loss"].isnan()  # rather than a loss silently without weights
    task.fit_targets([0, 0, 0, 1, 2, 2])
    wanted = torch.tensor([6 / 12, 6 / 4, 6 / 8, 0.0])
    torch.testing.assert_close(task.state_dict()["class_weights"], wanted)
    torch.testing.assert_close(task.loss(logits, None, target)["loss"], F.cross_entropy(logits, target, weight=wanted))
    other = classification(4, class_weights="balanced")
    other.load_state_dict(task.state_dict())
    torch.testing.assert_close(other.loss(logits, None, target)["loss"], task.loss(logits, None, target)["loss"])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_of_classes_with_weight_zero_has_loss_zero(label_smoothing: float) -> None:
    task = classification(3, class_weights="balanced", label_smoothing=label_smoothing)
    task.fit_targets([0, 1, 1])
    logits = torch.randn(2, 3, requires_grad=True)
    loss = task.loss(logits, None, torch.tensor([2, 2]))["loss"]
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_fixed_weights_do_not_depend_on_the_training_videos() -> None:
    task = classification(3, class_weights=[1, 2, 0.5])
    task.fit_targets([0, 0, 1, 2])
    assert task.class_weights is not None
    assert task.class_weights.tolist() == [1, 2, 0.5]
    assert not list(classification().state_dict())

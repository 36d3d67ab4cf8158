"""Classes that are confused, and the accuracy of each."""

import pytest
import torch

from vtm.tasks.metric import VideoAccuracy
from vtm.tasks.predictions import Predictions

NAMES = ["day", "dusk", "night"]


def random_predictions(videos: int = 40) -> tuple[Predictions, VideoAccuracy]:
    """Predictions of classes that are often wrong, and the metric that averaged their two clips."""
    generator = torch.Generator().manual_seed(0)
    metric, targets = VideoAccuracy(3), torch.randint(2, (videos,), generator=generator)  # none of the third class
    for _ in range(2):
        scores = torch.randn(videos, 3, generator=generator).softmax(1)
        metric.update(scores, targets, torch.arange(videos))
    ids = [f"video {index}" for index in range(videos)]
    return Predictions(ids, targets.tolist(), metric.summary()["scores"], NAMES), metric


def test_confusion_counts_every_video_as_a_loop_does():
    predictions, _ = random_predictions()
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for target, scores in zip(predictions.targets, predictions.scores, strict=True):
        counts[int(target), torch.tensor(scores).argmax()] += 1
    assert predictions.confusion() == counts.tolist()
    assert counts.sum() == 40


def test_accuracies_of_the_classes_agree_with_the_score():
    predictions, metric = random_predictions()
    per_class = predictions.per_class()
    assert list(per_class) == NAMES
    assert per_class.pop("night") == {"accuracy": None, "n": 0}
    right = sum(found["accuracy"] * found["n"] for found in per_class.values())
    assert right / 40 == pytest.approx(metric.summary()["value"])
    macro = sum(found["accuracy"] for found in per_class.values()) / 2
    assert macro == pytest.approx(metric.summary()["macro_accuracy"])


def test_a_video_without_finite_probabilities_has_no_prediction_and_counts_as_wrong():
    predictions = Predictions(["a", "b"], [0, 0], [[float("nan"), 0.0], [1.0, 0.0]], ["day", "night"])
    assert predictions.classes() == [None, 0]
    assert predictions.confusion() == [[1, 0], [0, 0]]
    assert predictions.per_class()["day"] == {"accuracy": 0.5, "n": 2}


def test_of_equal_probabilities_the_first_class_is_predicted_as_in_the_score():
    scores = torch.full((1, 3), 1 / 3)
    assert Predictions(["a"], [0], scores.tolist(), NAMES).classes() == [int(scores.argmax())] == [0]

"""Tests of what tasks have in common: losses, scores, checks, metric and baseline."""

import math
from typing import Any

import pytest
import torch

from vtm.tasks.classification import Classification
from vtm.tasks.fusion import AuxiliaryLoss
from vtm.tasks.metric import VideoAccuracy, VideoMSE
from vtm.tasks.regression import Regression


def classification(num_classes: int = 3, **options: Any) -> Classification:
    return Classification(
        num_classes, **{"label_smoothing": 0.0, "class_weights": None, "fusion": AuxiliaryLoss(1.0), **options}
    )


@pytest.mark.parametrize("task", [classification(), Regression(1, fusion=AuxiliaryLoss(0.5))])
def test_without_the_auxiliary_path_the_loss_is_main(task: Classification | Regression) -> None:
    losses = task.loss(torch.randn(2, task.num_outputs), None, torch.tensor([0, 1]))
    assert set(losses) == {"loss", "main"}
    assert torch.equal(losses["loss"], losses["main"])


@pytest.mark.parametrize("task", [classification(label_smoothing=0.1), Regression(1, fusion=AuxiliaryLoss(0.5))])
def test_losses_of_half_precision_outputs_are_in_full_precision(task: Classification | Regression) -> None:
    logits = torch.randn(2, task.num_outputs).bfloat16()
    target = torch.tensor([0, 1])
    assert torch.equal(task.loss(logits, None, target)["loss"], task.loss(logits.float(), None, target)["loss"])


def test_training_targets_are_checked() -> None:
    task = classification(3)
    task.fit_targets(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"num_classes is 3, but training video 1 of 3 has class 5"):
        task.fit_targets([0, 5, 1])
    with pytest.raises(ValueError, match=r"training video 0 of 1 has class -1"):
        task.fit_targets([-1])
    with pytest.raises(ValueError, match=r"training video 1 of 2 has class 1\.5"):
        task.fit_targets([1, 1.5])
    for empty in (task, Regression(1, fusion=AuxiliaryLoss(1.0))):
        with pytest.raises(ValueError, match="the training split is empty"):
            empty.fit_targets([])
    Regression(1, fusion=AuxiliaryLoss(1.0)).fit_targets([-3.5, 2])
    with pytest.raises(ValueError, match="training video 1 of 2 has nan"):
        Regression(1, fusion=AuxiliaryLoss(1.0)).fit_targets([0.0, math.nan])


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="expected 3 class_weights, one for each class, got 2"):
        classification(class_weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="'balanced', a list of numbers or null, got 'balance'"):
        classification(class_weights="balance")
    for weights in ([1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, math.inf, 1.0]):
        with pytest.raises(ValueError, match="expected class_weights of at least 0"):
            classification(class_weights=weights)
    with pytest.raises(ValueError, match="expected at least 2 classes, got 1"):
        classification(1)
    with pytest.raises(ValueError, match=r"expected label_smoothing in \[0, 1\], got 1\.5"):
        classification(label_smoothing=1.5)


def test_outputs_are_checked() -> None:
    target = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"expected logits \(B, K\) = \(2, 3\) .* got \(2, 4\)"):
        classification().loss(torch.randn(2, 4), None, target)
    with pytest.raises(ValueError, match=r"got \(3, 3\)"):
        classification().loss(torch.randn(2, 3), torch.randn(3, 3), target)
    with pytest.raises(ValueError, match=r"expected logits \(B, K\) = \(2, 1\) .* got \(2,\)"):
        Regression(1, fusion=AuxiliaryLoss(1.0)).scores(torch.randn(2))


def test_tasks_have_a_metric_and_a_baseline() -> None:
    classes, values = classification(7), Regression(1, fusion=AuxiliaryLoss(1.0))
    assert (classes.num_outputs, classes.metric_name) == (7, "accuracy")
    assert (values.num_outputs, values.metric_name) == (1, "mse")
    metric = classes.metric()
    assert isinstance(metric, VideoAccuracy)
    assert metric is not classes.metric()
    assert (metric.num_classes, metric.name) == (7, classes.metric_name)
    assert isinstance(values.metric(), VideoMSE)
    assert values.metric().name == values.metric_name
    assert classes.baseline(torch.tensor([1, 1, 0]), [1, 0]) == 0.5
    assert values.baseline(torch.tensor([1.0, 3.0]), [2.0, 4.0]) == 2.0


def test_the_metric_accepts_the_scores() -> None:
    for task, target in (
        (classification(), torch.tensor([0, 1])),
        (Regression(1, fusion=AuxiliaryLoss(1.0)), torch.tensor([0.5, 1])),
    ):
        metric = task.metric()
        metric.update(task.scores(torch.randn(2, task.num_outputs)), target, torch.tensor([0, 1]))
        assert metric.compute().isfinite()

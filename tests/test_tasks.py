"""Losses, scores, class weights and floors of the tasks."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vtm.metrics import VideoAccuracy, VideoMSE
from vtm.tasks import Classification, MeanOutput, Regression, TwoLosses, balanced_weights


def classification(num_classes: int = 3, **options: Any) -> Classification:
    return Classification(
        num_classes, **{"label_smoothing": 0.0, "class_weights": None, "fusion": TwoLosses(1.0), **options}
    )


def test_the_loss_is_main_plus_weighted_aux() -> None:
    logits, aux, target = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    losses = classification(fusion=TwoLosses(0.3)).loss(logits, aux, target)
    main = -sum(float(logits[n].log_softmax(0)[target[n]]) for n in range(4)) / 4
    other = -sum(float(aux[n].log_softmax(0)[target[n]]) for n in range(4)) / 4
    assert float(losses["main"]) == pytest.approx(main, rel=1e-5)
    assert float(losses["aux"]) == pytest.approx(other, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(main + 0.3 * other, rel=1e-5)


def test_both_paths_may_predict_together() -> None:
    main, aux, target = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(4, 3, requires_grad=True),
        torch.arange(4) % 3,
    )
    losses = classification(fusion=MeanOutput()).loss(main, aux, target)
    assert float(losses["loss"]) == pytest.approx(float(F.cross_entropy((main + aux) / 2, target)))
    assert float(losses["main"]) == pytest.approx(float(F.cross_entropy(main, target)))
    losses["loss"].backward()
    assert torch.equal(main.grad, aux.grad)


@pytest.mark.parametrize("task", [classification(), Regression(1, fusion=TwoLosses(0.5))])
def test_without_the_auxiliary_path_the_loss_is_main(task: Classification | Regression) -> None:
    losses = task.loss(torch.randn(2, task.num_outputs), None, torch.tensor([0, 1]))
    assert set(losses) == {"loss", "main"}
    assert torch.equal(losses["loss"], losses["main"])


def test_regression_compares_numbers_with_numbers() -> None:
    logits, target = torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 4.0])
    losses = Regression(1, fusion=TwoLosses(0.5)).loss(logits, logits + 2, target)
    assert (float(losses["main"]), float(losses["aux"]), float(losses["loss"])) == (2.0, 2.0, 3.0)
    assert torch.equal(Regression(1, fusion=TwoLosses(0.5)).scores(logits), torch.tensor([1.0, 4.0]))


def test_scores_are_probabilities_in_full_precision() -> None:
    logits = torch.randn(5, 3).bfloat16()
    scores = classification().scores(logits)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, logits.float().softmax(1))


@pytest.mark.parametrize("task", [classification(label_smoothing=0.1), Regression(1, fusion=TwoLosses(0.5))])
def test_losses_of_half_precision_outputs_are_in_full_precision(task: Classification | Regression) -> None:
    logits = torch.randn(2, task.num_outputs).bfloat16()
    target = torch.tensor([0, 1])
    assert torch.equal(task.loss(logits, None, target)["loss"], task.loss(logits.float(), None, target)["loss"])


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_smoothed_and_weighted_losses_are_torchs(weights: list[float] | None) -> None:
    logits, target = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 0])
    task = classification(label_smoothing=0.2, class_weights=weights)
    tensor = None if weights is None else torch.tensor(weights)
    wanted = F.cross_entropy(logits, target, weight=tensor, label_smoothing=0.2)
    torch.testing.assert_close(task.loss(logits, None, target)["loss"], wanted)


def test_gradients_reach_both_paths() -> None:
    logits, aux = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    classification(fusion=TwoLosses(2.0)).loss(logits, aux, torch.tensor([0, 1]))["loss"].backward()
    torch.testing.assert_close(aux.grad, (aux.softmax(1) - torch.eye(3)[:2]).detach())  # twice the mean over two clips
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_balanced_weights_make_classes_count_the_same() -> None:
    classes = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(classes, 5)
    assert weights.tolist() == pytest.approx([10 / 30, 10 / 15, 0, 10 / 5, 0])
    assert (weights * classes.bincount(minlength=5)).tolist() == pytest.approx([2, 2, 0, 2, 0])


def test_balanced_weights_come_from_the_training_videos_and_travel_with_the_checkpoint() -> None:
    task = classification(4, class_weights="balanced")
    logits, target = torch.randn(4, 4), torch.tensor([0, 1, 1, 2])
    assert task.loss(logits, None, target)["loss"].isnan()  # rather than silently without weights
    task.fit_targets([0, 0, 0, 1, 2, 2])
    wanted = torch.tensor([6 / 12, 6 / 4, 6 / 8, 0.0])
    torch.testing.assert_close(task.state_dict()["class_weights"], wanted)
    torch.testing.assert_close(task.loss(logits, None, target)["loss"], F.cross_entropy(logits, target, weight=wanted))
    other = classification(4, class_weights="balanced")
    other.load_state_dict(task.state_dict())
    torch.testing.assert_close(other.loss(logits, None, target)["loss"], task.loss(logits, None, target)["loss"])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_batch_of_classes_without_weight_has_no_loss(label_smoothing: float) -> None:
    task = classification(3, class_weights="balanced", label_smoothing=label_smoothing)
    task.fit_targets([0, 1, 1])
    logits = torch.randn(2, 3, requires_grad=True)
    loss = task.loss(logits, None, torch.tensor([2, 2]))["loss"]
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_fixed_weights_stay_as_they_are() -> None:
    task = classification(3, class_weights=[1, 2, 0.5])
    task.fit_targets([0, 0, 1, 2])
    assert task.class_weights is not None
    assert task.class_weights.tolist() == [1, 2, 0.5]
    assert not list(classification().state_dict())


def test_training_targets_are_checked() -> None:
    task = classification(3)
    task.fit_targets(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"num_classes is 3, but training video 1 of 3 has class 5"):
        task.fit_targets([0, 5, 1])
    with pytest.raises(ValueError, match=r"training video 0 of 1 has class -1"):
        task.fit_targets([-1])
    with pytest.raises(ValueError, match=r"training video 1 of 2 has class 1\.5"):
        task.fit_targets([1, 1.5])
    for empty in (task, Regression(1, fusion=TwoLosses(1.0))):
        with pytest.raises(ValueError, match="the training split is empty"):
            empty.fit_targets([])
    Regression(1, fusion=TwoLosses(1.0)).fit_targets([-3.5, 2])
    with pytest.raises(ValueError, match="training video 1 of 2 has nan"):
        Regression(1, fusion=TwoLosses(1.0)).fit_targets([0.0, math.nan])


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
        Regression(1, fusion=TwoLosses(1.0)).scores(torch.randn(2))


def test_tasks_name_their_metric_and_floor() -> None:
    classes, values = classification(7), Regression(1, fusion=TwoLosses(1.0))
    assert (classes.num_outputs, classes.metric_name, classes.mode) == (7, "accuracy", "max")
    assert (values.num_outputs, values.metric_name, values.mode) == (1, "mse", "min")
    metric = classes.metric()
    assert isinstance(metric, VideoAccuracy)
    assert metric is not classes.metric()
    assert (metric.num_classes, metric.name) == (7, classes.metric_name)
    assert isinstance(values.metric(), VideoMSE)
    assert values.metric().name == values.metric_name
    assert classes.floor(torch.tensor([1, 1, 0]), [1, 0]) == 0.5
    assert values.floor(torch.tensor([1.0, 3.0]), [2.0, 4.0]) == 2.0


def test_scores_are_what_the_metric_takes() -> None:
    for task, target in (
        (classification(), torch.tensor([0, 1])),
        (Regression(1, fusion=TwoLosses(1.0)), torch.tensor([0.5, 1])),
    ):
        metric = task.metric()
        metric.update(task.scores(torch.randn(2, task.num_outputs)), target, torch.tensor([0, 1]))
        assert metric.compute().isfinite()

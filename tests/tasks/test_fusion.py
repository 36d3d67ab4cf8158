"""Tests of the combinations of both paths into one loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vtm.tasks.classification import Classification
from vtm.tasks.fusion import AuxiliaryLoss, AveragedLogits


def classification(num_classes: int = 3, **options: Any) -> Classification:
    return Classification(
        num_classes, **{"label_smoothing": 0.0, "class_weights": None, "fusion": AuxiliaryLoss(1.0), **options}
    )


def test_the_loss_is_main_plus_weighted_aux() -> None:
    logits, aux, target = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    losses = classification(fusion=AuxiliaryLoss(0.3)).loss(logits, aux, target)
    main = -sum(float(logits[n].log_softmax(0)[target[n]]) for n in range(4)) / 4
    other = -sum(float(aux[n].log_softmax(0)[target[n]]) for n in range(4)) / 4
    assert float(losses["main"]) == pytest.approx(main, rel=1e-5)
    assert float(losses["aux"]) == pytest.approx(other, rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(main + 0.3 * other, rel=1e-5)


def test_averaged_logits_have_one_loss() -> None:
    main, aux, target = (
        torch.randn(4, 3, requires_grad=True),
        torch.randn(4, 3, requires_grad=True),
        torch.arange(4) % 3,
    )
    losses = classification(fusion=AveragedLogits()).loss(main, aux, target)
    assert float(losses["loss"]) == pytest.approx(float(F.cross_entropy((main + aux) / 2, target)))
    assert float(losses["main"]) == pytest.approx(float(F.cross_entropy(main, target)))
    losses["loss"].backward()
    assert torch.equal(main.grad, aux.grad)


def test_gradients_reach_both_paths() -> None:
    logits, aux = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    classification(fusion=AuxiliaryLoss(2.0)).loss(logits, aux, torch.tensor([0, 1]))["loss"].backward()
    torch.testing.assert_close(aux.grad, (aux.softmax(1) - torch.eye(3)[:2]).detach())  # twice the mean over two clips
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0

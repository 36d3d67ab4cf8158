"""Single-label classification of videos: loss, scores, metric and baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vtm.tasks.fusion import Fusion
from vtm.tasks.task import Task, check_targets

if TYPE_CHECKING:
    from vtm.tasks.metric import VideoMetric


class Classification(Task):
    """The classification of a video into one of K classes, with the cross-entropy loss.

    Args:
        num_classes: K, number of classes.
        label_smoothing: share of the target probability spread evenly over all classes, in [0, 1].
        class_weights: weight of each class in the loss: None for equal weights; K numbers; or `balanced` for
            n / (K * count), where `count` of the n training videos belong to the class, and 0 if none do. The weights
            are part of the checkpoint. Balanced weights, and so the loss, are NaN until `fit_targets` is called or a
            checkpoint is loaded.
        fusion: combination of the losses of both paths.

    Raises:
        ValueError: if a value is out of range, or the number of weights is not K.
    """

    name = "classification"
    metric_name = "accuracy"
    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float,
        class_weights: Literal["balanced"] | Sequence[float] | None,
        fusion: Fusion,
    ) -> None:
        super().__init__(num_classes, fusion=fusion)
        if num_classes < 2:
            raise ValueError(
                f"task=classification: expected at least 2 classes, got {num_classes}; data with one value per video, "
                "as with data.regression=true, need task=regression"
            )
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"expected label_smoothing in [0, 1], got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.balanced = class_weights == "balanced"
        self.register_buffer("class_weights", _initial_weights(num_classes, class_weights))

    def metric(self) -> VideoMetric:
        from vtm.tasks.metric import VideoAccuracy

        return VideoAccuracy(self.num_outputs)

    def fit_targets(self, train_targets: Iterable[float]) -> None:
        classes = torch.as_tensor(list(train_targets))
        if not len(classes):
            raise ValueError("expected the classes of the training videos, got none: the training split is empty")
        wrong = ((classes < 0) | (classes >= self.num_outputs) | (classes != classes.long())).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"expected whole numbers from 0 to {self.num_outputs - 1} as classes, because num_classes is "
                f"{self.num_outputs}, but training video {first} of {len(classes)} has class "
                f"{classes[first].item():g}: correct num_classes or the annotations"
            )
        if self.balanced and self.class_weights is not None:
            self.class_weights.copy_(balanced_weights(classes.long(), self.num_outputs))

    def baseline(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        return majority_baseline(map(int, train_targets), map(int, targets))

    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        # the usual weighted mean, but 0 instead of NaN if all classes of the batch have weight 0
        weight = self.class_weights[target].sum()
        return total * torch.where(weight > 0, weight.clamp_min(torch.finfo(weight.dtype).tiny).reciprocal(), 0.0)

    @staticmethod
    def to_scores(logits: Tensor) -> Tensor:
        return logits.float().softmax(1)


def majority_baseline(train_targets: Iterable[int], targets: Iterable[int]) -> float:
    """Compute the accuracy of always predicting the most frequent class of the training videos.

    Ties go to the class with the lowest index.

    Raises:
        ValueError: if there are no training targets or no evaluated targets.

    >>> majority_baseline([0, 1, 1], [1, 0, 1, 2])
    0.5
    """
    train, test = Counter(map(int, train_targets)), Counter(map(int, targets))
    check_targets(train.total(), test.total())
    majority = min(train, key=lambda index: (-train[index], index))
    return test[majority] / test.total()


def balanced_weights(classes: Tensor, num_classes: int) -> Tensor:
    """Compute the weights n / (K * count) that give all classes the same total weight; 0 for a class without videos.

    Args:
        classes: (n,) int64, classes of the training videos.
        num_classes: K, number of classes.

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 3)
    tensor([0.4444, 1.3333, 0.0000])
    """
    counts = classes.bincount(minlength=num_classes)
    return torch.where(counts > 0, len(classes) / (num_classes * counts.clamp_min(1)), 0.0)


def _initial_weights(num_classes: int, weights: str | Sequence[float] | None) -> Tensor | None:
    if weights is None:
        return None
    if weights == "balanced":
        return torch.full((num_classes,), torch.nan)
    if isinstance(weights, str):
        raise ValueError(f"expected class_weights to be 'balanced', a list of numbers or null, got {weights!r}")
    if len(weights) != num_classes:
        raise ValueError(f"expected {num_classes} class_weights, one for each class, got {len(weights)}")
    values = torch.tensor([float(weight) for weight in weights])
    if not (values.isfinite() & (values >= 0)).all() or not values.any():
        raise ValueError(f"expected class_weights of at least 0, and one greater than 0, got {list(weights)}")
    return values

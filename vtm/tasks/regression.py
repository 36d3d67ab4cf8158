"""Regression of one value per video: loss, scores, metric and baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vtm.tasks.fusion import Fusion
from vtm.tasks.task import Task, check_targets

if TYPE_CHECKING:
    from vtm.tasks.metric import VideoMetric


class Regression(Task):
    """The prediction of one value per video on the scale of the targets, with the mean squared error as loss.

    Args:
        num_outputs: number of values per video; must be 1.
        fusion: combination of the losses of both paths.

    Raises:
        ValueError: if there are several outputs, because the data set has classes.
    """

    name = "regression"
    metric_name = "mse"

    def __init__(self, num_outputs: int, *, fusion: Fusion) -> None:
        super().__init__(num_outputs, fusion=fusion)
        if num_outputs != 1:
            raise ValueError(
                f"task=regression: expected data with one value per video, got {num_outputs} classes; "
                "use task=classification, or add data.regression=true if the labels of your videos are numbers"
            )

    def metric(self) -> VideoMetric:
        from vtm.tasks.metric import VideoMSE

        return VideoMSE()

    def fit_targets(self, train_targets: Iterable[float]) -> None:
        values = torch.as_tensor(list(train_targets), dtype=torch.float64)
        if not len(values):
            raise ValueError("expected the values of the training videos, got none: the training split is empty")
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"expected finite numbers as targets, but training video {first} of {len(values)} has "
                f"{values[first].item()}: correct the annotations"
            )

    def baseline(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        return mean_baseline(train_targets, targets)

    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(1), target.float())

    @staticmethod
    def to_scores(logits: Tensor) -> Tensor:
        return logits.float().squeeze(1)


def mean_baseline(train_targets: Iterable[float], targets: Iterable[float]) -> float:
    """Compute the mean squared error of always predicting the mean target of the training videos.

    Raises:
        ValueError: if there are no training targets or no evaluated targets.

    >>> mean_baseline([1.0, 3.0], [2.0, 4.0])
    2.0
    """
    train, test = list(map(float, train_targets)), list(map(float, targets))
    check_targets(len(train), len(test))
    mean = math.fsum(train) / len(train)
    return math.fsum((target - mean) ** 2 for target in test) / len(test)

"""What is learnt from a video: the loss of both paths, the scores, the metric and the floor to compare it with.

The task knows nothing of the network, and the network nothing of the task but how many outputs it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtm.metrics import VideoAccuracy, VideoMetric, VideoMSE, majority_floor, mean_floor

PathLoss = Callable[[Tensor, Tensor], Tensor]


class Fusion(Protocol):
    """Make one loss of the outputs (B, K) of the main and of the auxiliary path, and name its parts for the log."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class TwoLosses:
    """Let each path predict on its own, as in figure 6 of the VTM paper: main + weight * aux.

    Args:
        weight: What the loss of the auxiliary path counts, against 1 for the main path.
    """

    weight: float

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = {"main": path_loss(main, target), "aux": path_loss(aux, target)}
        return {"loss": losses["main"] + self.weight * losses["aux"], **losses}


@dataclass(frozen=True)
class MeanOutput:
    """Let both paths predict together: the loss of the mean of their outputs."""

    def __call__(self, path_loss: PathLoss, main: Tensor, aux: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": path_loss((main + aux) / 2, target), "main": path_loss(main.detach(), target)}


class Task(nn.Module, ABC):
    """Turn the outputs of the main and of the auxiliary path into a loss, and those of the main path into scores.

    Attributes:
        num_outputs: K, how many numbers the head puts out for a clip.
        name: Of the kind of task.
        metric_name: What the metric is called: the logged name is `val/<metric_name>`.
        mode: Whether a good metric is high or low.

    Args:
        num_outputs: As above.
        fusion: Makes one loss of both paths, such as `TwoLosses`.
    """

    name: str
    metric_name: str
    mode: Literal["max", "min"]

    def __init__(self, num_outputs: int, *, fusion: Fusion) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.fusion = fusion

    def loss(self, logits: Tensor, aux_logits: Tensor | None, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            logits: (B, K), of the main path.
            aux_logits: (B, K), of the auxiliary path; None where it does not run, as in evaluation.
            target: (B,).

        Returns:
            `loss`, and its parts for the log: `main` and what `fusion` adds where the auxiliary path runs.

        Raises:
            ValueError: A shape is not as above.
        """
        logits = self._checked(logits, len(target))
        if aux_logits is None:
            main = self._path_loss(logits, target)
            return {"loss": main, "main": main}
        return self.fusion(self._path_loss, logits, self._checked(aux_logits, len(target)), target)

    def scores(self, logits: Tensor) -> Tensor:
        """Turn the main path's outputs (B, K) into what `metric().update` takes and a clip's vote consists of.

        Raises:
            ValueError: There are not K outputs.
        """
        return self._path_scores(self._checked(logits, len(logits)))

    @abstractmethod
    def metric(self) -> VideoMetric:
        """Create the metric, anew for every stage."""

    @abstractmethod
    def fit_targets(self, train_targets: Iterable[float]) -> None:
        """Check the targets of the training videos, and learn from them what the loss needs. Once, before training.

        Raises:
            ValueError: There are none, or one of them is not what the task can predict.
        """

    @abstractmethod
    def floor(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        """Compute the metric, on the evaluated targets, of the best answer that looks at no video."""

    @abstractmethod
    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one path; logits (B, K) in fp32."""

    @abstractmethod
    def _path_scores(self, logits: Tensor) -> Tensor:
        """Return the scores; logits (B, K) in fp32."""

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        if logits.shape != (batch, self.num_outputs):
            raise ValueError(
                f"expected logits (B, K) = ({batch}, {self.num_outputs}) for {batch} targets and {self.num_outputs} "
                f"outputs of the task, got {tuple(logits.shape)}"
            )
        return logits.float()


class Classification(Task):
    """Tell which one of K classes a video belongs to, by cross entropy.

    Args:
        num_classes: K.
        label_smoothing: Share of the target's probability that is spread evenly over all classes, in [0, 1].
        class_weights: How much the videos of each class count in the loss: None, all the same; K numbers; or
            `balanced`, n / (K * count) for a class with `count` of the n training videos and 0 for one without any.
            The weights are part of the checkpoint. Balanced ones are NaN, and so is the loss, until `fit_targets` is
            called or a checkpoint is loaded.
        fusion: Makes one loss of both paths.

    Raises:
        ValueError: A value is out of its range, or there are not K weights.
    """

    name = "classification"
    metric_name = "accuracy"
    mode = "max"
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

    def metric(self) -> VideoAccuracy:
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

    def floor(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        return majority_floor(map(int, train_targets), map(int, targets))

    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is None:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        total = F.cross_entropy(
            logits, target, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        # the usual weighted mean, but 0 and not NaN for a batch that consists of classes without weight
        weight = self.class_weights[target].sum()
        return total * torch.where(weight > 0, weight.clamp_min(torch.finfo(weight.dtype).tiny).reciprocal(), 0.0)

    def _path_scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)


class Regression(Task):
    """Tell one number of a video, by mean squared error, on the scale of the targets.

    Args:
        num_outputs: 1, how many values a video has.
        fusion: Makes one loss of both paths.

    Raises:
        ValueError: The data set has several outputs, which means that it has classes.
    """

    name = "regression"
    metric_name = "mse"
    mode = "min"

    def __init__(self, num_outputs: int, *, fusion: Fusion) -> None:
        super().__init__(num_outputs, fusion=fusion)
        if num_outputs != 1:
            raise ValueError(
                f"task=regression: expected data with one value per video, got {num_outputs} classes; "
                "use task=classification, or data.regression=true too if the labels of your videos are numbers"
            )

    def metric(self) -> VideoMSE:
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

    def floor(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        return mean_floor(train_targets, targets)

    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(1), target.float())

    def _path_scores(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1)


def balanced_weights(classes: Tensor, num_classes: int) -> Tensor:
    """Compute n / (K * count) of each class, so that all classes count the same in total; 0 for a class without data.

    Args:
        classes: (n,) int64, of the training videos.
        num_classes: K.

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
        raise ValueError(f"expected class_weights of at least 0, and one above it, got {list(weights)}")
    return values

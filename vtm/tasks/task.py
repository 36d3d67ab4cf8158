"""The interface of a task: loss of both paths, scores, metric, and the baseline to compare with.

A task does not depend on the network; the network depends only on the number of outputs of the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vtm.tasks.fusion import Fusion

if TYPE_CHECKING:  # torchmetrics takes seconds to import, and prediction does not need it
    from vtm.tasks.metric import VideoMetric


class Task(nn.Module, ABC):
    """A kind of task: the loss, scores, metric and baseline for the outputs of a head.

    Args:
        num_outputs: K, number of outputs of the head for a clip.
        fusion: combination of the losses of both paths, such as `AuxiliaryLoss`.

    Attributes:
        num_outputs: K.
        name: name of the kind of task.
        metric_name: name of the metric, logged as `val/<metric_name>`.
    """

    name: str
    metric_name: str

    def __init__(self, num_outputs: int, *, fusion: Fusion) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.fusion = fusion

    def loss(self, logits: Tensor, aux_logits: Tensor | None, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            logits: outputs (B, K) of the main path.
            aux_logits: outputs (B, K) of the auxiliary path; None if it does not run, as in evaluation.
            target: (B,), class index or value.

        Returns:
            `loss` and its parts for the log: `main`, and the parts of `fusion` if the auxiliary path runs.

        Raises:
            ValueError: if a shape differs from the above.
        """
        logits = self._checked(logits, len(target))
        if aux_logits is None:
            main = self._path_loss(logits, target)
            return {"loss": main, "main": main}
        return self.fusion(self._path_loss, logits, self._checked(aux_logits, len(target)), target)

    def scores(self, logits: Tensor) -> Tensor:
        """Convert the outputs (B, K) of the main path to the scores of the clips, for `metric().update`.

        Raises:
            ValueError: if the number of outputs is not K.
        """
        return self.to_scores(self._checked(logits, len(logits)))

    @abstractmethod
    def metric(self) -> VideoMetric:
        """Create a new metric for one stage."""

    @abstractmethod
    def fit_targets(self, train_targets: Iterable[float]) -> None:
        """Check the targets of the training videos and compute from them what the loss needs; called before training.

        Raises:
            ValueError: if there are no targets, or the task cannot predict one of them.
        """

    @abstractmethod
    def baseline(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        """Compute the metric on `targets` of the best constant prediction for the training targets."""

    @abstractmethod
    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one path; logits (B, K) in fp32."""

    @staticmethod
    @abstractmethod
    def to_scores(logits: Tensor) -> Tensor:
        """Convert outputs (B, K) to scores in fp32: probabilities (B, K) or values (B,)."""

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        if logits.shape != (batch, self.num_outputs):
            raise ValueError(
                f"expected logits (B, K) = ({batch}, {self.num_outputs}) for {batch} targets and {self.num_outputs} "
                f"outputs of the task, got {tuple(logits.shape)}"
            )
        return logits.float()


def check_targets(train: int, test: int) -> None:
    """Raise a ValueError if there are no targets to train on or none to evaluate on."""
    if not train or not test:
        raise ValueError(f"expected targets to train on and to evaluate on, got {train} and {test}")


def ranked(labels: Sequence[str] | None, scores: Sequence[float]) -> list[tuple[str, float]]:
    """Pair scores with the names of their classes, best first.

    >>> ranked(["day", "night"], [0.2, 0.8]), ranked(None, [3.5])
    ([('night', 0.8), ('day', 0.2)], [('value', 3.5)])
    """
    if labels is None:
        return [("value", scores[0])]
    return sorted(zip(labels, scores, strict=True), key=lambda item: -item[1])

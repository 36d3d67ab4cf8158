"""What is learnt from a video: the loss of both paths, the scores, the metric and the floor to compare it with.

The task knows nothing of the network, and the network nothing of the task but how many outputs it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vtm.tasks.fusion import Fusion

if TYPE_CHECKING:  # which takes seconds to import, and prediction does without it
    from vtm.tasks.metric import VideoMetric


class Task(nn.Module, ABC):
    """Turn the outputs of the main and of the auxiliary path into a loss, and those of the main path into scores.

    Attributes:
        num_outputs: K, how many numbers the head puts out for a clip.
        name: Of the kind of task.
        metric_name: What the metric is called: the logged name is `val/<metric_name>`.

    Args:
        num_outputs: As above.
        fusion: Makes one loss of both paths, such as `AuxiliaryLoss`.
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
        return self.to_scores(self._checked(logits, len(logits)))

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
    def baseline(self, train_targets: Iterable[float], targets: Iterable[float]) -> float:
        """Compute the metric, on the evaluated targets, of the best answer that looks at no video."""

    @abstractmethod
    def _path_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one path; logits (B, K) in fp32."""

    @staticmethod
    @abstractmethod
    def to_scores(logits: Tensor) -> Tensor:
        """Turn outputs (B, K) of any kind of task into scores in fp32: (B, K) probabilities, or (B,) values."""

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        if logits.shape != (batch, self.num_outputs):
            raise ValueError(
                f"expected logits (B, K) = ({batch}, {self.num_outputs}) for {batch} targets and {self.num_outputs} "
                f"outputs of the task, got {tuple(logits.shape)}"
            )
        return logits.float()


def check_targets(train: int, test: int) -> None:
    """Raise a ValueError unless there are targets to train on and to evaluate on."""
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

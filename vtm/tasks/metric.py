"""Metrics of whole videos: accuracy and mean squared error, with their intervals.

The scores of the clips of a video are averaged, and each video counts once. The metrics store the scores of all clips
until they are computed, so the ranks of a distributed run may have different numbers of clips, or none.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vtm.tasks.intervals import bootstrap_interval, wilson_interval


class VideoMetric(Metric, ABC):
    """A metric of videos, computed from the scores of their clips."""

    is_differentiable = False
    full_state_update = False
    name: str
    scores: list[Tensor]
    target: list[Tensor]
    video: list[Tensor]
    damaged: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("scores", "target", "video", "damaged"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, target: Tensor, video: Tensor, damaged: Tensor | None = None) -> None:
        """Add the clips of one batch.

        Args:
            scores: probabilities (B, K) or predictions (B,) of the clips.
            target: (B,), class index or value, the same for all clips of a video.
            video: (B,) int64, index of the video of each clip in its split; clips with the same index are averaged.
            damaged: (B,) bool, whether unreadable frames of the clip were replaced; None for no damaged clips.

        Raises:
            ValueError: if a shape differs from the above.
            TypeError: if an index is not int64.
        """
        no_scores, no_target = self._no_clips()
        expected = (len(scores), *no_scores.shape[1:])
        if scores.shape != expected:
            raise ValueError(f"expected scores {expected}, got {tuple(scores.shape)}")
        for name, value, dtype in (("target", target, no_target.dtype), ("video", video, torch.int64)):
            if value.shape != expected[:1]:
                raise ValueError(f"expected {name} (B,) = {expected[:1]} like the scores, got {tuple(value.shape)}")
            if dtype == torch.int64 and value.dtype != dtype:
                raise TypeError(f"expected {name} as int64 indices, got {value.dtype}")
        self.scores.append(scores.detach().to(no_scores.dtype))
        self.target.append(target.detach().to(no_target.dtype))
        self.video.append(video.detach())
        self.damaged.append(torch.zeros_like(video, dtype=torch.bool) if damaged is None else damaged.detach())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the clips of all ranks."""
        if not self.video:
            # for a rank without clips, torchmetrics would gather a float vector, which does not match the other ranks
            no_scores, no_target = self._no_clips()
            self.scores.append(no_scores.to(self.device))
            self.target.append(no_target.to(self.device))
            self.video.append(torch.empty(0, dtype=torch.int64, device=self.device))
            self.damaged.append(torch.empty(0, dtype=torch.bool, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Compute the metric of the videos since the last reset.

        Raises:
            ValueError: if there are no clips, or the clips of a video have different targets.
        """
        means, targets, _ = average_clips(*self._clips())
        return self._values(means, targets).mean().to(self.device, torch.float32)

    def summary(self, *, clusters: Sequence[Hashable] | None = None) -> dict[str, Any]:
        """Summarize the metric in the format of `results.json`, identically on every rank; every rank must call it.

        Args:
            clusters: cluster of each video of the split, by its index. Videos of one cluster, such as several cameras
                of one performance, are dependent, and the interval takes that into account.

        Returns:
            `level`, `metric`, `value`, the 95 % `interval`, the number `n` of videos, their indices `videos` and
            averaged `scores`, the number of `damaged_videos`, further values of the metric, and `clip_level` with the
            `value` and the number `n` of clips.

        Raises:
            ValueError: as in `compute`, or if a video has no cluster.
        """
        with self.sync_context():
            scores, target, video = self._clips()
            damaged = dim_zero_cat(self.damaged).cpu()
        means, targets, videos = average_clips(scores, target, video)
        if clusters is not None and int(videos[-1]) >= len(clusters):
            raise ValueError(f"expected a cluster for each video up to {int(videos[-1])}, got {len(clusters)} clusters")
        values = self._values(means, targets)
        chosen = None if clusters is None else [clusters[index] for index in videos.tolist()]
        return {
            "level": "video",
            "metric": self.name,
            "value": values.mean().item(),
            "interval": list(self._interval(values, chosen)),
            "n": len(values),
            "videos": videos.tolist(),
            "scores": means.tolist(),
            "damaged_videos": len(set(video[damaged].tolist())),
            **self._details(values, targets),
            "clip_level": {"value": self._values(scores.double(), target).mean().item(), "n": len(scores)},
        }

    @abstractmethod
    def _no_clips(self) -> tuple[Tensor, Tensor]:
        """Return the scores and targets of an empty batch."""

    @abstractmethod
    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the score of each item, (n,) float64; the metric is their mean."""

    @abstractmethod
    def _interval(self, values: Tensor, clusters: Sequence[Hashable] | None) -> tuple[float, float]:
        """Return the 95 % interval of the mean of the values."""

    @abstractmethod
    def _details(self, values: Tensor, target: Tensor) -> dict[str, Any]:
        """Return further values for the summary."""

    def _clips(self) -> tuple[Tensor, Tensor, Tensor]:
        if not len(self.video) or not len(dim_zero_cat(self.video)):
            raise ValueError(f"expected clips to compute the {self.name}, got none: the evaluated split is empty")
        # on the CPU, where sums are in float64 and in the same order on every machine
        return dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.target).cpu(), dim_zero_cat(self.video).cpu()


class VideoAccuracy(VideoMetric):
    """The fraction of videos whose averaged probabilities are highest for the right class.

    Args:
        num_classes: K, number of classes.
    """

    name = "accuracy"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def _no_clips(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0, self.num_classes), torch.empty(0, dtype=torch.int64)

    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        wrong = target[(target < 0) | (target >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"expected classes in [0, {self.num_classes}), found class {int(wrong[0])} in the targets")
        # NaN scores are wrong, whatever class argmax returns for them
        return ((scores.argmax(1) == target) & ~scores.isnan().any(1)).double()

    def _interval(self, values: Tensor, clusters: Sequence[Hashable] | None) -> tuple[float, float]:
        if clusters is None:
            return wilson_interval(int(values.sum()), len(values))
        if bool((values == values[0]).all()):  # a bootstrap interval would have width 0
            count = len(set(clusters))
            return wilson_interval(count * int(values[0]), count)
        return bootstrap_interval(values, clusters=clusters)

    def _details(self, values: Tensor, target: Tensor) -> dict[str, Any]:
        recalls = [values[target == index].mean() for index in set(target.tolist())]
        return {"macro_accuracy": torch.stack(recalls).mean().item()}


class VideoMSE(VideoMetric):
    """The mean squared error of the averaged predictions of the videos."""

    name = "mse"

    def _no_clips(self) -> tuple[Tensor, Tensor]:
        return torch.empty(0), torch.empty(0)

    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        return (scores.double() - target.double()).square()

    def _interval(self, values: Tensor, clusters: Sequence[Hashable] | None) -> tuple[float, float]:
        return bootstrap_interval(values, clusters=clusters)

    def _details(self, values: Tensor, target: Tensor) -> dict[str, Any]:
        return {}


def average_clips(scores: Tensor, target: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average the scores of the clips of each video, on the CPU.

    Args:
        scores: (n, K) or (n,), scores of the clips.
        target: (n,), target of the video of each clip.
        video: (n,), index of the video of each clip.

    Returns:
        mean score in float64, target and index of each video, by ascending index.

    Raises:
        ValueError: if the clips of a video have different targets.

    >>> average_clips(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([7, 7, 3]))[0]
    tensor([0.9000, 0.3000], dtype=torch.float64)
    """
    videos = torch.tensor(sorted(set(video.tolist())))
    rank = torch.searchsorted(videos, video)  # of the video of each clip
    targets = torch.empty(len(videos), dtype=target.dtype).scatter_(0, rank, target)
    wrong = (target != targets[rank]).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"expected one target for all clips of a video, but video {int(video[first])} of the split has both "
            f"{target[first].item():g} and {targets[rank[first]].item():g}"
        )
    counts = rank.bincount().reshape(-1, *[1] * (scores.ndim - 1))
    sums = torch.zeros(len(videos), *scores.shape[1:], dtype=torch.float64)
    return sums.index_add_(0, rank, scores.double()) / counts, targets, videos

"""Scores of whole videos: the accuracy and the mean squared error, with their intervals.

A video is scored by a vote: the scores of its clips are averaged, and the video counts once. The metrics keep every
clip until they are asked, so the ranks of a distributed run may have seen different numbers of clips, or none.
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
    """Collect the scores of clips, and score the videos that they belong to."""

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
            scores: Of each clip, (B, K) probabilities or (B,) predictions.
            target: (B,) class index or value, the same for all clips of a video.
            video: (B,) index of the clip's video in its split; clips of the same index vote together.
            damaged: (B,) bool, whether something in the clip could not be read and is made up for; None: nowhere.

        Raises:
            ValueError: A shape is not as above.
            TypeError: An index is no int64.
        """
        no_scores, no_target = self._no_clips()
        wanted = (len(scores), *no_scores.shape[1:])
        if scores.shape != wanted:
            raise ValueError(f"expected scores {wanted}, got {tuple(scores.shape)}")
        for what, found, dtype in (("target", target, no_target.dtype), ("video", video, torch.int64)):
            if found.shape != wanted[:1]:
                raise ValueError(f"expected {what} (B,) = {wanted[:1]} to go with the scores, got {tuple(found.shape)}")
            if dtype == torch.int64 and found.dtype != dtype:
                raise TypeError(f"expected {what} as int64 indices, got {found.dtype}")
        self.scores.append(scores.detach().to(no_scores.dtype))
        self.target.append(target.detach().to(no_target.dtype))
        self.video.append(video.detach())
        self.damaged.append(torch.zeros_like(video, dtype=torch.bool) if damaged is None else damaged.detach())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the clips of all ranks."""
        if not self.video:
            # torchmetrics stands in for a rank without clips with a float vector, which does not gather with the rest
            no_scores, no_target = self._no_clips()
            self.scores.append(no_scores.to(self.device))
            self.target.append(no_target.to(self.device))
            self.video.append(torch.empty(0, dtype=torch.int64, device=self.device))
            self.damaged.append(torch.empty(0, dtype=torch.bool, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Score the videos seen since the last reset.

        Raises:
            ValueError: There are none, or the clips of a video disagree about its target.
        """
        votes, targets, _ = average_clips(*self._clips())
        return self._values(votes, targets).mean().to(self.device, torch.float32)

    def summary(self, *, clusters: Sequence[Hashable] | None = None) -> dict[str, Any]:
        """Describe the score the way `results.json` does. Every rank has to call it, and every rank gets the same.

        Args:
            clusters: What each video of the split belongs to, at the video's index. Videos of one cluster, such as the
                cameras of one performance, are not independent, and the interval takes that into account.

        Returns:
            `level`, `metric`, `value`, the 95 % `interval`, the number `n` of videos, their indices `videos` and
            averaged `scores`, how many are `damaged_videos`, what the metric adds, and `clip_level` with the `value`
            and the number `n` of clips.

        Raises:
            ValueError: As `compute`; or a video has no cluster.
        """
        with self.sync_context():
            scores, target, video = self._clips()
            damaged = dim_zero_cat(self.damaged).cpu()
        votes, targets, videos = average_clips(scores, target, video)
        if clusters is not None and int(videos[-1]) >= len(clusters):
            raise ValueError(f"expected a cluster for each video up to {int(videos[-1])}, got {len(clusters)} clusters")
        values = self._values(votes, targets)
        chosen = None if clusters is None else [clusters[index] for index in videos.tolist()]
        return {
            "level": "video",
            "metric": self.name,
            "value": values.mean().item(),
            "interval": list(self._interval(values, chosen)),
            "n": len(values),
            "videos": videos.tolist(),
            "scores": votes.tolist(),
            "damaged_videos": len(set(video[damaged].tolist())),
            **self._details(values, targets),
            "clip_level": {"value": self._values(scores.double(), target).mean().item(), "n": len(scores)},
        }

    @abstractmethod
    def _no_clips(self) -> tuple[Tensor, Tensor]:
        """Return the scores and targets of a batch without clips."""

    @abstractmethod
    def _values(self, scores: Tensor, target: Tensor) -> Tensor:
        """Score each item by itself, (n,) float64; the metric is their mean."""

    @abstractmethod
    def _interval(self, values: Tensor, clusters: Sequence[Hashable] | None) -> tuple[float, float]:
        """Return the 95 % interval of the mean of the values."""

    @abstractmethod
    def _details(self, values: Tensor, target: Tensor) -> dict[str, Any]:
        """Return what else there is to say about the values of the videos."""

    def _clips(self) -> tuple[Tensor, Tensor, Tensor]:
        if not len(self.video) or not len(dim_zero_cat(self.video)):
            raise ValueError(f"expected clips to compute the {self.name} of, got none: the evaluated split is empty")
        # on the CPU, because sums are in float64 and in a fixed order there on every machine
        return dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.target).cpu(), dim_zero_cat(self.video).cpu()


class VideoAccuracy(VideoMetric):
    """Compute the fraction of videos whose averaged probabilities are highest for the right class.

    Args:
        num_classes: K.
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
        # a model that has diverged is wrong, whatever class the largest of its NaNs has
        return ((scores.argmax(1) == target) & ~scores.isnan().any(1)).double()

    def _interval(self, values: Tensor, clusters: Sequence[Hashable] | None) -> tuple[float, float]:
        if clusters is None:
            return wilson_interval(int(values.sum()), len(values))
        if bool((values == values[0]).all()):  # of which a bootstrap would say that there is no doubt
            count = len(set(clusters))
            return wilson_interval(count * int(values[0]), count)
        return bootstrap_interval(values, clusters=clusters)

    def _details(self, values: Tensor, target: Tensor) -> dict[str, Any]:
        recalls = [values[target == index].mean() for index in set(target.tolist())]
        return {"macro_accuracy": torch.stack(recalls).mean().item()}


class VideoMSE(VideoMetric):
    """Compute the mean squared error of the averaged predictions of each video."""

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
        scores: (n, K) or (n,), of clips.
        target: (n,), of the clip's video.
        video: (n,) index of the clip's video.

    Returns:
        Per video and by ascending index: mean score in float64, target, index.

    Raises:
        ValueError: The clips of a video disagree about its target.

    >>> average_clips(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([7, 7, 3]))[0]
    tensor([0.9000, 0.3000], dtype=torch.float64)
    """
    videos = torch.tensor(sorted(set(video.tolist())))
    place = torch.searchsorted(videos, video)
    targets = torch.empty(len(videos), dtype=target.dtype).scatter_(0, place, target)
    odd = (target != targets[place]).nonzero()
    if len(odd):
        first = int(odd[0])
        raise ValueError(
            f"expected one target for all clips of a video, but video {int(video[first])} of the split has both "
            f"{target[first].item():g} and {targets[place[first]].item():g}"
        )
    counts = place.bincount().reshape(-1, *[1] * (scores.ndim - 1))
    sums = torch.zeros(len(videos), *scores.shape[1:], dtype=torch.float64)
    return sums.index_add_(0, place, scores.double()) / counts, targets, videos

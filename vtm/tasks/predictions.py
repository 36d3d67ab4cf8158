"""Predictions of the videos of a split, and which classes are confused with which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Predictions:
    """The predictions of one evaluation, one for each video.

    Attributes:
        ids: ids of the videos, in the order of the split.
        targets: class index, or value, of each video.
        scores: K probabilities, or the predicted value, of each video; averaged over its clips.
        class_names: names of the K classes; None for a regression.
        clusters: cluster of each video, such as its movie; None if the videos are independent.
    """

    ids: Sequence[str]
    targets: Sequence[float]
    scores: Sequence[Any]
    class_names: Sequence[str] | None
    clusters: Sequence[str] | None = None

    def classes(self) -> list[int | None]:
        """Return the most probable class of each video; None where a probability is NaN, which counts as wrong."""
        return [
            None if any(map(math.isnan, scores)) else max(range(len(scores)), key=scores.__getitem__)
            for scores in self.scores
        ]

    def confusion(self) -> list[list[int]]:
        """Count the videos (K, K) of each true class, by row, and each predicted class, by column."""
        size = len(self.class_names or ())
        counts = [[0] * size for _ in range(size)]
        for target, predicted in zip(self.targets, self.classes(), strict=True):
            if predicted is not None:
                counts[int(target)][predicted] += 1
        return counts

    def per_class(self) -> dict[str, dict[str, float | None]]:
        """Return the `accuracy` and the number `n` of videos of each class; an accuracy of None without videos.

        >>> scores = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
        >>> Predictions(["a", "b", "c"], [0, 1, 1], scores, ["day", "night"]).per_class()
        {'day': {'accuracy': 1.0, 'n': 1}, 'night': {'accuracy': 0.5, 'n': 2}}
        """
        targets, counts = [int(target) for target in self.targets], self.confusion()
        found: dict[str, dict[str, float | None]] = {}
        for index, name in enumerate(self.class_names or ()):
            n = targets.count(index)
            found[name] = {"accuracy": counts[index][index] / n if n else None, "n": n}
        return found

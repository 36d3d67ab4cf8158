"""Intervals of scores: Wilson's of a proportion, and the bootstrap of any mean."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def wilson_interval(correct: int, n: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion, which stays inside [0, 1] and right for few videos.

    Args:
        correct: Number of successes.
        n: Number of trials.
        z: Quantile of the normal distribution; the default gives 95 %.

    Raises:
        ValueError: There are no trials, or more successes than trials.

    >>> low, high = wilson_interval(27, 42)  # VTM on LVU's relationship task
    >>> print(f"{low:.3f} {high:.3f}")
    0.492 0.770
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"expected 0 <= correct <= n and n > 0, got correct = {correct} and n = {n}")
    share = correct / n
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z**2 / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def bootstrap_interval(
    values: Tensor, *, clusters: Sequence[Hashable] | None = None, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % percentile interval of a mean by drawing the values again, with replacement.

    Args:
        values: (n,), one per video.
        clusters: Of each value. Whole clusters are drawn, because the values of one cluster depend on each other.
        resamples: How often to draw; the ends of the interval are good to about 1 % of its width with the default.
        seed: Of the draws.

    Raises:
        ValueError: There are no values, or not one cluster for each.

    >>> low, high = bootstrap_interval(torch.tensor([0.0, 1.0]).repeat(50))
    >>> print(f"{low:.1f} {high:.1f}")
    0.4 0.6
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected values (n,) with n > 0, got {tuple(values.shape)}")
    if clusters is None:
        clusters = range(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"expected {len(values)} clusters, one for each value, got {len(clusters)}")
    number = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    place = torch.tensor([number[cluster] for cluster in clusters])
    sizes = place.bincount().double()
    sums = torch.zeros_like(sizes).index_add_(0, place, values.double().cpu())
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        drawn = torch.randint(len(sums), (len(sums),), generator=generator)
        means[index] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high

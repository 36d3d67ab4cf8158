"""Confidence intervals of scores: the Wilson interval of a proportion, and the bootstrap interval of a mean."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

_DRAWS = 1_000_000  # clusters that are drawn at a time, which bounds the memory


def wilson_interval(correct: int, n: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Compute the Wilson score interval of a proportion, which lies in [0, 1] and is accurate for few videos.

    Args:
        correct: number of successes.
        n: number of trials.
        z: quantile of the normal distribution; the default is for 95 %.

    Raises:
        ValueError: if there are no trials, or `correct` is not between 0 and n.

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
    """Compute the 95 % percentile bootstrap interval of a mean.

    Args:
        values: (n,), one value per video.
        clusters: cluster of each value; whole clusters are resampled, because the values of a cluster are dependent.
        resamples: number of resamples; with the default, the ends are accurate to about 1 % of the interval's width.
        seed: seed of the resampling.

    Raises:
        ValueError: if there are no values, or the number of clusters differs from the number of values.

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
    index_of = torch.tensor([number[cluster] for cluster in clusters])
    sizes = index_of.bincount().double()
    sums = torch.zeros_like(sizes).index_add_(0, index_of, values.double().cpu())
    generator = torch.Generator().manual_seed(seed)
    means = []
    for count in torch.arange(resamples).split(max(1, _DRAWS // len(sums))):  # the chunks do not change the draws
        drawn = torch.randint(len(sums), (len(count), len(sums)), generator=generator)
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high

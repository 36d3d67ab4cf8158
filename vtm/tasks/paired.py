"""Statistics of two runs that were evaluated on the same items: the paired bootstrap and McNemar's exact test."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from vtm.tasks.intervals import bootstrap_interval


class PairedDifference(NamedTuple):
    """The difference of two mean scores, with its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(first: Tensor, second: Tensor, *, clusters: Sequence[Hashable]) -> PairedDifference:
    """Compute mean(first) − mean(second) and its 95 % interval by the paired bootstrap.

    A resample draws whole clusters with replacement and takes both scores of all their items, so that what makes an
    item easy for both runs cancels out; the interval ends at the 2.5 % and 97.5 % percentiles of 10,000 differences.
    (Percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3; paired for two
    systems: Koehn, EMNLP 2004; whole clusters: Davison and Hinkley, Bootstrap Methods, 1997, section 3.8.)

    Args:
        first: scores (n,) of the items in the first run, such as 1 for right and 0 for wrong, or squared errors.
        second: scores (n,) of the same items in the second run.
        clusters: cluster of each item, such as its video; the items of a cluster are dependent.

    Raises:
        ValueError: if the shapes differ, there are no items, or an item has no cluster.

    >>> import torch
    >>> right = torch.ones(3)
    >>> paired_difference(right, right, clusters="abc")
    PairedDifference(value=0.0, low=0.0, high=0.0)
    """
    if first.shape != second.shape:
        raise ValueError(f"expected scores of the same items, got {tuple(first.shape)} and {tuple(second.shape)}")
    differences = first.double() - second.double()
    low, high = bootstrap_interval(differences, clusters=clusters)
    return PairedDifference(float(differences.mean()), low, high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test that two runs are right equally often.

    Under this hypothesis each of the n items that only one run has right belongs to either run with probability 1/2,
    so p = min(1, 2 P(X ≤ min(only_first, only_second))) with X ~ Binomial(n, 1/2); without such items, p = 1.
    (McNemar, Psychometrika 12, 1947; exact form: Agresti, Categorical Data Analysis, 2002, section 10.1.4.) It takes
    the items as independent.

    Args:
        only_first: number of items that only the first run has right.
        only_second: number of items that only the second run has right.

    Raises:
        ValueError: if a number is negative.

    >>> mcnemar(1, 5), mcnemar(3, 3)
    (0.21875, 1.0)
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"expected numbers of items, got {only_first} and {only_second}")
    n = only_first + only_second
    term = tail = 1  # binomial coefficients, exact whatever n is
    for k in range(min(only_first, only_second)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))

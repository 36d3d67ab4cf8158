"""The statistics of two runs on the same items: against slow loops, exact sums, and in a simulation."""

import math
import random
from fractions import Fraction

import pytest
import torch

from vtm.tasks.paired import mcnemar, paired_difference


def binomial_test(first: int, second: int) -> float:
    """Sum the probabilities of all outcomes that are at most as likely as the observed one."""
    n = first + second
    ways = [math.comb(n, k) for k in range(n + 1)]
    return float(Fraction(sum(count for count in ways if count <= ways[first]), 2**n))


def test_equal_runs_do_not_differ() -> None:
    right = torch.tensor([1.0, 0, 1, 1, 0])
    assert paired_difference(right, right, clusters="aabbc") == (0, 0, 0)
    assert mcnemar(0, 0) == 1


def test_the_difference_is_resampled_by_cluster_with_both_scores_together() -> None:
    first, second = torch.tensor([1.0, 1, 0, 1, 5]), torch.tensor([0.0, 1, 1, 1, 2])
    clusters = ["a", "b", "b", "c", "c"]
    generator = random.Random(0)
    members = {name: [i for i, other in enumerate(clusters) if other == name] for name in "abc"}
    found = []
    for _ in range(20_000):
        drawn = [i for _ in range(3) for i in members[generator.choice("abc")]]
        found.append(sum(float(first[i] - second[i]) for i in drawn) / len(drawn))
    found.sort()
    value, low, high = paired_difference(first, second, clusters=clusters)
    assert value == pytest.approx(3 / 5)
    assert (low, high) == pytest.approx((found[500], found[-500]), abs=1e-6)  # of few possible values
    assert (-value, -high, -low) == pytest.approx(paired_difference(second, first, clusters=clusters), abs=1e-6)


def test_what_makes_items_hard_for_both_cancels_out() -> None:
    hard = torch.arange(40.0)
    assert paired_difference(hard + 0.25, hard, clusters=range(40)) == (0.25, 0.25, 0.25)


def test_a_diverged_run_has_no_difference() -> None:
    found = paired_difference(torch.tensor([math.nan, 1.0]), torch.ones(2), clusters="ab")
    assert all(map(math.isnan, found))


def test_scores_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected scores of the same items, got \(2,\) and \(3,\)"):
        paired_difference(torch.ones(2), torch.ones(3), clusters="ab")
    with pytest.raises(ValueError, match="expected 2 clusters, one for each value, got 1"):
        paired_difference(torch.ones(2), torch.ones(2), clusters="a")


def test_the_interval_covers_the_true_difference_in_95_of_100_samples() -> None:
    """Three questions about each of 40 videos, which share how hard they are and which run finds them easier."""
    generator = torch.Generator().manual_seed(0)
    clusters = [video for video in range(40) for _ in range(3)]
    covered, samples = 0, 400
    for _ in range(samples):
        video = torch.rand(40, 1, 2, generator=generator).expand(40, 3, 2).reshape(-1, 2) - 0.5
        chance = 0.5 + torch.tensor([0.05, -0.05]) + 0.9 * video
        first, second = (torch.rand(120, 2, generator=generator) < chance).float().T
        _, low, high = paired_difference(first, second, clusters=clusters)
        covered += low <= 0.1 <= high
    assert 0.93 <= covered / samples <= 0.98  # 0.90 without clusters


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for first in range(12):
        for second in range(12):
            assert mcnemar(first, second) == pytest.approx(binomial_test(first, second), rel=1e-12)
    assert mcnemar(6, 0) == 2 / 64
    assert mcnemar(800, 720) == pytest.approx(binomial_test(800, 720), rel=1e-12)
    assert mcnemar(3000, 0) == 0  # less than the smallest number
    with pytest.raises(ValueError, match="expected numbers of items, got -1 and 2"):
        mcnemar(-1, 2)

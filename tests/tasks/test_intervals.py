"""Tests of the intervals, against values by hand and the normal approximation."""

import math

import pytest
import torch

from vtm.tasks.intervals import bootstrap_interval, wilson_interval


def test_wilson_by_hand() -> None:
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 10) == pytest.approx((0, z2 / (10 + z2)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1))
    assert wilson_interval(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    # the ends are the proportions p at a distance of z √(p(1 - p)/n) from the observed one
    for end in wilson_interval(27, 42):
        assert abs(27 / 42 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 42))
    low, high = wilson_interval(64, 100, z=1.0)
    assert (high - low) / 2 == pytest.approx(0.04777, abs=1e-4)
    for correct, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"got correct = {correct} and n = {n}"):
            wilson_interval(correct, n)


def test_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std(correction=0)) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)


def test_bootstrap_draws_whole_clusters() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 5.0])
    # draws from two clusters: twice the first, one of each, twice the second
    assert bootstrap_interval(values, clusters=["a", "a", "a", "b"]) == (1.0, 5.0)
    assert bootstrap_interval(values, clusters=["a"] * 4) == (2.0, 2.0)
    with pytest.raises(ValueError, match="expected 4 clusters, one for each value, got 3"):
        bootstrap_interval(values, clusters=["a"] * 3)
    with pytest.raises(ValueError, match=r"expected values \(n,\) with n > 0, got \(0,\)"):
        bootstrap_interval(values[:0])

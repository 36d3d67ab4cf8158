"""Reductions equal the loops in groups, order, sizes and values; random ones are uniform and reproducible."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.patching.loops import reduce_loops, tome_order
from vtm.merging import Grouping, Tokens, merge
from vtm.patching.reduction import (
    drop_random,
    drop_similar,
    merge_hybrid,
    merge_random,
    merge_similar,
    most_reduced,
)

HYBRID = partial(merge_hybrid, threshold=0.3)
ALL = [merge_similar, drop_similar, HYBRID, merge_random, drop_random]
MODES = {"merge": merge_similar, "drop": drop_similar, "hybrid": HYBRID}


def random_case(num_tokens: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys (2, N, 6), x (2, N, 5) and sizes (2, N), all in float64."""
    generator = torch.Generator().manual_seed(seed)
    keys, x = (torch.randn(2, num_tokens, c, generator=generator, dtype=torch.float64) for c in (6, 5))
    return keys, x, torch.randint(1, 9, (2, num_tokens), generator=generator).double()


def apply(x: Tensor, grouping: Grouping, size: Tensor) -> Tokens:
    tokens = Tokens.from_sequence(x)
    return merge(replace(tokens, size=size), grouping, weights=size)


def members(grouping: Grouping, row: int) -> list[list[int]]:
    return [(grouping.index[row] == group).nonzero().flatten().tolist() for group in range(grouping.num_groups)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 12, 13, 31])
def test_reductions_equal_the_loops(mode: str, protected: int, num_tokens: int) -> None:
    keys, x, size = random_case(num_tokens, seed=num_tokens)
    most = most_reduced(num_tokens, protected)
    for count in sorted({0, min(1, most), most // 2, most}):
        grouping, weights = MODES[mode](keys, size, count, protected=protected)
        reduced = apply(x, grouping, weights)
        assert grouping.num_groups == num_tokens - count
        for row in range(2):
            expected = reduce_loops(keys[row], x[row], size[row], count, mode=mode, protected=protected, threshold=0.3)
            assert members(grouping, row) == expected.members  # in the same order
            torch.testing.assert_close(reduced.x[row], expected.x)
            assert torch.equal(reduced.size[row] if count else weights[row], expected.size)


@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("num_tokens", [4, 5, 11, 18, 31])
def test_protected_tokens_in_front_leave_the_order_of_tome(protected: int, num_tokens: int) -> None:
    keys, _, size = random_case(num_tokens, seed=num_tokens + 1)
    for count in range(1, most_reduced(num_tokens, protected) + 1):
        grouping, _ = merge_similar(keys, size, count, protected=protected)
        for row in range(2):
            expected = tome_order(keys[row], count, cls=protected > 0, distilled=protected > 1)
            assert members(grouping, row) == expected


@pytest.mark.parametrize("reduce", ALL)
@pytest.mark.parametrize("protected", [0, 1, 4])
def test_every_group_has_its_anchor_and_protected_tokens_stay(reduce: Callable[..., tuple], protected: int) -> None:
    keys, _, size = random_case(23)
    grouping, _ = reduce(keys, size, 7, protected=protected)
    assert torch.equal(grouping.index.gather(1, grouping.anchor), torch.arange(16).expand(2, -1))
    assert torch.equal(grouping.index[:, :protected], torch.arange(protected).expand(2, -1))
    for row in range(2):
        assert all(len(group) == 1 for group in members(grouping, row)[:protected])


@pytest.mark.parametrize("reduce", [merge_similar, merge_random])
def test_merging_keeps_the_sum_of_the_sizes(reduce: Callable[..., tuple]) -> None:
    keys, x, size = random_case(30)
    grouping, weights = reduce(keys, size, 12)
    assert torch.equal(apply(x, grouping, weights).size.sum(1), size.sum(1))


@pytest.mark.parametrize("reduce", [drop_similar, drop_random])
def test_dropping_leaves_the_remaining_tokens_as_they_were(reduce: Callable[..., tuple]) -> None:
    keys, x, _ = random_case(30)
    ones = torch.ones(2, 30, dtype=torch.float64)
    grouping, weights = reduce(keys, ones, 12, protected=1)
    left = apply(x, grouping, weights)
    assert torch.equal(left.size, ones[:, :18])
    torch.testing.assert_close(left.x, x.gather(1, grouping.anchor[..., None].expand(-1, -1, 5)), rtol=0, atol=0)


@pytest.mark.parametrize("reduce", [merge_random, drop_random])
def test_random_reductions_are_reproducible_and_uniform(reduce: Callable[..., tuple]) -> None:
    keys, _, size = random_case(10)
    first, again, other = (
        reduce(keys, size, 2, protected=1, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)
    generator = torch.Generator().manual_seed(0)
    taken, partners = Counter[int](), Counter[int]()
    many = keys.new_zeros(2000, 10, 1)
    grouping, _ = reduce(many, size.new_ones(2000, 10), 2, protected=1, generator=generator)
    for row in range(2000):
        for anchor, group in zip(grouping.anchor[row].tolist(), members(grouping, row), strict=True):
            taken.update(set(group) - {anchor})
            partners.update([anchor] * (len(group) - 1))
    assert set(taken) == {2, 4, 6, 8}
    assert set(partners) == {1, 3, 5, 7, 9}
    assert all(900 < count < 1100 for count in taken.values())  # of 4,000 draws, a quarter each
    assert all(700 < count < 900 for count in partners.values())  # a fifth each


def test_hybrid_equals_merging_below_every_similarity_and_replaces_above_every_one() -> None:
    keys, _, size = random_case(31)
    merged, weights = merge_similar(keys, size, 9)
    same = merge_hybrid(keys, size, 9, threshold=-2.0)
    assert torch.equal(same[0].index, merged.index)
    assert torch.equal(same[1], weights)
    grouping, weights = merge_hybrid(keys, size, 9, threshold=2.0)
    for row in range(2):
        for group in members(grouping, row):
            target = [n for n in group if n % 2 == 1]
            assert [float(weights[row, n]) == 0.0 for n in target] == [len(group) > 1] * len(target)


@pytest.mark.parametrize("reduce", ALL)
@pytest.mark.parametrize(("count", "protected"), [(-1, 0), (7, 0), (7, 1), (1, 12)])
def test_a_count_outside_the_range_is_an_error(reduce: Callable[..., tuple], count: int, protected: int) -> None:
    keys, _, size = random_case(13)
    with pytest.raises(ValueError, match=rf"expected count between 0 and \d, half of the \d+ tokens .* got {count}"):
        reduce(keys, size, count, protected=protected)


def test_shapes_that_do_not_match_are_errors() -> None:
    keys, _, size = random_case(13)
    with pytest.raises(ValueError, match=r"keys \(B, N, D\) and size \(B, N\), got \(2, 13, 6\) and \(2, 12\)"):
        merge_similar(keys, size[:, 1:], 2)


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e25])
def test_keys_of_any_scale_are_reduced(scale: float) -> None:
    keys, _, size = random_case(13)
    grouping, _ = merge_similar(keys.float() * scale, size, 6)
    if scale:
        assert torch.equal(grouping.index, merge_similar(keys, size, 6)[0].index)
    assert grouping.num_groups == 7


@pytest.mark.parametrize("reduce", [merge_similar, drop_similar, HYBRID])
def test_reductions_compile_to_one_graph_and_are_exported(reduce: Callable[..., tuple]) -> None:
    class Reduce(torch.nn.Module):
        def forward(self, keys: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
            grouping, weights = reduce(keys, size, 5, protected=1)
            return grouping.index, weights

    keys, _, size = random_case(20)
    expected = Reduce()(keys, size)
    program = torch.export.export(Reduce(), (keys, size))
    for result in (program.module()(keys, size), torch.compile(Reduce(), fullgraph=True, backend="eager")(keys, size)):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    assert "aten.sort.stable" not in str(program.run_decompositions().graph)

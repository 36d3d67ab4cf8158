"""Tests of bipartite matching: equal to the loops of tests/reference.py, zero keys, masks, half precision, errors."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import reference
from vtm.merging import Grouping, match_bipartite, matching


def random_case(num_tokens: int, num_targets: int, *, seed: int, channels: int = 8) -> tuple[Tensor, Tensor]:
    """Return keys (3, N, D) in float64 and targets (3, M), different in each clip."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(3, num_tokens, channels, generator=generator, dtype=torch.float64)
    order = torch.rand(3, num_tokens, generator=generator).argsort(dim=1)
    return keys, order[:, :num_targets].sort(dim=1).values


def assert_same(grouping: Grouping, groups: reference.Groups) -> None:
    assert grouping.num_groups == groups.num_groups
    assert grouping.index.dtype == grouping.anchor.dtype == torch.int64
    assert torch.equal(grouping.index, groups.index)
    assert torch.equal(grouping.anchor, groups.anchor)


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 12, 13, 31])
@pytest.mark.parametrize("partition_factor", [1, 2, 6, 40])
def test_groups_equal_the_loops(num_tokens: int, partition_factor: int) -> None:
    num_targets = -(-num_tokens // partition_factor)
    num_sources = num_tokens - num_targets
    keys, targets = random_case(num_tokens, num_targets, seed=num_tokens)
    for merge_count in sorted({0, 1, num_sources // 2, int(0.8 * num_sources), num_sources}):
        if merge_count <= num_sources:
            grouping = match_bipartite(keys, targets, merge_count)
            assert_same(grouping, reference.match_loops(keys, targets, merge_count))


@pytest.mark.parametrize("merge_count", [0, 7, 20])
def test_every_group_has_its_anchor_and_anchors_ascend(merge_count: int) -> None:
    keys, targets = random_case(31, 11, seed=0)
    grouping = match_bipartite(keys, targets, merge_count)
    assert grouping.num_groups == 31 - merge_count
    assert grouping.index.shape == (3, 31)
    assert grouping.anchor.shape == (3, 31 - merge_count)
    assert (grouping.anchor.diff(dim=1) > 0).all()
    assert torch.equal(grouping.index.gather(1, grouping.anchor), torch.arange(31 - merge_count).expand(3, -1))


def test_merge_count_zero_leaves_every_token_unmerged() -> None:
    keys, targets = random_case(13, 5, seed=0)
    grouping = match_bipartite(keys, targets, 0)
    alone = torch.arange(13).expand(3, -1)
    assert torch.equal(grouping.index, alone)
    assert torch.equal(grouping.anchor, alone)


def test_merging_every_source_leaves_the_targets() -> None:
    keys, targets = random_case(13, 5, seed=0)
    grouping = match_bipartite(keys, targets, 8)
    assert grouping.num_groups == 5
    assert torch.equal(grouping.anchor, targets)


def test_one_target_takes_every_merged_source() -> None:
    keys, targets = random_case(12, 1, seed=0)
    grouping = match_bipartite(keys, targets, 11)
    assert torch.equal(grouping.index, torch.zeros(3, 12, dtype=torch.int64))
    assert torch.equal(grouping.anchor, targets)


def test_the_norm_of_keys_does_not_matter() -> None:
    keys, targets = random_case(31, 6, seed=1)
    lengths = 10 ** (4 * torch.rand(3, 31, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2)
    assert_same(match_bipartite(keys * lengths, targets, 20), reference.match_loops(keys, targets, 20))


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("compiled", [False, True])
def test_very_small_and_large_float32_keys_match_like_moderate_ones(
    scale: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    keys, targets = random_case(31, 6, seed=1)
    expected = reference.match_loops(keys, targets, 20)
    assert_same(match_bipartite(keys.float() * scale, targets, 20), expected)
    some = torch.arange(31)[:, None] % 3 == 0
    assert_same(match_bipartite(torch.where(some, keys.float() * scale, keys.float()), targets, 20), expected)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_very_small_and_large_float64_keys_match_like_moderate_ones(scale: float) -> None:
    keys, targets = random_case(31, 6, seed=1)
    assert_same(match_bipartite(keys * scale, targets, 20), reference.match_loops(keys, targets, 20))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole", [False, True])
def test_a_target_whose_key_is_not_finite_attracts_nothing(garbage: float, dtype: torch.dtype, whole: bool) -> None:
    keys, targets = random_case(31, 6, seed=9)
    keys, bad = keys.to(dtype), targets[:, [0, 3]]  # (3, 2)
    broken = keys.clone()
    broken.scatter_(1, bad[..., None].expand(-1, -1, 8 if whole else 1), garbage)
    grouping = match_bipartite(broken, targets, 20)
    expected = reference.match_loops(keys, targets[:, [1, 2, 4, 5]], 20)  # the two targets are sources here
    for b in range(3):
        groups = grouping.index[b]
        assert all((groups == groups[token]).sum() == 1 for token in bad[b])
        sources = [n for n in range(31) if n not in targets[b]]
        merged = [n for n in sources if n not in grouping.anchor[b]]
        assert len(merged) == 20
        others = [n for n in merged if n not in expected.anchor[b]]
        assert all(grouping.anchor[b, groups[n]] == expected.anchor[b, expected.index[b, n]] for n in others)
        assert len(others) >= 18


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
def test_a_source_whose_key_is_not_finite_is_merged_last(garbage: float) -> None:
    keys, targets = random_case(31, 6, seed=10)
    source = next(n for n in range(31) if n not in targets)
    keys[:, source, 2] = garbage
    for merge_count in (1, 12, 22):
        alone = match_bipartite(keys, targets, merge_count)
        assert all(source in row for b, row in enumerate(alone.anchor.tolist()) if source not in targets[b])
    assert match_bipartite(keys, targets, 25).num_groups == 6


def test_matching_works_on_tensors_without_values() -> None:
    keys, targets = random_case(12, 3, seed=0)
    expected = match_bipartite(keys, targets, 5)
    matched = torch.vmap(lambda keys, targets: match_bipartite(keys[None], targets[None], 5).index[0])(keys, targets)
    assert torch.equal(matched, expected.index)
    with FakeTensorMode() as mode:
        fake = match_bipartite(mode.from_tensor(keys), mode.from_tensor(targets), 5)
    assert fake.index.shape == (3, 12)


def test_keys_that_are_all_not_finite_still_merge() -> None:
    grouping = match_bipartite(torch.full((2, 6, 4), torch.nan), torch.tensor([[0, 3], [1, 2]]), 4)
    assert all(set(row) == {0, 1} for row in grouping.index.tolist())


def test_a_clip_is_matched_as_if_alone() -> None:
    keys, targets = random_case(31, 6, seed=2)
    together = match_bipartite(keys, targets, 20)
    for b in range(3):
        alone = match_bipartite(keys[b : b + 1], targets[b : b + 1], 20)
        assert torch.equal(alone.index[0], together.index[b])
        assert torch.equal(alone.anchor[0], together.anchor[b])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_key_is_similar_to_nothing(dtype: torch.dtype) -> None:
    # Token 0 is the target; the others have similarity 1, 0 (the zero key), -1 and 0.6 to it.
    keys = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.6, 0.8]]], dtype=dtype)
    targets = torch.tensor([[0]])
    assert match_bipartite(keys, targets, 2).anchor.tolist() == [[0, 2, 3]]
    assert match_bipartite(keys, targets, 3).anchor.tolist() == [[0, 3]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_target_is_chosen_only_before_opposite_ones(dtype: torch.dtype) -> None:
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.6, 0.8], [-1.0, 0.1]]], dtype=dtype)
    grouping = match_bipartite(keys, torch.tensor([[0, 1]]), 2)
    assert grouping.index.tolist() == [[0, 1, 1, 0]]


def test_zero_keys_alone_still_merge() -> None:
    grouping = match_bipartite(torch.zeros(2, 6, 4), torch.tensor([[0, 3], [1, 2]]), 3)
    assert grouping.num_groups == 3
    assert all(set(row) == {0, 1, 2} for row in grouping.index.tolist())


@pytest.mark.parametrize("merge_count", [0, 3, 9, 15, 20, 25])
def test_masked_sources_are_merged_first(merge_count: int) -> None:
    keys, _ = random_case(31, 6, seed=3)
    mask = torch.rand(3, 31, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0] = True
    targets = torch.stack([row.nonzero().flatten()[:6] for row in mask])
    keys[~mask] = torch.nan
    grouping = match_bipartite(keys, targets, merge_count, mask=mask)
    groups = reference.match_loops(keys, targets, merge_count, mask=mask)
    assert grouping.num_groups == 31 - merge_count
    assert (grouping.anchor.diff(dim=1) > 0).all()
    for b in range(3):
        lone = {n for n in grouping.anchor[b].tolist() if mask[b, n]}
        assert lone == {n for n in groups.anchor[b].tolist() if mask[b, n]}
        merged_real = int(mask[b].sum()) - len(lone)
        assert merged_real == max(0, merge_count - int((~mask[b]).sum()))
        for n in mask[b].nonzero().flatten().tolist():
            assert grouping.anchor[b, grouping.index[b, n]] == groups.anchor[b, groups.index[b, n]]


@pytest.mark.parametrize("merge_count", [0, 5, 20])
def test_masked_keys_change_no_group(merge_count: int) -> None:
    keys, targets = random_case(31, 8, seed=4)
    mask = torch.rand(3, 31, generator=torch.Generator().manual_seed(1)) < 0.6
    found = []
    for garbage in (0.0, 1.0, -1e30, torch.inf, torch.nan):
        found.append(match_bipartite(keys.masked_fill(~mask[..., None], garbage), targets, merge_count, mask=mask))
        assert_same(found[-1], reference.Groups(found[0].index, found[0].num_groups, found[0].anchor))
        assert torch.equal(found[-1].index.gather(1, found[-1].anchor), torch.arange(31 - merge_count).expand(3, -1))


def test_a_mask_of_real_tokens_changes_nothing() -> None:
    keys, targets = random_case(31, 6, seed=5)
    masked = match_bipartite(keys, targets, 20, mask=torch.ones(3, 31, dtype=torch.bool))
    assert_same(masked, reference.match_loops(keys, targets, 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [4, 64])
def test_half_precision_matches_like_its_float32_copy(dtype: torch.dtype, channels: int) -> None:
    for seed in range(5):
        keys, targets = random_case(60, 10, seed=seed, channels=channels)
        keys = keys.to(dtype)
        for merge_count in (25, 50):
            grouping = match_bipartite(keys, targets, merge_count)
            assert_same(grouping, reference.match_loops(keys, targets, merge_count))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_does_not_round_similarities(dtype: torch.dtype) -> None:
    keys, targets = random_case(200, 34, seed=0, channels=64)
    keys = keys.to(dtype)
    expected = match_bipartite(keys.float(), targets, 130)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grouping = match_bipartite(keys, targets, 130)
    assert torch.equal(grouping.index, expected.index)


def test_long_float16_keys_do_not_overflow() -> None:
    keys, targets = random_case(31, 6, seed=6, channels=64)
    keys = (keys * 10_000).clamp(-60_000, 60_000).half()
    assert_same(match_bipartite(keys, targets, 20), reference.match_loops(keys, targets, 20))


def test_ties_are_broken_the_same_way_every_time() -> None:
    keys = torch.randint(-1, 2, (3, 60, 3), generator=torch.Generator().manual_seed(0)).float()
    targets = random_case(60, 20, seed=7)[1]
    first, second = (match_bipartite(keys, targets, 17) for _ in range(2))
    assert torch.equal(first.index, second.index)
    assert (first.anchor.diff(dim=1) > 0).all()


def test_keys_that_need_gradients_give_a_plain_grouping() -> None:
    keys, targets = random_case(12, 3, seed=8)
    grouping = match_bipartite(keys.requires_grad_(), targets, 5)
    assert not grouping.index.requires_grad
    assert_same(grouping, reference.match_loops(keys.detach(), targets, 5))


@pytest.mark.parametrize("merge_count", [8, -1])
def test_merge_count_outside_the_sources_is_an_error_that_prints_both(merge_count: int) -> None:
    keys, targets = random_case(12, 5, seed=0)
    with pytest.raises(ValueError, match=rf"{merge_count}") as error:
        match_bipartite(keys, targets, merge_count)
    assert "7" in str(error.value)


def test_shapes_that_do_not_match_are_errors_that_print_both() -> None:
    keys, targets = random_case(12, 5, seed=0)
    with pytest.raises(ValueError, match="targets") as error:
        match_bipartite(keys, targets[:2], 3)
    assert "(2, 5)" in str(error.value)
    assert "(3, 12, 8)" in str(error.value) or "(3, M" in str(error.value)
    with pytest.raises(ValueError, match="keys") as error:
        match_bipartite(keys[0], targets, 3)
    assert "(12, 8)" in str(error.value)
    with pytest.raises(ValueError, match="mask") as error:
        match_bipartite(keys, targets, 3, mask=torch.ones(3, 11, dtype=torch.bool))
    assert "(3, 12)" in str(error.value)
    assert "(3, 11)" in str(error.value)


@pytest.mark.parametrize("products_at_once", [1, 7, 6 * 31, 2 * 6 * 31, 10**6])
@pytest.mark.parametrize("masked", [False, True])
def test_matching_in_parts_equals_matching_in_one_part(
    products_at_once: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "PRODUCTS_AT_ONCE", products_at_once)
    keys, targets = random_case(31, 6, seed=3)
    mask = torch.arange(31).expand(3, -1) < torch.tensor([[31], [20], [9]]) if masked else None
    assert_same(match_bipartite(keys, targets, 20, mask=mask), reference.match_loops(keys, targets, 20, mask=mask))


@pytest.mark.parametrize(("products_at_once", "largest"), [(1, 6), (50, 48), (6 * 31 + 5, 6 * 31), (400, 2 * 6 * 31)])
def test_matching_in_parts_respects_its_memory_limit(
    products_at_once: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Products(TorchDispatchMode):
        sizes: ClassVar[list[int]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.bmm.default:
                self.sizes.append(out.numel())
            return out

    monkeypatch.setattr(matching, "PRODUCTS_AT_ONCE", products_at_once)
    keys, targets = random_case(31, 6, seed=4)
    with Products() as products:
        match_bipartite(keys, targets, 20)
    assert max(products.sizes) == largest
    assert sum(products.sizes) == 3 * 31 * 6

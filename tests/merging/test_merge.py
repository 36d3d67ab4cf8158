"""Tests of merge, unmerge and compose: equal to the loops of tests/reference.py, masks, gradients, half precision."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests import reference
from vtm.merging import Grouping, Tokens, compose, merge, motion_weights, saliency_weights, size_weights, unmerge

HALF = [torch.bfloat16, torch.float16]


def random_groups(num_tokens: int, merge_count: int, *, batch: int = 2, seed: int = 0) -> reference.Groups:
    """Assign `merge_count` random tokens of each clip to random other tokens."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, num_tokens, generator=generator).argsort(dim=1)
    anchor = order[:, merge_count:].sort(dim=1).values
    index = torch.randint(num_tokens - merge_count, (batch, num_tokens), generator=generator)
    index.scatter_(1, anchor, torch.arange(num_tokens - merge_count).expand(batch, -1))
    return reference.Groups(index, num_tokens - merge_count, anchor)


def cast(tokens: reference.LoopTokens, dtype: torch.dtype) -> reference.LoopTokens:
    return reference.LoopTokens(*(v.to(dtype) if v is not None and v.is_floating_point() else v for v in tokens))


def make_weights(kind: str, tokens: reference.LoopTokens) -> tuple[Tensor | None, Tensor | None]:
    """Return the weights for the package and for the loops."""
    given = Tokens(*tokens)
    if kind == "size":
        return size_weights(given), reference.size_weights_loops(tokens)
    if kind == "motion":
        return motion_weights(given), reference.motion_weights_loops(tokens)
    if kind == "saliency":
        return saliency_weights(given, beta=3.0), reference.saliency_weights_loops(tokens, beta=3.0)
    return None, None


def assert_close(found: Tokens, expected: reference.LoopTokens, *, real_only: bool = False) -> None:
    assert torch.equal(found.position, expected.position)
    assert (found.mask is None) == (expected.mask is None)
    if found.mask is not None and expected.mask is not None:
        assert torch.equal(found.mask, expected.mask)
    for name in ("x", "size", "motion", "saliency"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            if real_only:
                ours, theirs = ours[expected.mask], theirs[expected.mask]
            torch.testing.assert_close(
                ours, theirs, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("kind", ["plain", "size", "motion", "saliency"])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 12, 13, 31])
def test_merged_tokens_equal_the_loops(kind: str, num_tokens: int) -> None:
    tokens = reference.random_tokens(2, num_tokens, seed=num_tokens)
    weights, loop_weights = make_weights(kind, tokens)
    for merge_count in sorted({0, num_tokens // 2, num_tokens - 1}):
        groups = random_groups(num_tokens, merge_count, seed=num_tokens)
        merged = merge(Tokens(*tokens), Grouping(*groups), weights=weights)
        assert merged.x.dtype == torch.float64
        assert_close(merged, reference.merge_loops(tokens, groups, weights=loop_weights))


@pytest.mark.parametrize("kind", ["plain", "size", "motion", "saliency"])
@pytest.mark.parametrize("real_fraction", [0.0, 0.2, 0.7, 1.0])
def test_masked_tokens_have_no_weight(kind: str, real_fraction: float) -> None:
    tokens = reference.random_tokens(3, 31, seed=0, real_fraction=real_fraction)
    weights, loop_weights = make_weights(kind, tokens)
    for merge_count in (0, 11, 25, 30):
        groups = random_groups(31, merge_count, batch=3, seed=merge_count)
        merged = merge(Tokens(*tokens), Grouping(*groups), weights=weights)
        expected = reference.merge_loops(tokens, groups, weights=loop_weights)
        assert_close(merged, expected, real_only=True)
        assert not merged.x[expected.mask].isnan().any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("kind", ["plain", "size", "motion", "saliency"])
def test_merge_count_zero_is_the_bit_identical_identity(kind: str, dtype: torch.dtype, masked: bool) -> None:
    tokens = reference.random_tokens(2, 31, seed=0, real_fraction=0.5 if masked else None, garbage=7.0)
    tokens = cast(tokens, dtype)
    weights, _ = make_weights(kind, tokens)
    merged = merge(Tokens(*tokens), Grouping(*random_groups(31, 0)), weights=weights)
    for name, before in tokens._asdict().items():
        after = getattr(merged, name)
        assert (after is None) == (before is None), name
        if before is not None:
            assert after.dtype == before.dtype, name
            assert torch.equal(after, before), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("kind", ["plain", "size", "motion", "saliency"])
def test_an_unmerged_token_is_bit_identical(kind: str, dtype: torch.dtype) -> None:
    tokens = cast(reference.random_tokens(2, 31, seed=0), dtype)
    groups = random_groups(31, 11)
    merged = merge(Tokens(*tokens), Grouping(*groups), weights=make_weights(kind, tokens)[0])
    counts = torch.zeros(2, 20).scatter_add(1, groups.index, torch.ones(2, 31))
    assert (counts == 1).any()
    for name in ("x", "size", "position", "motion", "saliency"):
        before, after = getattr(tokens, name), getattr(merged, name)
        chosen = torch.stack([before[b, row] for b, row in enumerate(groups.anchor)])
        assert torch.equal(after[counts == 1], chosen[counts == 1]), name


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("real_fraction", [None, 0.5])
def test_a_maximum_is_that_of_the_real_tokens_and_all_else_is_as_in_a_mean(
    dtype: torch.dtype, real_fraction: float | None
) -> None:
    loops = cast(reference.random_tokens(2, 13, seed=1, real_fraction=real_fraction), dtype)
    grouping, tokens = Grouping(*random_groups(13, 8)), Tokens(*loops)
    found, mean = (
        merge(tokens, grouping, weights=tokens.size, reduce="max"),
        merge(tokens, grouping, weights=tokens.size),
    )
    for row in range(2):
        for group in range(5):
            real = grouping.index[row] == group
            real = real if tokens.mask is None else real & tokens.mask[row]
            expected = tokens.x[row, real].amax(0) if real.any() else torch.zeros(8, dtype=dtype)
            assert torch.equal(found.x[row, group], expected)
    for name in ("size", "position", "motion", "saliency"):
        assert torch.equal(getattr(found, name), getattr(mean, name))
    with pytest.raises(ValueError, match="expected reduce to be mean or max, got 'sum'"):
        merge(tokens, grouping, reduce="sum")


def test_the_gradient_of_a_maximum_goes_to_the_largest() -> None:
    x = torch.tensor([[[3.0], [5.0], [1.0]]], requires_grad=True)
    grouping = Grouping(torch.tensor([[0, 0, 1]]), 2, torch.tensor([[0, 2]]))
    merge(Tokens.from_sequence(x), grouping, reduce="max").x.sum().backward()
    assert x.grad.flatten().tolist() == [0, 1, 1]


def test_one_group_of_all_tokens_is_the_mean() -> None:
    tokens = reference.random_tokens(2, 13, seed=0)
    merged = merge(Tokens(*tokens), Grouping(*random_groups(13, 12)))
    torch.testing.assert_close(merged.x[:, 0], tokens.x.mean(dim=1))
    torch.testing.assert_close(merged.size[:, 0], tokens.size.sum(dim=1))


def test_size_weighting_keeps_the_sum_over_original_tokens() -> None:
    tokens = Tokens(*reference.random_tokens(2, 31, seed=0))
    merged = merge(tokens, Grouping(*random_groups(31, 20)), weights=size_weights(tokens))
    before, after = ((t.x * t.size[..., None]).sum(dim=1) for t in (tokens, merged))
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(merged.size.sum(dim=1), tokens.size.sum(dim=1))


def test_all_zero_weights_give_the_plain_average() -> None:
    tokens = reference.random_tokens(2, 31, seed=0)
    groups = random_groups(31, 20)
    weights = torch.rand(2, 31, dtype=torch.float64).masked_fill(groups.index % 3 == 0, 0.0)
    merged = merge(Tokens(*tokens), Grouping(*groups), weights=weights)
    assert_close(merged, reference.merge_loops(tokens, groups, weights=weights))
    nothing = merge(Tokens(*tokens), Grouping(*groups), weights=torch.zeros(2, 31))
    assert_close(nothing, reference.merge_loops(tokens, groups))


def test_all_zero_weights_average_the_real_tokens_only() -> None:
    tokens, groups = reference.random_tokens(2, 31, seed=0, real_fraction=0.6), random_groups(31, 25)
    merged = merge(Tokens(*tokens), Grouping(*groups), weights=torch.zeros(2, 31))
    assert_close(merged, reference.merge_loops(tokens, groups), real_only=True)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    tokens, groups = Tokens(*cast(reference.random_tokens(2, 31, seed=0), torch.float32)), random_groups(31, 20)
    weights = torch.rand(2, 31) + 0.1
    expected = merge(tokens, Grouping(*groups), weights=weights)
    for scale in (1e-20, 1e20):
        torch.testing.assert_close(merge(tokens, Grouping(*groups), weights=weights * scale).x, expected.x)


def test_optional_fields_stay_none() -> None:
    tokens = reference.random_tokens(2, 12, seed=0)
    merged = merge(Tokens(tokens.x, tokens.size, tokens.position), Grouping(*random_groups(12, 5)))
    assert merged.motion is None
    assert merged.saliency is None
    assert merged.mask is None


def test_the_input_is_not_modified() -> None:
    tokens = Tokens(*reference.random_tokens(2, 12, seed=0, real_fraction=0.5, garbage=1.0))
    before = copy.deepcopy(tokens)
    merge(tokens, Grouping(*random_groups(12, 5)), weights=size_weights(tokens))
    for field in dataclasses.fields(tokens):
        assert torch.equal(getattr(tokens, field.name), getattr(before, field.name))


def test_expanded_and_transposed_tensors_merge_alike() -> None:
    tokens, groups = reference.random_tokens(1, 12, seed=0), random_groups(12, 5)
    views = reference.LoopTokens(*(None if v is None else v.expand(2, *v.shape[1:]) for v in tokens))
    views = views._replace(x=views.x.mT.contiguous().mT)
    assert_close(merge(Tokens(*views), Grouping(*groups)), reference.merge_loops(views, groups))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["plain", "saliency"])
@pytest.mark.parametrize("merge_count", [60, 119])
def test_half_precision_rounds_once(kind: str, dtype: torch.dtype, merge_count: int) -> None:
    tokens = cast(reference.random_tokens(2, 120, seed=0), dtype)._replace(x=torch.randn(2, 120, 8).to(dtype) + 3)
    groups = random_groups(120, merge_count)
    weights, _ = make_weights(kind, tokens)
    merged = merge(Tokens(*tokens), Grouping(*groups), weights=weights)
    wide = tokens._replace(x=tokens.x.double())
    expected = reference.merge_loops(wide, groups, weights=None if weights is None else weights.double())
    assert merged.x.dtype == dtype
    torch.testing.assert_close(merged.x.double(), expected.x, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_float16_sums_do_not_overflow() -> None:
    tokens = Tokens(torch.full((2, 50, 4), 30_000.0).half(), torch.ones(2, 50), torch.zeros(2, 50, 3).long())
    merged = merge(tokens, Grouping(*random_groups(50, 49)))
    assert torch.equal(merged.x, torch.full((2, 1, 4), 30_000.0).half())


def test_autocast_does_not_round_averages() -> None:
    tokens, groups = Tokens(*cast(reference.random_tokens(2, 31, seed=0), torch.float32)), random_groups(31, 20)
    expected = merge(tokens, Grouping(*groups), weights=size_weights(tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge(tokens, Grouping(*groups), weights=size_weights(tokens))
    assert torch.equal(merged.x, expected.x)
    assert torch.equal(merged.size, expected.size)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_x_and_weights_are_right(masked: bool) -> None:
    tokens = reference.random_tokens(2, 7, 3, seed=0, real_fraction=0.6 if masked else None, garbage=1.0)
    groups = random_groups(7, 4)
    weights = torch.rand(2, 7, dtype=torch.float64) + 0.1

    def merged_x(x: Tensor, weights: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
        given = Tokens(*tokens._replace(x=x, saliency=saliency))
        merged = merge(given, Grouping(*groups), weights=weights)
        return merged.x, merged.saliency

    inputs = [v.clone().requires_grad_() for v in (tokens.x, weights, tokens.saliency)]
    assert torch.autograd.gradcheck(merged_x, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(merged_x, inputs, check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(lambda x: merge(Tokens(*tokens._replace(x=x)), Grouping(*groups)).x, inputs[:1])


def test_gradients_stay_finite_where_weights_are_zero_or_tokens_masked() -> None:
    tokens = reference.random_tokens(2, 31, seed=0, real_fraction=0.5)
    groups = random_groups(31, 20)
    weights = torch.rand(2, 31, dtype=torch.float64).masked_fill(groups.index % 3 == 0, 0.0).requires_grad_()
    x = tokens.x.clone().requires_grad_()
    merged = merge(Tokens(*tokens._replace(x=x)), Grouping(*groups), weights=weights)
    merged.x[merged.mask].square().sum().backward()
    assert weights.grad.isfinite().all()
    assert x.grad.isfinite().all()
    assert (x.grad[tokens.mask] != 0).any()
    assert (x.grad[~tokens.mask] == 0).all()


def test_saliency_weights_pass_gradients_to_saliency() -> None:
    tokens = reference.random_tokens(2, 12, seed=0)
    groups = random_groups(12, 6)
    gradients = []
    for implementation in ("package", "loops"):
        saliency = tokens.saliency.clone().requires_grad_()
        given = tokens._replace(saliency=saliency)
        if implementation == "package":
            merged = merge(Tokens(*given), Grouping(*groups), weights=saliency_weights(Tokens(*given), beta=2.0)).x
        else:
            loop_weights = reference.saliency_weights_loops(given, beta=2.0)
            merged = reference.merge_loops(given, groups, weights=loop_weights).x
        merged.square().sum().backward()
        gradients.append(saliency.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_unmerge_equals_the_loops_and_merging_again_inverts_it() -> None:
    tokens, groups = reference.random_tokens(2, 31, seed=0), random_groups(31, 20)
    merged = merge(Tokens(*tokens), Grouping(*groups))
    dense = unmerge(merged.x, Grouping(*groups))
    assert dense.shape == (2, 31, 8)
    assert torch.equal(dense, reference.unmerge_loops(merged.x, groups))
    remerged = merge(Tokens(*tokens._replace(x=dense)), Grouping(*groups))
    torch.testing.assert_close(remerged.x, merged.x)


def test_unmerge_passes_gradients() -> None:
    groups = random_groups(7, 4)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unmerge(x, Grouping(*groups)), x)


def test_compose_equals_the_loops_and_two_steps() -> None:
    tokens = Tokens(*reference.random_tokens(2, 31, seed=0))
    first, second, third = (random_groups(n, r, seed=n) for n, r in ((31, 11), (20, 8), (12, 11)))
    both = compose(Grouping(*first), Grouping(*second))
    expected = reference.compose_loops(first, second)
    assert both.num_groups == 12
    assert torch.equal(both.index, expected.index)
    assert torch.equal(both.anchor, expected.anchor)

    merged = merge(merge(tokens, Grouping(*first)), Grouping(*second))
    stepwise = unmerge(unmerge(merged.x, Grouping(*second)), Grouping(*first))
    assert torch.equal(unmerge(merged.x, both), stepwise)
    assert torch.equal(merged.position, tokens.position.gather(1, both.anchor[..., None].expand(-1, -1, 3)))
    left = compose(both, Grouping(*third))
    right = compose(Grouping(*first), compose(Grouping(*second), Grouping(*third)))
    assert torch.equal(left.index, right.index)
    assert torch.equal(left.anchor, right.anchor)


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_joined_windows_merge_like_each_window(windows: int) -> None:
    tokens, groups = Tokens(*reference.random_tokens(6, 13, seed=0)), random_groups(13, 5, batch=6)
    joined = Grouping(*groups).join_windows(windows)
    assert joined.num_groups == 8 * windows
    assert (joined.anchor.diff(dim=1) > 0).all()

    def join(tokens: Tokens) -> Tokens:
        return pytree.tree_map(lambda leaf: reference.join_loops(leaf, windows), tokens)

    together = merge(join(tokens), joined, weights=size_weights(join(tokens)))
    apart = join(merge(tokens, Grouping(*groups), weights=size_weights(tokens)))
    for name in ("x", "size", "position", "motion", "saliency"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name), rtol=1e-12, atol=1e-12)


def test_size_weighted_merging_in_two_steps_is_merging_once() -> None:
    tokens = Tokens(*reference.random_tokens(2, 31, seed=0))
    first, second = Grouping(*random_groups(31, 11)), Grouping(*random_groups(20, 8))
    step = merge(tokens, first, weights=size_weights(tokens))
    stepwise = merge(step, second, weights=size_weights(step))
    once = merge(tokens, compose(first, second), weights=size_weights(tokens))
    for name in ("x", "size", "position", "motion", "saliency"):
        torch.testing.assert_close(getattr(once, name), getattr(stepwise, name))


def test_shapes_that_do_not_match_are_errors_that_print_both() -> None:
    tokens, groups = Tokens(*reference.random_tokens(2, 12, seed=0)), random_groups(12, 5)
    grouping = Grouping(*groups)
    with pytest.raises(ValueError, match="weights") as error:
        merge(tokens, grouping, weights=torch.ones(2, 11))
    assert "(2, 12)" in str(error.value)
    assert "(2, 11)" in str(error.value)
    with pytest.raises(ValueError, match="index") as error:
        merge(tokens, Grouping(*random_groups(13, 5)))
    assert "(2, 12)" in str(error.value)
    assert "(2, 13)" in str(error.value)
    with pytest.raises(ValueError, match="x") as error:
        unmerge(torch.zeros(2, 8, 4), grouping)
    assert "7" in str(error.value)
    assert "(2, 8, 4)" in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)7.*6|6.*7"):
        compose(grouping, Grouping(*random_groups(6, 2)))


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch_is_merged_to_an_empty_batch(masked: bool) -> None:
    mask = torch.ones(0, 12, dtype=torch.bool) if masked else None
    tokens = Tokens(torch.zeros(0, 12, 8), torch.zeros(0, 12), torch.zeros(0, 12, 3), torch.zeros(0, 12), None, mask)
    index, anchor = torch.zeros(0, 12, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.int64)
    merged = merge(tokens, Grouping(index, 5, anchor))
    assert (merged.x.shape, merged.size.shape, merged.position.shape) == ((0, 5, 8), (0, 5), (0, 5, 3))
    assert merged.motion.shape == (0, 5)

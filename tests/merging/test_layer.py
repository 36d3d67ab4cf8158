"""Tests of TokenMerger: equal to the loops of tests/reference.py, sampling, gradients, compilation and export."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from tests import reference
from vtm.merging import (
    Grid,
    Grouping,
    NoMerger,
    TokenMerger,
    Tokens,
    boundary_partition,
    center_partition,
    match_bipartite,
    merge,
    motion_partition,
    motion_weights,
    saliency_partition,
    saliency_weights,
    size_weights,
    uniform_partition,
)

DIM = 8
FRAME = (4, 6)
STRATEGIES = {
    "uniform": (uniform_partition, reference.uniform_loops),
    "center": (center_partition, reference.center_loops),
    "boundary": (boundary_partition, reference.boundary_loops),
    "motion": (motion_partition, reference.motion_loops),
    "saliency": (saliency_partition, reference.saliency_loops),
}
WEIGHTINGS = {
    "plain": (None, None),
    "size": (size_weights, reference.size_weights_loops),
    "motion": (motion_weights, reference.motion_weights_loops),
    "saliency": (
        functools.partial(saliency_weights, beta=3.0),
        functools.partial(reference.saliency_weights_loops, beta=3.0),
    ),
}

all_strategies = pytest.mark.parametrize("name", STRATEGIES)


def random_case(
    num_tokens: int, *, seed: int, batch: int = 3, real_fraction: float | None = None, garbage: float = float("nan")
) -> tuple[reference.LoopTokens, Tensor, Grid]:
    """Return tokens, keys (B, N, D) in float64, and their grid."""
    tokens = reference.random_tokens(
        batch, num_tokens, DIM, seed=seed, frame=FRAME, real_fraction=real_fraction, garbage=garbage
    )
    keys = torch.randn(batch, num_tokens, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if tokens.mask is not None:
        keys[~tokens.mask] = garbage
    return tokens, keys, Grid(int(tokens.position[..., 0].max()) + 1, *FRAME)


def make_merger(
    name: str,
    *,
    partition_factor: int = 2,
    merge_count: int | float = 0.8,
    weighting: str = "plain",
    saliency_weight: float | None = 1.0,
    sample_in_eval: bool = False,
) -> TokenMerger:
    torch.manual_seed(0)
    merger = TokenMerger(
        DIM,
        partition=STRATEGIES[name][0],
        partition_factor=partition_factor,
        merge_count=merge_count,
        weighting=WEIGHTINGS[weighting][0],
        saliency_weight=saliency_weight,
        sample_in_eval=sample_in_eval,
    ).double()
    if saliency_weight is not None:
        nn.init.normal_(merger.saliency.u.weight)
    return merger.eval()


def run_loops(
    merger: TokenMerger, name: str, weighting: str, tokens: reference.LoopTokens, keys: Tensor
) -> tuple[reference.LoopTokens, reference.Groups, Tensor]:
    """Return what the merger should return in evaluation."""
    tokens = tokens._replace(saliency=reference.saliency_estimate(keys, merger.saliency.u.weight))
    targets = STRATEGIES[name][1](tokens, reference.Area(*FRAME), merger.partition_factor)
    count = reference.count_merged(merger.merge_count, keys.shape[1] - targets.shape[1])
    groups = reference.match_loops(keys.detach(), targets, count, mask=tokens.mask)
    make_weights = WEIGHTINGS[weighting][1]
    weights = None if make_weights is None else make_weights(tokens)
    return reference.merge_loops(tokens, groups, weights=weights), groups, targets


def assert_close(found: Tokens, expected: reference.LoopTokens) -> None:
    """Compare the floating-point fields of real tokens, and the positions and masks of all tokens."""
    real = torch.ones_like(expected.size, dtype=torch.bool) if expected.mask is None else expected.mask
    for name in ("x", "size", "motion", "saliency"):
        torch.testing.assert_close(
            getattr(found, name)[real],
            getattr(expected, name)[real],
            rtol=1e-12,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert torch.equal(found.position[real], expected.position[real])
    assert (found.mask is None) == (expected.mask is None)
    assert found.mask is None or torch.equal(found.mask, expected.mask)


@all_strategies
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 12, 13, 31])
def test_merger_equals_the_loops(name: str, num_tokens: int) -> None:
    tokens, keys, grid = random_case(num_tokens, seed=num_tokens)
    for weighting, partition_factor, merge_count in (
        ("plain", 2, 0.8),
        ("size", 6, 1.0),
        ("motion", 3, 0.5),
        ("saliency", 6, 0.8),
        ("plain", 1, 0.8),
        ("saliency", 40, 0),
    ):
        merger = make_merger(name, partition_factor=partition_factor, merge_count=merge_count, weighting=weighting)
        result = merger(Tokens(*tokens), keys, grid)
        expected, groups, targets = run_loops(merger, name, weighting, tokens, keys)
        assert torch.equal(result.targets, targets)
        assert torch.equal(result.grouping.index, groups.index)
        assert torch.equal(result.grouping.anchor, groups.anchor)
        assert result.grouping.num_groups == groups.num_groups
        saliency = reference.saliency_estimate(keys, merger.saliency.u.weight)
        torch.testing.assert_close(result.saliency, saliency, rtol=1e-12, atol=1e-12)
        assert_close(result.tokens, expected)


@all_strategies
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("real_fraction", [0.1, 0.6])
def test_masked_merger_equals_the_loops(name: str, weighting: str, real_fraction: float) -> None:
    # Merge every masked source, so that the package and the loops number the groups alike.
    tokens, keys, grid = random_case(31, seed=1, real_fraction=real_fraction)
    merger = make_merger(name, partition_factor=3, merge_count=1.0, weighting=weighting)
    result = merger(Tokens(*tokens), keys, grid)
    expected, _, targets = run_loops(merger, name, weighting, tokens, keys)
    for row, found in enumerate(result.targets.tolist()):
        real = tokens.mask[row]
        assert [n for n in found if real[n]] == [n for n in targets[row].tolist() if real[n]]
    assert not result.tokens.x[result.tokens.mask].isnan().any()
    if name not in ("motion", "saliency") or real_fraction == 0.6:  # otherwise any masked token may be a target
        assert_close(result.tokens, expected)


@all_strategies
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("training", [False, True])
def test_masked_content_never_reaches_real_tokens(name: str, weighting: str, training: bool) -> None:
    merger = make_merger(name, partition_factor=3, weighting=weighting).train(training)
    merged = []
    for garbage in (0.0, 5.0, -1e30, torch.inf, torch.nan):
        tokens, keys, grid = random_case(31, seed=2, real_fraction=0.6, garbage=garbage)
        result = merger(Tokens(*tokens), keys, grid, generator=torch.Generator().manual_seed(0))
        merged.append(result.tokens)
    first = merged[0]
    for other in merged[1:]:
        assert torch.equal(other.mask, first.mask)
        for field in ("x", "size", "position", "motion", "saliency"):
            assert torch.equal(getattr(other, field)[first.mask], getattr(first, field)[first.mask]), field


@all_strategies
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("merge_count", [0, 0.0])
def test_merge_count_zero_is_the_bit_identical_identity(name: str, weighting: str, merge_count: int | float) -> None:
    tokens, keys, grid = random_case(31, seed=0)
    merger = make_merger(name, merge_count=merge_count, weighting=weighting)
    result = merger(Tokens(*tokens), keys, grid)
    merged, grouping = result.tokens, result.grouping
    for field in ("x", "size", "position", "motion"):
        assert torch.equal(getattr(merged, field), getattr(tokens, field)), field
    assert torch.equal(grouping.index, torch.arange(31).expand(3, -1))


@pytest.mark.parametrize("num_tokens", [12, 13, 60, 61])
@pytest.mark.parametrize("partition_factor", [2, 6])
@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.9, 1.0])
def test_a_fraction_is_the_same_as_its_count(num_tokens: int, partition_factor: int, fraction: float) -> None:
    tokens, keys, grid = random_case(num_tokens, seed=0)
    num_sources = num_tokens - -(-num_tokens // partition_factor)
    count = int(fraction * num_sources + 1e-9)
    by_fraction, by_count = (
        make_merger("uniform", partition_factor=partition_factor, merge_count=merge_count)(Tokens(*tokens), keys, grid)
        for merge_count in (fraction, count)
    )
    assert by_fraction.grouping.num_groups == num_tokens - count
    assert torch.equal(by_fraction.grouping.index, by_count.grouping.index)


def test_a_fraction_that_is_inexact_in_floating_point_is_not_rounded_down() -> None:
    tokens, keys, grid = random_case(180, seed=0)
    assert 0.7 * 90 < 63
    assert make_merger("uniform", merge_count=0.7)(Tokens(*tokens), keys, grid).grouping.num_groups == 180 - 63


def test_whole_float_is_a_fraction_and_one_is_a_count() -> None:
    tokens, keys, grid = random_case(12, seed=0)
    assert make_merger("uniform", merge_count=1.0)(Tokens(*tokens), keys, grid).grouping.num_groups == 6
    assert make_merger("uniform", merge_count=1)(Tokens(*tokens), keys, grid).grouping.num_groups == 11


def test_a_count_above_the_sources_is_an_error_that_prints_both() -> None:
    tokens, keys, grid = random_case(13, seed=0)
    with pytest.raises(ValueError, match="7") as error:
        make_merger("uniform", merge_count=7)(Tokens(*tokens), keys, grid)
    assert "6" in str(error.value)


@pytest.mark.parametrize("merge_count", [-0.1, 1.5, -1])
def test_an_invalid_merge_count_is_an_error(merge_count: int | float) -> None:
    tokens, keys, grid = random_case(13, seed=0)
    with pytest.raises(ValueError, match="merge_count"):
        make_merger("uniform", merge_count=merge_count)(Tokens(*tokens), keys, grid)


def test_a_partition_factor_below_one_is_an_error() -> None:
    tokens, keys, grid = random_case(13, seed=0)
    with pytest.raises(ValueError, match="partition_factor"):
        make_merger("uniform", partition_factor=0)(Tokens(*tokens), keys, grid)


@pytest.mark.parametrize("shape", [(3, 12, DIM), (2, 13, DIM), (3, 13, DIM + 1)])
def test_keys_of_another_shape_are_an_error_that_prints_both(shape: tuple[int, int, int]) -> None:
    tokens, _, grid = random_case(13, seed=0)
    with pytest.raises(ValueError, match="keys") as error:
        make_merger("saliency")(Tokens(*tokens), torch.zeros(shape, dtype=torch.float64), grid)
    assert str(shape) in str(error.value)
    assert "(3, 13" in str(error.value)


@pytest.mark.parametrize("use", ["partition", "weighting"])
def test_saliency_without_an_estimator_is_an_error(use: str) -> None:
    tokens, keys, grid = random_case(13, seed=0)
    tokens = tokens._replace(saliency=None)
    merger = make_merger(
        "saliency" if use == "partition" else "uniform",
        weighting="saliency" if use == "weighting" else "plain",
        saliency_weight=None,
    )
    with pytest.raises(ValueError, match="saliency"):
        merger(Tokens(*tokens), keys, grid)


def test_only_a_merger_with_saliency_has_parameters() -> None:
    assert list(make_merger("uniform", saliency_weight=None).parameters()) == []
    named = dict(make_merger("uniform", saliency_weight=0.0).named_parameters())
    assert list(named) == ["saliency.u.weight"]
    assert named["saliency.u.weight"].shape == (1, DIM)


def test_no_merger_changes_nothing() -> None:
    tokens, keys, grid = random_case(13, seed=0, real_fraction=0.5, garbage=1.0)
    merger = NoMerger(DIM)
    assert list(merger.parameters()) == []
    given = Tokens(*tokens)
    result = merger(given, keys, grid)
    merged, grouping = result.tokens, result.grouping
    for field in ("x", "size", "position", "motion", "saliency", "mask"):
        assert torch.equal(getattr(merged, field), getattr(given, field)), field
    assert grouping.num_groups == 13
    assert torch.equal(grouping.index, torch.arange(13).expand(3, -1))
    assert torch.equal(grouping.anchor, grouping.index)
    again = merge(given, grouping, weights=result.weights)
    assert torch.equal(again.x, given.x)


@all_strategies
def test_grouping_and_weights_of_the_result_reproduce_the_merge(name: str) -> None:
    tokens, keys, grid = random_case(31, seed=0)
    result = make_merger(name, weighting="saliency").train()(Tokens(*tokens), keys, grid)
    other = torch.randn(3, 31, DIM, dtype=torch.float64)
    again = merge(Tokens(*tokens._replace(x=tokens.x)), result.grouping, weights=result.weights)
    assert torch.equal(again.x, result.tokens.x)
    assert merge(Tokens(*tokens._replace(x=other)), result.grouping, weights=result.weights).x.shape == again.x.shape


@pytest.mark.parametrize("name", ["motion", "saliency"])
def test_training_samples_and_evaluation_does_not(name: str) -> None:
    tokens, keys, grid = random_case(48, seed=0)
    merger = make_merger(name)

    def targets(seed: int) -> Tensor:
        return merger(Tokens(*tokens), keys, grid, generator=torch.Generator().manual_seed(seed)).targets

    assert torch.equal(targets(0), targets(1))
    merger.train()
    assert torch.equal(targets(0), targets(0))
    assert not torch.equal(targets(0), targets(1))


@pytest.mark.parametrize("name", ["motion", "saliency"])
def test_sampling_can_be_enabled_in_evaluation(name: str) -> None:
    tokens, keys, grid = random_case(48, seed=0)
    merger = make_merger(name, sample_in_eval=True)

    def targets(clips: list[int]) -> Tensor:
        given = Tokens(*(None if v is None else v[clips] for v in tokens))
        generators = [torch.Generator().manual_seed(clip) for clip in clips]
        return merger(given, keys[clips], grid, generator=generators).targets

    together = targets([0, 1, 2])
    assert torch.equal(targets([0, 1, 2]), together)
    assert torch.equal(targets([2, 1]), together[[2, 1]])
    assert not torch.equal(together, make_merger(name)(Tokens(*tokens), keys, grid).targets)


@pytest.mark.parametrize("weighting", ["plain", "size"])
@pytest.mark.parametrize("num_tokens", [2, 12, 13, 61])
def test_uniform_partition_with_factor_two_is_tome(weighting: str, num_tokens: int) -> None:
    tokens, keys, grid = random_case(num_tokens, seed=3)
    if weighting == "plain":
        tokens = tokens._replace(size=torch.ones_like(tokens.size))
    for merge_count in sorted({0, 1, num_tokens // 4, num_tokens // 2}):
        merger = make_merger("uniform", partition_factor=2, merge_count=merge_count, weighting=weighting)
        result = merger(Tokens(*tokens), keys, grid)
        merged, grouping = result.tokens, result.grouping
        x, size, origin = reference.tome_matching(keys, tokens.x, tokens.size, merge_count)
        order = origin.argsort(dim=1)
        assert torch.equal(grouping.anchor, origin.gather(1, order))
        torch.testing.assert_close(merged.x, x.gather(1, order[..., None].expand_as(x)), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.size, size.gather(1, order))


def test_the_gradient_of_u_under_saliency_weighting_equals_the_loops() -> None:
    tokens, keys, grid = random_case(31, seed=0)
    merger = make_merger("saliency", weighting="saliency")
    u, keys = merger.saliency.u.weight, keys.requires_grad_()
    merged = merger(Tokens(*tokens), keys, grid).tokens
    found = torch.autograd.grad(merged.x.square().sum() + merged.saliency.sum(), (u, keys))
    expected = run_loops(merger, "saliency", "saliency", tokens, keys)[0]
    wanted = torch.autograd.grad(expected.x.square().sum() + expected.saliency.sum(), (u, keys))
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_plain_averaging_has_no_gradient_for_u() -> None:
    tokens, keys, grid = random_case(31, seed=0)
    x = tokens.x.requires_grad_()
    merger = make_merger("saliency")
    merged = merger(Tokens(*tokens), keys, grid).tokens
    gradient = torch.autograd.grad(merged.x.sum(), (x, merger.saliency.u.weight), allow_unused=True)
    assert gradient[0].abs().max() > 0
    assert gradient[1] is None or (gradient[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@all_strategies
def test_half_precision_is_kept_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    tokens, keys, grid = random_case(31, seed=0)
    given = Tokens(tokens.x.to(dtype), tokens.size.float(), tokens.position, tokens.motion.float())
    merger = make_merger(name, weighting="saliency").to(dtype)
    result = merger(given, keys.to(dtype), grid)
    merged, grouping = result.tokens, result.grouping
    assert merged.x.dtype == dtype
    assert merged.x.isfinite().all()
    wide = merge(Tokens(given.x.double(), given.size, given.position), grouping, weights=result.weights.double())
    torch.testing.assert_close(merged.x.double(), wide.x, rtol=torch.finfo(dtype).eps, atol=1e-5)
    alike = match_bipartite(keys.to(dtype).float(), result.targets, 31 - grouping.num_groups)
    assert torch.equal(alike.index, grouping.index)


def test_deepcopy_and_state_dict_carry_u() -> None:
    tokens, keys, grid = random_case(31, seed=0)
    merger = make_merger("saliency")
    expected = merger(Tokens(*tokens), keys, grid).targets
    assert torch.equal(copy.deepcopy(merger)(Tokens(*tokens), keys, grid).targets, expected)
    other = make_merger("saliency")
    nn.init.normal_(other.saliency.u.weight)
    assert not torch.equal(other(Tokens(*tokens), keys, grid).targets, expected)
    other.load_state_dict(merger.state_dict())
    assert torch.equal(other(Tokens(*tokens), keys, grid).targets, expected)


class Pipeline(nn.Module):
    """Partition with every strategy, then match and merge, from plain tensors to plain tensors."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(
        self, x: Tensor, keys: Tensor, position: Tensor, motion: Tensor, saliency: Tensor
    ) -> tuple[Tensor, ...]:
        tokens = Tokens(x, torch.ones_like(x[..., 0]), position, motion, saliency)
        targets = [partition(tokens, self.grid, 3) for partition, _ in STRATEGIES.values()]
        grouping = match_bipartite(keys, targets[0], 7)
        merged = merge(tokens, grouping, weights=size_weights(tokens))
        return *targets, grouping.index, grouping.anchor, merged.x, merged.size, merged.position, merged.motion


class Merger(nn.Module):
    """A module with Tokens as input and output, which the tracer must therefore support."""

    def __init__(self, merger: TokenMerger, grid: Grid) -> None:
        super().__init__()
        self.merger = merger
        self.grid = grid

    def forward(self, tokens: Tokens, keys: Tensor) -> tuple[Tokens, Grouping]:
        result = self.merger(tokens, keys, self.grid)
        return result.tokens, result.grouping


def pipeline_inputs(batch: int, *, seed: int) -> tuple[Tensor, ...]:
    tokens, keys, _ = random_case(24, seed=seed, batch=batch)
    return tokens.x.float(), keys.float(), tokens.position, tokens.motion.float(), tokens.saliency.float()


def merger_inputs(batch: int, *, seed: int, masked: bool) -> tuple[Tokens, Tensor]:
    x, keys, position, motion, saliency = pipeline_inputs(batch, seed=seed)
    mask = torch.rand(batch, 24, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    return Tokens(x, torch.ones(batch, 24), position, motion, saliency, mask), keys


def mark_batch_dynamic(inputs: object) -> None:
    """Make the compiler use one graph for all batch sizes, or fail."""
    for leaf in torch.utils._pytree.tree_leaves(inputs):
        torch._dynamo.mark_dynamic(leaf, 0)


def assert_same_leaves(found: object, expected: object) -> None:
    ours, theirs = (torch.utils._pytree.tree_leaves(value) for value in (found, expected))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_all_strategies_compile_as_one_graph() -> None:
    torch.compiler.reset()
    pipeline = Pipeline(Grid(2, *FRAME))
    compiled = torch.compile(pipeline, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        inputs = pipeline_inputs(batch, seed=batch)
        mark_batch_dynamic(inputs)
        assert_same_leaves(compiled(*inputs), pipeline(*inputs))


def test_all_strategies_export_with_any_batch() -> None:
    pipeline = Pipeline(Grid(2, *FRAME)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(pipeline, pipeline_inputs(3, seed=0), dynamic_shapes=[{0: batch}] * 5).module()
    for size in (2, 5):
        inputs = pipeline_inputs(size, seed=size)
        assert_same_leaves(exported(*inputs), pipeline(*inputs))


def test_merger_of_masked_tokens_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    merger = Merger(make_merger("saliency", weighting="saliency").float(), Grid(2, *FRAME))
    compiled = torch.compile(merger, fullgraph=True, backend="aot_eager")
    for batch in (2, 5):
        inputs = merger_inputs(batch, seed=batch, masked=True)
        mark_batch_dynamic(inputs)
        with torch.no_grad():
            assert_same_leaves(compiled(*inputs), merger(*inputs))


def test_sampling_merger_trains_as_one_graph() -> None:
    torch.compiler.reset()
    merger = Merger(make_merger("saliency", weighting="saliency").float(), Grid(2, *FRAME)).train()
    compiled = torch.compile(merger, fullgraph=True, backend="aot_eager")
    tokens, keys = merger_inputs(3, seed=0, masked=False)
    torch.manual_seed(0)
    merged, first = compiled(tokens, keys)
    merged.x.square().sum().backward()
    assert merger.merger.saliency.u.weight.grad.abs().max() > 0
    second = compiled(tokens, keys)[1]
    assert not torch.equal(first.index, second.index)


def test_merger_of_masked_tokens_exports_with_any_batch() -> None:
    merger = Merger(make_merger("saliency", weighting="saliency").float(), Grid(2, *FRAME)).eval()
    inputs = merger_inputs(3, seed=0, masked=True)
    batch = torch.export.Dim("batch", min=1, max=64)
    fields = [{0: batch} for leaf in torch.utils._pytree.tree_leaves(inputs[0])]
    exported = torch.export.export(merger, inputs, dynamic_shapes=(fields, {0: batch})).module()
    for size in (2, 5):
        inputs = merger_inputs(size, seed=size, masked=True)
        assert_same_leaves(exported(*inputs), merger(*inputs))

"""Tests of the partition strategies: equal to the loops of tests/reference.py, masks, sampling, ties, errors."""

import functools
from collections import Counter
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests import reference
from vtm.merging import (
    FeatureGrid,
    Grid,
    Tokens,
    boundary_partition,
    center_partition,
    motion_partition,
    saliency_partition,
    uniform_partition,
)

STRATEGIES = {
    "uniform": (uniform_partition, reference.uniform_loops),
    "center": (center_partition, reference.center_loops),
    "boundary": (boundary_partition, reference.boundary_loops),
    "motion": (motion_partition, reference.motion_loops),
    "saliency": (saliency_partition, reference.saliency_loops),
}
SCORED = {"motion": motion_partition, "saliency": saliency_partition}
FRAMES = [(4, 6), (5, 7), (1, 2), (3, 4)]

all_strategies = pytest.mark.parametrize("name", STRATEGIES)
scored_strategies = pytest.mark.parametrize("name", SCORED)
all_lengths = pytest.mark.parametrize("num_tokens", [1, 2, 5, 12, 13, 31])


def grid_of(tokens: reference.LoopTokens, frame: tuple[int, int]) -> Grid:
    return Grid(int(tokens.position[..., 0].max()) + 1, *frame)


def full_frames(batch: int, frames: int, height: int, width: int) -> Tokens:
    """Return all tokens of all frames before any merging."""
    position = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width))
    position = position.view(1, -1, 3).expand(batch, -1, -1)
    return Tokens(torch.randn(*position.shape[:2], 4), torch.ones(position.shape[:2]), position)


def scored_tokens(scores: Tensor) -> Tokens:
    """Return tokens in one row of a frame with the scores (B, N) as motion and saliency."""
    batch, num_tokens = scores.shape
    position = torch.zeros(batch, num_tokens, 3, dtype=torch.int64)
    position[..., 2] = torch.arange(num_tokens)
    return Tokens(torch.zeros(batch, num_tokens, 2), torch.ones(batch, num_tokens), position, scores, scores)


def count_inside(targets: Tensor, tokens: Tokens, grid: Grid) -> list[int]:
    area = reference.Area(grid.height, grid.width)
    rows = [[tokens.position[b, n].tolist() for n in row] for b, row in enumerate(targets.tolist())]
    return [sum(reference.is_inside(y, x, area) for _, y, x in row) for row in rows]


@all_strategies
@all_lengths
@pytest.mark.parametrize("partition_factor", [1, 2, 3, 6, 40])
def test_targets_equal_the_loops(name: str, num_tokens: int, partition_factor: int) -> None:
    partition, loops = STRATEGIES[name]
    for seed, frame in enumerate(FRAMES):
        tokens = reference.random_tokens(3, num_tokens, seed=seed, frame=frame)
        targets = partition(Tokens(*tokens), grid_of(tokens, frame), partition_factor)
        assert targets.dtype == torch.int64
        assert targets.shape == (3, -(-num_tokens // partition_factor))
        assert torch.equal(targets, loops(tokens, reference.Area(*frame), partition_factor))


@all_strategies
@all_lengths
@pytest.mark.parametrize("real_fraction", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masked_targets_equal_the_loops(name: str, num_tokens: int, real_fraction: float) -> None:
    partition, loops = STRATEGIES[name]
    for seed, (frame, partition_factor) in enumerate(zip(FRAMES, [1, 2, 3, 6], strict=True)):
        tokens = reference.random_tokens(4, num_tokens, seed=seed, frame=frame, real_fraction=real_fraction)
        targets = partition(Tokens(*tokens), grid_of(tokens, frame), partition_factor)
        expected = loops(tokens, reference.Area(*frame), partition_factor)
        assert targets.shape == expected.shape
        assert (targets.diff(dim=1) > 0).all()
        for found, wanted, real in zip(targets.tolist(), expected.tolist(), tokens.mask.tolist(), strict=True):
            assert [n for n in found if real[n]] == [n for n in wanted if real[n]]


@pytest.mark.parametrize("name", ["uniform", "center", "boundary"])
def test_masked_targets_are_the_first_masked_tokens(name: str) -> None:
    partition, loops = STRATEGIES[name]
    tokens = reference.random_tokens(5, 24, seed=0, real_fraction=0.2)
    targets = partition(Tokens(*tokens), grid_of(tokens, (4, 6)), 2)
    assert torch.equal(targets, loops(tokens, reference.Area(4, 6), 2))


@all_strategies
@pytest.mark.parametrize("sample", [False, True])
def test_masked_content_changes_no_target(name: str, sample: bool) -> None:
    partition, _ = STRATEGIES[name]
    chosen = []
    for garbage in (0.0, 1e9, -1e9, float("inf"), float("nan")):
        tokens = reference.random_tokens(4, 31, seed=1, real_fraction=0.6, garbage=garbage)
        generator = torch.Generator().manual_seed(0)
        chosen.append(partition(Tokens(*tokens), grid_of(tokens, (4, 6)), 2, sample=sample, generator=generator))
    assert all(torch.equal(chosen[0], other) for other in chosen[1:])
    real_targets = tokens.mask.gather(1, chosen[0]).sum(1)
    assert torch.equal(real_targets, tokens.mask.sum(1).clamp(max=chosen[0].shape[1]))


@scored_strategies
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_real_tokens_of_any_score_come_before_masked_ones(name: str, sample: bool, level: float) -> None:
    whole = scored_tokens(level + torch.rand(8, 30, generator=torch.Generator().manual_seed(0)))
    mask = torch.rand(8, 30, generator=torch.Generator().manual_seed(1)) < 0.4
    tokens = Tokens(whole.x, whole.size, whole.position, whole.motion, whole.saliency, mask)
    targets = SCORED[name](tokens, Grid(1, 1, 30), 3, sample=sample)
    assert torch.equal(mask.gather(1, targets).sum(1), mask.sum(1).clamp(max=10))


@pytest.mark.parametrize("partition_factor", [1, 2, 3, 6, 7])
def test_uniform_takes_every_nth_token(partition_factor: int) -> None:
    tokens = full_frames(2, 3, 4, 5)
    targets = uniform_partition(tokens, Grid(3, 4, 5), partition_factor)
    assert targets.tolist() == [list(range(0, 60, partition_factor))] * 2


@pytest.mark.parametrize("partition_factor", [2, 5, 6, 10])
@pytest.mark.parametrize("size", [(5, 8, 8), (5, 14, 14), (5, 7, 7), (6, 9, 13), (5, 16, 12)])
def test_center_has_half_or_a_sixth_of_the_targets(size: tuple[int, int, int], partition_factor: int) -> None:
    tokens, grid = full_frames(2, *size), Grid(*size)
    num_tokens = size[0] * size[1] * size[2]
    num_targets = -(-num_tokens // partition_factor)
    middle = sum(count_inside(torch.arange(num_tokens)[None], tokens, grid))
    center = center_partition(tokens, grid, partition_factor)
    boundary = boundary_partition(tokens, grid, partition_factor)
    assert center.shape == boundary.shape == (2, num_targets)
    assert count_inside(center, tokens, grid) == [min((num_targets + 1) // 2, middle)] * 2
    assert count_inside(boundary, tokens, grid) == [int(num_targets / 6 + 0.5)] * 2


@pytest.mark.parametrize(("name", "wanted"), [("center", 15), ("boundary", 5)])
def test_center_is_found_by_position_after_merging(name: str, wanted: int) -> None:
    partition, _ = STRATEGIES[name]
    tokens, grid = full_frames(3, 4, 6, 6), Grid(4, 6, 6)
    order = torch.rand(3, 144, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :90].sort(1).values
    position = tokens.position.gather(1, order[..., None].expand(-1, -1, 3))
    kept = Tokens(torch.randn(3, 90, 4), torch.ones(3, 90), position)
    targets = partition(kept, grid, 3)
    assert targets.shape == (3, 30)
    assert count_inside(targets, kept, grid) == [wanted] * 3


def test_center_partition_takes_more_targets_outside_if_the_center_has_too_few() -> None:
    tokens = full_frames(1, 1, 4, 4)
    kept = [0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 14]  # of the central tokens 5, 6, 9, 10 only 5 is left
    few = Tokens(tokens.x[:, kept], tokens.size[:, kept], tokens.position[:, kept])
    targets = center_partition(few, Grid(1, 4, 4), 2)
    assert targets.shape == (1, 6)
    assert count_inside(targets, few, Grid(1, 4, 4)) == [1]
    assert kept.index(5) in targets[0].tolist()


@all_strategies
def test_partition_factor_one_makes_every_token_a_target(name: str) -> None:
    tokens = reference.random_tokens(2, 13, seed=0)
    targets = STRATEGIES[name][0](Tokens(*tokens), grid_of(tokens, (4, 6)), 1)
    assert targets.tolist() == [list(range(13))] * 2


@scored_strategies
def test_clips_choose_their_own_targets(name: str) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2, 0.8], [0.1, 0.9, 0.8, 0.2], [0.1, 0.2, 0.8, 0.9]])
    targets = SCORED[name](scored_tokens(scores), Grid(1, 1, 4), 2)
    assert targets.tolist() == [[0, 3], [1, 2], [2, 3]]


@pytest.mark.parametrize("sample", [False, True])
def test_targets_are_distinct_for_equal_motion(sample: bool) -> None:
    tokens = scored_tokens(torch.zeros(3, 24))
    first, second = (
        motion_partition(tokens, Grid(1, 1, 24), 4, sample=sample, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert first.shape == (3, 6)
    assert (first.diff(dim=1) > 0).all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("factor", [2, 4, 6, 10])
def test_targets_of_a_static_scene_are_spread_evenly(factor: int) -> None:
    targets = motion_partition(scored_tokens(torch.full((1, 2000), 3.0)), Grid(1, 1, 2000), factor)[0]
    assert targets.diff().max() <= 2 * factor
    assert max(abs(int((targets // 100 == part).sum()) - 100 / factor) for part in range(20)) <= 3
    moving = torch.zeros(1, 2000)
    moving[0, 700:710] = 0.01
    kept = motion_partition(scored_tokens(moving), Grid(1, 1, 2000), factor)[0].tolist()
    assert set(range(700, 710)) <= set(kept)


def test_targets_of_an_untrained_estimator_are_spread_evenly() -> None:
    targets = saliency_partition(scored_tokens(torch.zeros(1, 2000)), Grid(1, 1, 2000), 6)[0]
    assert targets.diff().max() <= 12
    close = torch.linspace(-1, 1, 2000)[torch.randperm(2000)][None]  # 0.001 apart
    assert torch.equal(
        saliency_partition(scored_tokens(close), Grid(1, 1, 2000), 6), close.topk(334).indices.sort().values
    )


def test_breaking_ties_never_prefers_smaller_motion() -> None:
    motion = torch.tensor([[1.0, 0.0, 1.0, 5.0, 1.0, 0.0, 2.0, 1.0]])
    targets = motion_partition(scored_tokens(motion), Grid(1, 1, 8), 2)[0].tolist()
    assert {3, 6} < set(targets)
    assert all(motion[0, n] >= 1 for n in targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@scored_strategies
def test_half_precision_chooses_the_same_targets(name: str, dtype: torch.dtype) -> None:
    order = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)).argsort(1)
    scores = order.float() / 64  # every value is a bfloat16
    expected = SCORED[name](scored_tokens(scores), Grid(1, 1, 40), 3)
    assert torch.equal(SCORED[name](scored_tokens(scores.to(dtype)), Grid(1, 1, 40), 3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@scored_strategies
def test_noise_is_never_rounded_to_half_precision(name: str, dtype: torch.dtype) -> None:
    scores = torch.zeros(2, 2000)
    wide, narrow = (
        SCORED[name](tokens, Grid(1, 1, 2000), 3, sample=True, generator=torch.Generator().manual_seed(0))
        for tokens in (scored_tokens(scores), scored_tokens(scores.to(dtype)))
    )
    assert torch.equal(narrow, wide)


@all_strategies
def test_without_sampling_no_random_numbers_are_drawn(name: str) -> None:
    tokens = reference.random_tokens(2, 24, seed=0)
    generator = torch.Generator().manual_seed(0)
    before, global_before = generator.get_state(), torch.get_rng_state()
    STRATEGIES[name][0](Tokens(*tokens), grid_of(tokens, (4, 6)), 3, generator=generator)
    STRATEGIES[name][0](Tokens(*tokens), grid_of(tokens, (4, 6)), 3)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), global_before)


@pytest.mark.parametrize("name", ["uniform", "center", "boundary"])
def test_fixed_strategies_do_not_sample(name: str) -> None:
    tokens = reference.random_tokens(2, 24, seed=0)
    partition = functools.partial(STRATEGIES[name][0], Tokens(*tokens), grid_of(tokens, (4, 6)), 3)
    assert torch.equal(partition(sample=True), partition(sample=False))


@scored_strategies
def test_same_seed_same_targets(name: str) -> None:
    tokens = scored_tokens(torch.randn(4, 60, generator=torch.Generator().manual_seed(0)))
    partition = functools.partial(SCORED[name], tokens, Grid(1, 1, 60), 3, sample=True)
    first, second, third = (partition(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert (first.diff(dim=1) > 0).all()
    torch.manual_seed(1)
    global_first = partition()
    torch.manual_seed(1)
    assert torch.equal(partition(), global_first)
    assert not torch.equal(partition(), global_first)


@scored_strategies
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("source", ["global", "one", "per clip"])
def test_one_sampled_target_follows_the_softmax(name: str, dtype: torch.dtype, source: str) -> None:
    rows = 20_000
    torch.manual_seed(0)
    generator = {
        "global": None,
        "one": torch.Generator().manual_seed(0),
        "per clip": [torch.Generator().manual_seed(clip) for clip in range(4)],
    }[source]
    scores = torch.tensor([0.0, 0.5, 2.0, 1.0, 0.0]).to(dtype)
    tokens = scored_tokens(scores.expand(rows, -1))
    targets = SCORED[name](tokens, Grid(1, 1, 5), 5, sample=True, generator=generator)
    frequency = torch.bincount(targets.flatten(), minlength=5) / rows
    expected = scores.float().softmax(0)
    assert ((frequency - expected).abs() < 4 * (expected * (1 - expected) / rows).sqrt()).all()


@scored_strategies
def test_two_sampled_targets_are_drawn_without_replacement(name: str) -> None:
    rows = 20_000
    scores = torch.tensor([0.0, 0.5, 2.0, 1.0])
    tokens = scored_tokens(scores.expand(rows, -1))
    targets = SCORED[name](tokens, Grid(1, 1, 4), 2, sample=True, generator=torch.Generator().manual_seed(1))
    counts = Counter(map(tuple, targets.tolist()))
    p = scores.double().softmax(0).tolist()
    assert sum(counts[pair] for pair in combinations(range(4), 2)) == rows
    for i, j in combinations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert abs(counts[i, j] / rows - expected) < 4 * (expected * (1 - expected) / rows) ** 0.5


@scored_strategies
def test_rows_of_one_batch_draw_independently(name: str) -> None:
    tokens = scored_tokens(torch.zeros(4000, 4))
    targets = SCORED[name](tokens, Grid(1, 1, 4), 4, sample=True, generator=torch.Generator().manual_seed(0))
    pairs = Counter(zip(targets[::2, 0].tolist(), targets[1::2, 0].tolist(), strict=True))
    assert all(abs(pairs[i, j] / 2000 - 1 / 16) < 0.022 for i in range(4) for j in range(4))


@scored_strategies
@pytest.mark.parametrize("windows", [1, 3])
def test_one_generator_per_clip_makes_draws_independent_of_other_clips(name: str, windows: int) -> None:
    scores = torch.randn(4 * windows, 30, generator=torch.Generator().manual_seed(0))

    def draw(clips: list[int]) -> Tensor:
        rows = torch.cat([scores[clip * windows : (clip + 1) * windows] for clip in clips])
        generators = [torch.Generator().manual_seed(100 + clip) for clip in clips]
        return SCORED[name](scored_tokens(rows), Grid(1, 1, 30), 3, sample=True, generator=generators)

    together = draw([0, 1, 2, 3])
    assert torch.equal(draw([2]), together[2 * windows : 3 * windows])
    assert torch.equal(draw([3, 0])[:windows], together[3 * windows :])
    assert torch.equal(draw([3, 0])[windows:], together[:windows])


@scored_strategies
def test_generators_that_do_not_divide_the_rows_are_an_error(name: str) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    with pytest.raises(ValueError, match=r"(?s)3.*4|4.*3"):
        SCORED[name](scored_tokens(torch.zeros(4, 6)), Grid(1, 1, 6), 2, sample=True, generator=generators)


@scored_strategies
def test_missing_scores_are_an_error_that_names_them(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SCORED[name](full_frames(2, 1, 2, 3), Grid(1, 2, 3), 2)


@pytest.mark.parametrize("name", ["uniform", "motion", "saliency"])
def test_strategies_without_areas_need_no_grid(name: str) -> None:
    tokens = Tokens(*reference.random_tokens(2, 31, seed=0))
    assert torch.equal(STRATEGIES[name][0](tokens, None, 3), STRATEGIES[name][0](tokens, Grid(2, 4, 6), 3))


@pytest.mark.parametrize("name", ["center", "boundary"])
def test_strategies_with_areas_need_a_grid(name: str) -> None:
    with pytest.raises(ValueError, match=r"grid.*None.*Grid\(T, H, W\)"):
        STRATEGIES[name][0](Tokens(*reference.random_tokens(2, 12, seed=0)), None, 3)


@all_strategies
@pytest.mark.parametrize("partition_factor", [0, -2])
def test_partition_factor_below_one_is_an_error(name: str, partition_factor: int) -> None:
    tokens = reference.random_tokens(2, 12, seed=0)
    with pytest.raises(ValueError, match=rf"partition_factor.*{partition_factor}"):
        STRATEGIES[name][0](Tokens(*tokens), grid_of(tokens, (4, 6)), partition_factor)


@pytest.mark.parametrize(("partition", "inside"), [(center_partition, 3), (boundary_partition, 1)])
def test_prefix_tokens_are_outside_the_center(partition, inside):
    grid = FeatureGrid(4, 4, prefix=1)
    tokens = Tokens.from_features(torch.zeros(1, 1, *grid.shape, 3), grid)
    targets = partition(tokens, Grid(1, 4, 4), 4)[0].tolist()  # 5 of 17
    middle = {1 + 4 * y + x for y in (1, 2) for x in (1, 2)}
    assert len(targets) == 5
    assert len(middle.intersection(targets)) == inside

"""Random and uniform choices, pooling and ToMe keep to budgets, and average what they say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compressors.loops import merge_loops
from vtm.compressors import Clip, keep_all, pool, random_frames, random_tokens, tome, uniform_frames

ALL = {
    "random_tokens": random_tokens,
    "random_frames": random_frames,
    "uniform_frames": uniform_frames,
    "pool": pool,
    "tome": tome,
    "tome per clip": lambda clip, *, budget: tome(clip, budget=budget, per="clip"),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(5, 4, 6), (1, 1, 1), (2, 3, 3)])
def test_budgets_hold_and_all_tokens_are_kept_if_they_fit(name: str, shape: tuple) -> None:
    clip = Clip(draw(*shape, 3))
    frame = shape[1] * shape[2]
    for budget in {frame, clip.num_tokens // 2, clip.num_tokens - 1, 1.0} - {0}:
        if budget >= max(frame, shape[0]):
            result = ALL[name](clip, budget=budget)
            assert 0 < len(result.tokens) <= budget
            t, y, x = result.position.T
            flat = (t * shape[1] + y) * shape[2] + x
            assert (flat.diff() > 0).all()
            assert torch.equal(result.index[flat], torch.arange(len(flat)))
            assert torch.equal(result.size, torch.bincount(result.index[result.index >= 0]))
            assert torch.equal(result.apply(clip.tokens), result.tokens)
    for budget in (clip.num_tokens, 10**6, float(shape[0])):
        result = ALL[name](clip, budget=budget)
        assert result.tokens.data_ptr() == clip.tokens.data_ptr()
        assert torch.equal(result.tokens, keep_all(clip).tokens)


def test_random_choices_depend_on_the_seed_only() -> None:
    clip, other = Clip(draw(8, 2, 3, 4)), Clip(draw(8, 2, 3, 4, seed=1))
    for choose in (random_tokens, random_frames):
        first = choose(clip, budget=12)
        assert torch.equal(first.index, choose(other, budget=12).index)
        assert len({tuple(choose(clip, budget=12, seed=seed).index.tolist()) for seed in range(20)}) > 10
        assert len(first.tokens) == 12
    counts = sum((random_tokens(clip, budget=12, seed=seed).index >= 0).int() for seed in range(400))
    assert (counts - 100).abs().max() < 40  # about five standard deviations


def test_uniform_frames_are_in_the_middle_of_equal_parts() -> None:
    clip = Clip(draw(10, 1, 2, 3))
    for count, frames in ((1, [5]), (2, [2, 7]), (3, [1, 5, 8]), (10, list(range(10)))):
        assert uniform_frames(clip, budget=2 * count).position[::2, 0].tolist() == frames
        assert len(uniform_frames(clip, budget=2 * count + 1).tokens) == 2 * count


def test_pooling_by_two_is_that_of_torch() -> None:
    clip = Clip(draw(3, 6, 8, 5))
    expected = F.avg_pool2d(clip.tokens.movedim(3, 1), 2).movedim(1, 3)
    result = pool(clip, budget=3 * 12)
    torch.testing.assert_close(result.tokens, expected.flatten(0, 2))
    assert result.position[:3].tolist() == [[0, 0, 0], [0, 0, 2], [0, 0, 4]]


@pytest.mark.parametrize(
    ("grid", "budget", "cells"),
    [((24, 24), 57, 56), ((24, 24), 144, 144), ((6, 12), 18, 18), ((1, 9), 4, 4), ((9, 1), 4, 4), ((5, 5), 1, 1)],
)
def test_pooling_takes_the_largest_grid_of_the_same_proportions(grid: tuple, budget: int, cells: int) -> None:
    assert len(pool(Clip(draw(1, *grid, 2)), budget=budget).tokens) == cells


@pytest.mark.parametrize("metric", ["features", "encoder"])
def test_tome_equals_the_loops(metric: str) -> None:
    clip = Clip(draw(3, 2, 4, 5), encoder=draw(3, 2, 4, 6, seed=1))
    keys = (clip.tokens if metric == "features" else clip.encoder).flatten(1, 2)
    options = {"partition": "alternate", "order": "raster", "reduce": "mean"}
    expected = [
        sorted(8 * t + n for n in members) for t in range(3) for _, members in merge_loops(keys[t], 3, **options)
    ]
    result = tome(clip, budget=11, metric=metric)
    assert [(result.index == group).nonzero().flatten().tolist() for group in range(9)] == expected
    expected = [sorted(members) for _, members in merge_loops(keys.flatten(0, 1), 11, **options)]
    result = tome(clip, budget=11, metric=metric, per="clip")
    assert [(result.index == group).nonzero().flatten().tolist() for group in range(11)] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tome_per_clip_is_matched_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip(draw(6, 3, 4, 5).to(dtype))
    expected = tome(clip, budget=20, per="clip").index
    for module in ("bipartite", "reduction"):
        monkeypatch.setattr(f"vtm.compressors.{module}.elements_at_once", lambda device: 40)
    assert torch.equal(tome(clip, budget=20, per="clip").index, expected)


def test_mistakes_are_explained() -> None:
    clip = Clip(draw(4, 2, 3, 5))
    for choose in (random_frames, uniform_frames):
        with pytest.raises(ValueError, match="a budget of 5 tokens is less than the 6 of one frame"):
            choose(clip, budget=5)
    for reduce in (pool, tome):
        with pytest.raises(ValueError, match="a budget of 3 tokens is less than one token for each of the 4 frames"):
            reduce(clip, budget=3)
    with pytest.raises(ValueError, match="expected budget > 0"):
        random_tokens(clip, budget=0)
    with pytest.raises(ValueError, match=r"a budget of 0\.01 frames of 2 × 3 tokens is less than one token"):
        random_tokens(clip, budget=0.01)
    with pytest.raises(ValueError, match="per to be one of frame, clip, got 'row'"):
        tome(clip, budget=8, per="row")
    with pytest.raises(ValueError, match="metric='encoder' needs the encoder features"):
        tome(clip, budget=8, metric="encoder")

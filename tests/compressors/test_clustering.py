"""TW-FINCH and the selection of frames equal the loops, and find planted scenes."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.compressors.loops import select_loops, tw_finch_loops
from vtm.compressors import select_frames, tw_finch

OPTIONS = {"few_clusters": 6, "few_frames": 12, "max_frames": 25}


def draw(n: int, d: int = 8, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_scenes(scenes: int, n: int = 100, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw features of equally long scenes with little noise, and the scene of each frame."""
    scene = torch.arange(n) * scenes // n
    return draw(scenes, 32, seed=seed)[scene] + 0.05 * draw(n, 32, seed=seed + 1000), scene


def clusters_of(labels: Tensor) -> list[list[int]]:
    return [(labels == label).nonzero().flatten().tolist() for label in range(int(labels.max()) + 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16, 37, 64])
@pytest.mark.parametrize("seed", range(4))
def test_partitions_equal_the_loops(n: int, seed: int) -> None:
    for features in (draw(n, seed=seed), draw_scenes(min(n, 5), n, seed=seed)[0], draw(n, seed=seed).cumsum(0)):
        assert [clusters_of(labels) for labels in tw_finch(features)] == tw_finch_loops(features)


@pytest.mark.parametrize("seed", range(10))
def test_partitions_refine_one_another_and_counts_fall(seed: int) -> None:
    partitions = tw_finch(draw(100, seed=seed))
    for fine, coarse in pairwise(partitions):
        assert fine.unique().numel() > coarse.unique().numel()
        for label in fine.unique():
            assert coarse[fine == label].unique().numel() == 1
    assert all(torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1)) for labels in partitions)


@pytest.mark.parametrize("scenes", [2, 5, 9, 16])
def test_clusters_of_planted_scenes_are_pure(scenes: int) -> None:
    for seed in range(5):
        features, scene = draw_scenes(scenes, seed=seed)
        for labels in tw_finch(features):
            if labels.unique().numel() >= scenes:
                assert all(scene[labels == label].unique().numel() == 1 for label in labels.unique())


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_identical_zero_and_broken_frames_are_clustered_by_time(n: int) -> None:
    for features in (torch.ones(n, 4), torch.full((n, 4), 0.1, dtype=torch.bfloat16)):
        assert [labels.tolist() for labels in tw_finch(features)] == [[0] * n]
    for value in (0.0, float("nan"), float("inf")):
        partitions = tw_finch(torch.full((n, 4), value))
        assert [labels.tolist() for labels in partitions] == [[0] * n]


def test_a_broken_frame_does_not_spoil_the_others() -> None:
    features, scene = draw_scenes(4)
    features[10] = torch.nan
    labels = tw_finch(features)[0]
    assert all(scene[labels == label].unique().numel() == 1 for label in labels.unique())


def test_scale_and_order_of_channels_change_nothing() -> None:
    features = draw(60).float()
    expected = tw_finch(features)
    for changed in (features * 1e-18, features * 3e18, features[:, torch.randperm(8)]):
        assert all(torch.equal(a, b) for a, b in zip(tw_finch(changed), expected, strict=True))


def test_thousands_of_frames_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, scene = draw_scenes(40, 4000)
    expected = tw_finch(features)
    assert all(scene[expected[0] == label].unique().numel() == 1 for label in expected[0].unique())
    monkeypatch.setattr("vtm.compressors.clustering.elements_at_once", lambda device: 400_000)
    assert all(torch.equal(a, b) for a, b in zip(tw_finch(features), expected, strict=True))


def test_features_are_checked() -> None:
    for shape in ((0, 4), (4,), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"expected features \(n, d\)"):
            tw_finch(torch.zeros(shape))


@pytest.mark.parametrize("few_pick", ["first", "uniform"])
@pytest.mark.parametrize("level", [0, 1, 5])
@pytest.mark.parametrize("n", [1, 2, 12, 13, 14, 31, 64])
def test_selected_frames_equal_the_loops(n: int, level: int, few_pick: str) -> None:
    for features in (draw(n), draw_scenes(min(n, 4), n)[0]):
        for options in (OPTIONS, {"few_clusters": 3, "few_frames": 8, "max_frames": 5}):
            frames = select_frames(features, level=level, few_pick=few_pick, **options)
            assert frames.tolist() == select_loops(features, level=level, few_pick=few_pick, **options)
            name = {0: "largest", 1: "second_largest"}.get(level)
            if name is not None:
                assert torch.equal(select_frames(features, level=name, few_pick=few_pick, **options), frames)


@pytest.mark.parametrize("seed", range(5))
def test_selection_is_sorted_unique_and_bounded(seed: int) -> None:
    features = draw(100, seed=seed)
    for level, labels in enumerate(tw_finch(features)):
        frames = select_frames(features, level=level)
        assert torch.equal(frames, frames.unique())
        assert len(frames) <= 25
        clusters = labels.unique().numel()
        if 6 < clusters <= 25:
            assert torch.equal(labels[frames].sort().values, torch.arange(clusters))
        if clusters <= 6:
            assert len(frames) <= 12


def test_few_clusters_supply_their_first_or_evenly_spaced_frames() -> None:
    features = torch.eye(3).repeat_interleave(torch.tensor([8, 2, 10]), dim=0)
    assert select_frames(features, few_pick="first").tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]
    assert select_frames(features, few_pick="uniform").tolist() == [1, 3, 5, 7, 8, 9, 11, 13, 16, 18]


def test_all_frames_of_a_short_video_are_selected() -> None:
    for n in (1, 2, 3, 12):
        assert select_frames(draw(n)).tolist() == list(range(n))
        assert select_frames(torch.ones(n, 4)).tolist() == list(range(n))
    assert select_frames(draw(9), max_frames=3).tolist() == [0, 4, 8]
    assert select_frames(draw(9), max_frames=1).tolist() == [0]


def test_options_are_checked() -> None:
    for options in ({"few_clusters": 13}, {"max_frames": 0}, {"few_frames": 0, "few_clusters": 0}):
        with pytest.raises(ValueError, match="expected 0 <= few_clusters <= few_frames"):
            select_frames(draw(20), **options)
    with pytest.raises(ValueError, match="level to be one of largest, second_largest, got 'third'"):
        select_frames(draw(20), level="third")
    with pytest.raises(ValueError, match="level to be a name or a rank >= 0, got -1"):
        select_frames(draw(20), level=-1)
    with pytest.raises(ValueError, match="few_pick to be one of first, uniform, got 'last'"):
        select_frames(draw(20), few_pick="last")
    with pytest.raises(ValueError, match=r"expected features \(n, d\)"):
        select_frames(torch.zeros(0, 4))

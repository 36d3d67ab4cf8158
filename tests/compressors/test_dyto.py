"""DYTO equals the loops in frames, groups, order and values; budgets, sizes and mistakes."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.compressors.loops import merge_loops, reduce_loops, select_loops
from vtm.compressors import Clip, Compressed, budget_rounds, dyntok, dyto
from vtm.compressors.bipartite import match_halves, merge_rounds

RELEASED = {
    "few_pick": "first",
    "descriptor": "cls",
    "partition": "halves",
    "metric": "head_mean",
    "reduce": "max",
    "order": "score",
}
PRESETS = {"released": RELEASED, "ours": {}}
TABLE = {7: 525, 8: 460, 10: 368, 12: 306, 13: 283, 16: 230, 18: 204, 20: 184, 23: 160, 24: 153, 25: 147}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_clip(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Clip:
    t = shape[0]
    drawn = [draw(*size, seed=seed + i, dtype=dtype) for i, size in enumerate(((*shape, 32), (*shape, 6), (t, 5)))]
    return Clip(drawn[0], encoder=drawn[1], frames=drawn[2])


def groups_of(result: Compressed) -> list[list[int]]:
    return [(result.index == group).nonzero().flatten().tolist() for group in range(len(result.size))]


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("order", ["raster", "score"])
@pytest.mark.parametrize("partition", ["alternate", "halves"])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 12, 13, 31])
def test_rounds_equal_the_loops(num_tokens: int, partition: str, order: str, reduce: str) -> None:
    keys = draw(3, num_tokens, 32)
    for target in sorted({1, 2, num_tokens // 3 + 1, num_tokens}):
        for heads in (None, 4):
            options = {"partition": partition, "order": order, "reduce": reduce, "heads": heads}
            grouping = merge_rounds(keys, target, **options)
            assert torch.equal(
                merge_rounds(keys, target, rows=torch.tensor([2, 0]), **options).index, grouping.index[[2, 0]]
            )
            for row in range(3):
                expected = merge_loops(keys[row], target, **options)
                assert grouping.anchor[row].tolist() == [anchor for anchor, _ in expected]
                for group, (_, members) in enumerate(expected):
                    assert (grouping.index[row] == group).nonzero().flatten().tolist() == sorted(members)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("frames", [1, 2, 13, 40])
def test_dyto_equals_the_loops(frames: int, preset: str) -> None:
    clip = draw_clip(frames, 4, 6)
    options = {"heads": 4, **PRESETS[preset]}
    result = dyto(clip, budget=6.39, **options)
    released = preset == "released"
    assert clip.encoder is not None
    assert clip.frames is not None
    descriptors = clip.frames if released else torch.stack([x.flatten(0, 1).mean(0) for x in clip.encoder])
    kept = select_loops(
        descriptors,
        level=1,
        few_clusters=6,
        few_frames=12,
        few_pick="first" if released else "uniform",
        max_frames=25,
    )
    groups, positions = [], []
    for t in kept:
        keys = (clip.tokens if released else clip.encoder)[t].flatten(0, 1)
        names = ("halves", "score", "max", 4) if released else ("alternate", "raster", "mean", None)
        partition, order, reduce, heads = names
        target = int(6.39 * 24) // len(kept)
        merged = merge_loops(keys, target, partition=partition, order=order, reduce=reduce, heads=heads)
        groups += [sorted(t * 24 + n for n in members) for _, members in merged]
        positions += [[t, anchor // 6, anchor % 6] for anchor, _ in merged]
    assert groups_of(result) == groups
    assert result.position.tolist() == positions
    assert result.size.tolist() == [len(members) for members in groups]
    assert result.reduce == ("max" if released else "mean")
    values = [reduce_loops(clip.tokens.flatten(0, 2), members, result.reduce) for members in groups]
    torch.testing.assert_close(result.tokens, torch.stack(values))


def test_the_schedule_is_that_of_the_released_code() -> None:
    for frames in range(1, 26):
        left = 576 - sum(rounds := budget_rounds(576, 3680 // frames))
        assert left == TABLE.get(frames, left)
        assert frames > 6 or rounds == []
        assert frames <= 6 or 3667 <= frames * left <= 3680
        assert len(rounds) == (0 if frames <= 6 else 1 if frames <= 12 else 2)
    assert [36 - sum(budget_rounds(36, 230 // frames)) for frames in (7, 25)] == [32, 9]
    assert budget_rounds(1, 1) == budget_rounds(0, 3) == []
    assert budget_rounds(7, 1) == [3, 2, 1]
    with pytest.raises(ValueError, match="target >= 1, got 5 and 0"):
        budget_rounds(5, 0)


def test_a_match_worked_out_by_hand() -> None:
    angles = torch.tensor([0.0, 50.0, 91.0, 180.0, 10.0, 95.0, 61.0, 300.0]).deg2rad()
    keys = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    grouping = match_halves(keys, 2, partition="halves", order="score")  # 2 -> 5 (4°) and 0 -> 4 (10°)
    assert grouping.anchor.tolist() == [[1, 3, 4, 5, 6, 7]]
    assert grouping.index.tolist() == [[2, 0, 3, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("frames", [1, 8, 20])
def test_a_budget_of_all_tokens_returns_the_tokens_themselves(frames: int, preset: str) -> None:
    clip = draw_clip(frames, 3, 4, dtype=torch.bfloat16)
    for budget in (frames * 12, 10_000, float(frames)):
        result = dyto(clip, budget=budget, **PRESETS[preset])
        assert torch.equal(result.tokens, clip.tokens.flatten(0, 2))
        assert torch.equal(result.index, torch.arange(clip.num_tokens))


@pytest.mark.parametrize("preset", PRESETS)
def test_budgets_and_caps_hold_and_sizes_add_up(preset: str) -> None:
    clip = draw_clip(60, 3, 4)
    for budget, most in ((25, 25), (100, 25), (6.39, 9), (1e6, 7)):
        result = dyto(clip, budget=budget, max_frames=most, **PRESETS[preset])
        assert len(result.tokens) <= (budget if isinstance(budget, int) else budget * 12)
        kept = result.position[:, 0].unique()
        assert len(kept) <= most
        assert result.size.sum() == 12 * len(kept)
        assert torch.equal((result.index >= 0).view(60, 12).all(1).nonzero().flatten(), kept)
        assert torch.equal(result.apply(clip.tokens), result.tokens)
        token = torch.arange(clip.num_tokens)[result.index >= 0]
        assert torch.equal(result.position[result.index[token], 0], token // 12)  # groups stay in their frame


def test_raster_order_is_that_of_the_anchors() -> None:
    t, y, x = dyto(draw_clip(30, 4, 6), budget=40).position.T
    assert ((t * 4 + y) * 6 + x).diff().min() > 0


def test_a_maximum_is_at_least_every_member() -> None:
    clip = draw_clip(10, 4, 6)
    result = dyto(clip, budget=70, reduce="max")
    assert (result.tokens[result.index] >= clip.tokens.flatten(0, 2)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_fp32(dtype: torch.dtype) -> None:
    clip = draw_clip(14, 6, 7, dtype=dtype)
    assert clip.encoder is not None
    exact = Clip(clip.tokens.double(), encoder=clip.encoder.double())
    for metric in ("encoder", "head_mean"):
        result = dyto(clip, budget=60, metric=metric)
        assert torch.equal(result.index, dyto(exact, budget=60, metric=metric).index)
        assert result.tokens.dtype == dtype


def test_autocast_changes_nothing() -> None:
    clip = draw_clip(30, 4, 6, dtype=torch.float32)
    for compress in (partial(dyto, budget=60), partial(dyto, budget=60, **RELEASED), partial(dyntok, threshold=0.3)):
        expected = compress(clip)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            result = compress(clip)
        assert torch.equal(result.index, expected.index)
        assert torch.equal(result.tokens, expected.tokens)


def test_scale_and_order_of_channels_change_nothing() -> None:
    clip = draw_clip(30, 4, 6, dtype=torch.float32)
    assert clip.encoder is not None
    expected = dyto(clip, budget=60).index
    for changed in (clip.encoder * 1e-25, clip.encoder * 1e25, clip.encoder[..., [5, 2, 0, 1, 4, 3]]):
        assert torch.equal(dyto(Clip(clip.tokens, encoder=changed), budget=60).index, expected)


def test_one_frame_and_identical_frames_are_merged() -> None:
    for frames in (1, 2, 3):
        encoder = draw(1, 4, 6, 5).expand(frames, -1, -1, -1)
        result = dyto(Clip(draw(frames, 4, 6, 32), encoder=encoder), budget=2 * frames)
        assert result.size.tolist() == result.size.view(frames, 2)[0].tolist() * frames
    point = dyto(Clip(draw(1, 1, 1, 4), encoder=draw(1, 1, 1, 4)), budget=1)
    assert point.index.tolist() == [0]


def test_zero_and_broken_features_are_merged_last() -> None:
    clip = draw_clip(2, 4, 6)
    assert clip.encoder is not None
    clip.encoder[0, 0, 0] = torch.nan
    clip.encoder[1] = 0
    result = dyto(clip, budget=26)
    assert (result.index == result.index[0]).sum() == 1
    assert len(result.tokens) == 26


def test_an_hour_of_frames_is_reduced() -> None:
    scenes = draw(30, 1, 1, 8)[torch.arange(3600) // 120]
    encoder = scenes + 0.05 * draw(3600, 1, 1, 8, seed=1)
    result = dyto(Clip(draw(3600, 1, 1, 3, dtype=torch.float32), encoder=encoder), budget=20, max_frames=20)
    assert len(result.tokens) == 20


def test_large_frames_and_clips_are_merged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = draw(2, 30, 6).float()
    options = {"partition": "alternate", "order": "raster", "reduce": "mean"}
    expected = merge_rounds(keys, 9, **options)
    for module in ("bipartite", "reduction"):
        monkeypatch.setattr(f"vtm.compressors.{module}.elements_at_once", lambda device: 20)
    result = merge_rounds(keys, 9, **options)
    assert torch.equal(result.index, expected.index)
    assert torch.equal(result.anchor, expected.anchor)


def test_gradients_reach_the_tokens_that_are_kept() -> None:
    clip = draw_clip(20, 2, 3)
    clip.tokens.requires_grad_()
    result = dyto(clip, budget=30)
    result.tokens.sum().backward()
    expected = torch.where(result.index >= 0, (1 / result.size.double())[result.index], 0)
    torch.testing.assert_close(clip.tokens.grad[..., 0].flatten(), expected)


def test_mistakes_are_explained() -> None:
    clip = draw_clip(20, 2, 3)
    with pytest.raises(ValueError, match=r"needs the CLS token of each frame.*use descriptor='mean'"):
        dyto(Clip(clip.tokens, encoder=clip.encoder), budget=30, **RELEASED)
    with pytest.raises(ValueError, match="descriptor='mean' needs the encoder features"):
        dyto(Clip(clip.tokens, frames=clip.frames), budget=30, metric="features")
    with pytest.raises(ValueError, match="metric='encoder' needs the encoder features"):
        dyto(Clip(clip.tokens, frames=clip.frames), budget=30, descriptor="cls")
    with pytest.raises(ValueError, match="heads to divide the width of the tokens, 32, got 5"):
        dyto(clip, budget=30, metric="head_mean", heads=5)
    with pytest.raises(ValueError, match=r"a budget of 3 tokens is less than one .* the \d+ frames kept"):
        dyto(clip, budget=3)
    for budget in (0, -1, 0.0, float("nan"), float("inf"), True, "6"):
        with pytest.raises(ValueError, match="expected budget > 0"):
            dyto(clip, budget=budget)
    for name in ("descriptor", "partition", "metric", "reduce", "order", "level", "few_pick"):
        with pytest.raises(ValueError, match=f"expected {name} to be one of .*, got 'x'"):
            dyto(clip, budget=30, **{name: "x"})

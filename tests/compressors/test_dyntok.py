"""DynTok equals a triple loop, never crosses a line, follows its threshold, and meets a ratio."""

import pytest
import torch
from torch import Tensor

from tests.compressors.loops import dyntok_loops, reduce_loops
from vtm.compressors import Clip, calibrate, dyntok, neighbor_similarity

AXES = ["row", "column", "time"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draw_clip(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Clip:
    """Draw tokens of width 7 and encoder features of width 3, which are often similar."""
    return Clip(draw(*shape, 7, seed=seed, dtype=dtype), encoder=draw(*shape, 3, seed=seed + 1, dtype=dtype))


def groups_of(index: Tensor) -> list[list[int]]:
    return [(index == group).nonzero().flatten().tolist() for group in range(int(index.max()) + 1)]


@pytest.mark.parametrize("threshold", [-1.1, -0.5, 0.0, 0.3, 0.6, 0.95, 1.1])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 1, 6), (4, 3, 1)])
def test_dyntok_equals_the_loops(shape: tuple, axis: str, threshold: float) -> None:
    clip = draw_clip(*shape)
    expected = dyntok_loops(clip.encoder, threshold, axis=axis)
    for reduce in ("mean", "max"):
        result = dyntok(clip, threshold=threshold, axis=axis, reduce=reduce)
        assert groups_of(result.index) == expected
        assert result.size.tolist() == [len(members) for members in expected]
        values = [reduce_loops(clip.tokens.flatten(0, 2), members, reduce) for members in expected]
        torch.testing.assert_close(result.tokens, torch.stack(values))
        t, h, w = result.position.T
        assert ((t * shape[1] + h) * shape[2] + w).tolist() == [members[0] for members in expected]


def test_a_planted_row_has_three_groups() -> None:
    row = torch.eye(3)[[0, 0, 0, 1, 1, 2]].view(1, 1, 6, 3)
    result = dyntok(Clip(draw(1, 1, 6, 4), encoder=row), threshold=0.6)
    assert result.index.tolist() == [0, 0, 0, 1, 1, 2]
    assert result.position.tolist() == [[0, 0, 0], [0, 0, 3], [0, 0, 5]]


def test_equal_features_leave_one_token_per_line() -> None:
    clip = Clip(draw(3, 4, 5, 2), encoder=torch.ones(3, 4, 5, 6))
    for axis, lines in (("row", 12), ("column", 15), ("time", 20)):
        assert len(dyntok(clip, threshold=0.99, axis=axis).tokens) == lines


def test_a_threshold_of_one_returns_the_tokens_themselves() -> None:
    clip = Clip(draw(3, 4, 5, 2, dtype=torch.bfloat16), encoder=torch.ones(3, 4, 5, 6) / 3)
    result = dyntok(clip, threshold=1.0)
    assert torch.equal(result.tokens, clip.tokens.flatten(0, 2))
    assert result.tokens.data_ptr() == clip.tokens.data_ptr()


def test_fewer_tokens_are_left_at_lower_thresholds() -> None:
    clip = draw_clip(3, 6, 8)
    counts = [len(dyntok(clip, threshold=0.1 * step).tokens) for step in range(-11, 12)]
    assert counts == sorted(counts)
    assert counts[0] == 18
    assert counts[-1] == 144


def test_scaling_and_permuting_the_channels_of_the_encoder_changes_nothing() -> None:
    clip = draw_clip(3, 6, 8, dtype=torch.float32)
    assert clip.encoder is not None
    expected = dyntok(clip, threshold=0.5).index
    for changed in (clip.encoder * 1e-25, clip.encoder * 1e25, clip.encoder[..., [2, 0, 1]]):
        assert torch.equal(dyntok(Clip(clip.tokens, encoder=changed), threshold=0.5).index, expected)


def test_a_frame_changes_its_own_groups_only() -> None:
    clip = draw_clip(4, 3, 5)
    encoder = clip.encoder.clone()
    encoder[2] = draw(3, 5, 3, seed=9)
    before, after = (dyntok(Clip(clip.tokens, encoder=x), threshold=0.3) for x in (clip.encoder, encoder))
    for t in (0, 1, 3):
        here = [result.tokens[result.position[:, 0] == t] for result in (before, after)]
        assert torch.equal(*here)
    flipped = dyntok(Clip(clip.tokens.flip(0), encoder=clip.encoder.flip(0)), threshold=0.3)
    assert torch.equal(flipped.tokens[flipped.position[:, 0] == 0], before.tokens[before.position[:, 0] == 3])


def test_zero_and_broken_tokens_stay_alone() -> None:
    encoder = torch.ones(1, 1, 8, 4)
    encoder[0, 0, 2] = 0
    encoder[0, 0, 5, 1] = torch.nan
    result = dyntok(Clip(draw(1, 1, 8, 2), encoder=encoder), threshold=0.0)
    assert result.index.tolist() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert neighbor_similarity(encoder)[0, 0, 2:4].tolist() == [0, 0]
    encoder[0, 0, 5, 1] = torch.inf
    assert torch.equal(dyntok(Clip(draw(1, 1, 8, 2), encoder=encoder), threshold=0.0).index, result.index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_and_averaged_in_fp32(dtype: torch.dtype) -> None:
    clip = draw_clip(5, 8, 9, dtype=dtype)
    assert clip.encoder is not None
    exact = dyntok(Clip(clip.tokens.double(), encoder=clip.encoder.double()), threshold=0.5)
    result = dyntok(clip, threshold=0.5)
    assert torch.equal(result.index, exact.index)
    assert result.tokens.dtype == dtype
    error = (result.tokens.double() - exact.tokens).abs()  # at most that of rounding once
    assert (error <= 0.501 * torch.finfo(dtype).eps * exact.tokens.abs() + 1e-7).all()


def test_large_clips_are_compared_and_averaged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        clip = draw_clip(7, 5, 6, dtype=dtype)
        expected = {axis: dyntok(clip, threshold=0.2, axis=axis, reduce="max") for axis in AXES}
        means = dyntok(clip, threshold=0.2).tokens
        with monkeypatch.context() as patch:
            for module in ("similarity", "reduction"):
                patch.setattr(f"vtm.compressors.{module}.elements_at_once", lambda device: 40)
            for axis in AXES:
                result = dyntok(clip, threshold=0.2, axis=axis, reduce="max")
                assert torch.equal(result.index, expected[axis].index)
                assert torch.equal(result.tokens, expected[axis].tokens)
            torch.testing.assert_close(dyntok(clip, threshold=0.2).tokens, means)


def test_ways_of_other_devices_and_libraries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = draw_clip(7, 5, 6)
    expected = [dyntok(clip, threshold=0.2, axis=axis) for axis in AXES]
    monkeypatch.setattr(
        "vtm.compressors.similarity._sampled_products",
        lambda x, token, before: (x.square().sum(1), (x[token] * x[before]).sum(1)),
    )
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    for axis, one in zip(AXES, expected, strict=True):
        result = dyntok(clip, threshold=0.2, axis=axis)
        assert torch.equal(result.index, one.index)
        torch.testing.assert_close(result.tokens, one.tokens)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("ratio", [0.25, 0.444, 0.7, 1.0])
def test_a_target_ratio_is_met(ratio: float, axis: str) -> None:
    clip = draw_clip(6, 7, 14)
    kept = len(dyntok(clip, target_ratio=ratio, axis=axis).tokens) / clip.num_tokens
    assert abs(kept - ratio) <= 0.5 / clip.num_tokens


def test_the_least_ratio_is_one_token_per_row() -> None:
    clip = draw_clip(2, 3, 4)
    assert len(dyntok(clip, target_ratio=0.25).tokens) == 6
    with pytest.raises(ValueError, match=r"between 0\.25, the first of all lines .* and 1, got 0\.2"):
        dyntok(clip, target_ratio=0.2)
    for ratio in (0.0, 1.2, float("nan")):
        with pytest.raises(ValueError, match="expected the ratio"):
            dyntok(clip, target_ratio=ratio)


def test_calibration_meets_the_ratio_per_clip_and_pooled() -> None:
    clips = [draw_clip(3, 4, 14, seed=seed) for seed in range(4)]
    clips[1] = Clip(clips[1].tokens, encoder=clips[1].encoder + 2)
    found = calibrate(iter(clips), 0.444)
    for clip, threshold in zip(clips, found.per_clip, strict=True):
        assert len(dyntok(clip, threshold=threshold).tokens) == round(0.444 * clip.num_tokens)
    kept = [len(dyntok(clip, threshold=found.pooled).tokens) / clip.num_tokens for clip in clips]
    assert found.kept == pytest.approx(kept)
    assert sum(kept) / 4 == pytest.approx(0.444, abs=1 / (4 * 168))
    assert kept[1] < min(kept[0], kept[2], kept[3])


def test_other_features_are_reduced_alike_and_sizes_add_up() -> None:
    clip = draw_clip(3, 4, 5)
    result = dyntok(clip, threshold=0.2)
    assert torch.equal(result.apply(clip.tokens), result.tokens)
    assert result.apply(draw(3, 4, 5, 2)).shape == (len(result.tokens), 2)
    assert result.size.sum() == clip.num_tokens
    torch.testing.assert_close((result.tokens * result.size[:, None]).sum(0), clip.tokens.sum((0, 1, 2)))
    with pytest.raises(ValueError, match="60 tokens of the clip"):
        result.apply(draw(2, 4, 5, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_of_a_mean_is_one_over_the_size(dtype: torch.dtype) -> None:
    clip = draw_clip(3, 4, 5, dtype=dtype)
    clip.tokens.requires_grad_()
    result = dyntok(clip, threshold=0.2)
    result.tokens.sum().backward()
    expected = (1 / result.size.double())[result.index].view(3, 4, 5, 1).expand(-1, -1, -1, 7)
    torch.testing.assert_close(clip.tokens.grad, expected.to(dtype))


def test_the_gradient_of_a_maximum_goes_to_the_largest() -> None:
    tokens = torch.tensor([3.0, 5.0, 5.0, 1.0]).view(1, 1, 4, 1).requires_grad_()
    encoder = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(1, 1, 4, 2)
    dyntok(Clip(tokens, encoder=encoder), threshold=0.5, reduce="max").tokens.sum().backward()
    assert tokens.grad.flatten().tolist() == [0, 0.5, 0.5, 1]


def test_mistakes_are_explained() -> None:
    clip = draw_clip(2, 2, 2)
    for options in ({}, {"threshold": 0.5, "target_ratio": 0.5}):
        with pytest.raises(ValueError, match="expected one of threshold and target_ratio"):
            dyntok(clip, **options)
    with pytest.raises(ValueError, match="the clip has none"):
        dyntok(Clip(clip.tokens), threshold=0.5)
    with pytest.raises(ValueError, match="got nan"):
        dyntok(clip, threshold=float("nan"))
    with pytest.raises(ValueError, match="axis to be one of time, column, row, got 'x'"):
        dyntok(clip, threshold=0.5, axis="x")
    with pytest.raises(ValueError, match="reduce to be one of mean, max, got 'sum'"):
        dyntok(clip, threshold=0.5, reduce="sum")
    with pytest.raises(ValueError, match="at least one clip"):
        calibrate([], 0.5)


def test_clips_are_checked() -> None:
    with pytest.raises(ValueError, match=r"of one video.*got shape \(1, 2, 3, 4, 5\); pass one Clip per video"):
        Clip(torch.zeros(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="at least one token"):
        Clip(torch.zeros(0, 3, 4, 5))
    with pytest.raises(ValueError, match=r"expected encoder .* = \(2, 3, 4\), got \(2, 3, 5, 6\)"):
        Clip(torch.zeros(2, 3, 4, 5), encoder=torch.zeros(2, 3, 5, 6))
    with pytest.raises(ValueError, match=r"expected frames .* t = 2, got \(3, 6\)"):
        Clip(torch.zeros(2, 3, 4, 5), frames=torch.zeros(3, 6))
    with pytest.raises(TypeError, match=r"expected tokens of a floating-point dtype, got torch\.int64"):
        Clip(torch.zeros(2, 3, 4, 5, dtype=torch.int64))

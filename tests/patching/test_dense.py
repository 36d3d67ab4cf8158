"""Merging inside an image encoder: dense features, nothing changed at count 0, and mistakes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vtm.patching import (
    DenseMerge,
    drop_random,
    drop_similar,
    merge_hybrid,
    merge_random,
    merge_similar,
    patch,
    recording,
)


def make(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
    return timm.create_model(name, **sizes, **options).eval()


def merging(count: int = 4, **changes: Any) -> DenseMerge:
    options = {"shape": "constant", "proportional": True, "reduce": merge_similar}
    return DenseMerge(count=count, **(options | changes))


@pytest.fixture
def frames() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "vit_base_patch14_reg4_dinov2"])
@torch.no_grad()
def test_the_features_of_a_token_are_those_of_its_group(name, frames):
    options = {"patch_size": 16} if "dinov2" in name else {}
    model = make(name, **options)
    plain = model.forward_features(frames)
    model = merging()(model)
    features = model.forward_features(frames)
    assert features.shape == plain.shape
    with recording(model) as trace:
        left = type(model).forward_features(model, frames)
    grouping = trace.clip_grouping()
    assert left.shape[1] == grouping.num_groups < plain.shape[1]
    for clip in range(2):
        for token in range(plain.shape[1]):
            assert torch.equal(features[clip, token], left[clip, grouping.index[clip, token]])
    prefix = model.num_prefix_tokens
    assert (grouping.index[:, :prefix] == torch.arange(prefix)).all()  # CLS and registers stay alone
    assert (grouping.index[:, prefix:] >= prefix).all()


@torch.no_grad()
def test_count_zero_changes_no_bit(frames):
    model = make()
    plain = model.forward_features(frames)
    assert torch.equal(merging(0)(model).forward_features(frames), plain)


@torch.no_grad()
def test_identical_tokens_are_merged_without_error(frames):
    model = make(pos_embed="none").double()
    still = frames.double()[:, :, :16, :16].repeat(1, 1, 4, 4)  # 16 times the same patch
    plain = model.forward_features(still)
    torch.testing.assert_close(merging()(model).forward_features(still), plain, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_patched_encoder_is_copied_and_pickled(frames):
    model = merging()(make())
    expected = model.forward_features(frames)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.forward_features.model is other
        assert torch.equal(other.forward_features(frames), expected)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "merge_similar-constant4"),
        ({"count": 0}, ""),
        ({"shape": "decreasing", "proportional": False}, "merge_similar-decreasing4-unweighted"),
        ({"reduce": partial(drop_similar)}, "drop_similar-constant4"),
        ({"reduce": partial(merge_hybrid, threshold=0.4)}, "merge_hybrid-threshold=0.4-constant4"),
    ],
)
def test_the_key_has_every_setting(changes, key):
    assert merging(**changes).key == key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1}, r"merge\.count as a whole number >= 0, got -1"),
        ({"count": 1.5}, r"merge\.count as a whole number >= 0, got 1\.5"),
        ({"shape": "ramp"}, r"merge\.shape to be one of constant, decreasing, increasing, got 'ramp'"),
        (
            {"reduce": partial(merge_hybrid)},
            r"merge\.reduce as a reduction .* merge_hybrid: missing a required .*threshold",
        ),
        ({"reduce": partial(patch)}, r"merge\.reduce as a reduction .* got patch: too many positional arguments"),
        ({"reduce": merge_random}, "same features again, got merge_random"),
        ({"reduce": partial(partial(drop_random))}, "same features again, got drop_random"),
    ],
)
def test_wrong_settings_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        merging(**changes)


def own_reduction(*arguments, **options):
    return merge_similar(*arguments, **options)


def test_features_of_own_reductions_have_keys_of_their_own():
    own = partial(own_reduction)
    own_reduction.__qualname__ = own_reduction.__name__ = "merge_similar"
    assert merging(reduce=own).key == f"{__name__}.merge_similar-constant4"
    with pytest.raises(ValueError, match=r"merge\.reduce as a function of a module, whose name tells features apart"):
        merging(reduce=lambda *arguments, **options: merge_similar(*arguments, **options))


@torch.no_grad()
def test_threads_do_not_disturb_each_other():
    model = merging(3)(make())
    clips = [torch.randn(8, 3, 64, 64) for _ in range(4)]
    expected = [model.forward_features(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.forward_features, 25 * clips))
    assert all(torch.equal(one, other) for one, other in zip(found, 25 * expected, strict=True))


@pytest.mark.parametrize(("count", "taken"), [(5, 13), (16, 14)])
def test_a_count_that_leaves_too_few_tokens_is_told(count, taken):
    with pytest.warns(UserWarning, match=rf"merge.count={count}: the blocks take away {taken} of 17 tokens of a frame"):
        model = merging(count)(make())
    with torch.no_grad(), recording(model) as trace:
        type(model).forward_features(model, torch.randn(1, 3, 64, 64))
    assert 17 - trace.clip_grouping().num_groups == taken


def test_a_count_that_fits_is_not_remarked(recwarn):
    merging(3)(make())
    assert not recwarn

"""Tests of the interface of a head: outputs of whole clips and of one clip, motion, sampling, inference."""

from functools import partial

import pytest
import torch
from torch import nn

from vtm.merging import (
    FeatureGrid,
    NoMerger,
    TokenMerger,
    motion_partition,
    motion_weights,
    saliency_partition,
    saliency_weights,
)
from vtm.models import VTM

HEADS = 2


LEARNABLE = partial(
    TokenMerger,
    partition=saliency_partition,
    partition_factor=3,
    merge_count=0.8,
    weighting=partial(saliency_weights, beta=2.0),
    saliency_weight=1.5,
)


def network(merge_layer=LEARNABLE, *, window_frames=(2, 4), channels=(6, 4), dropout=0.0, **options) -> VTM:
    torch.manual_seed(0)
    model = VTM(
        8, 3, window_frames=window_frames, channels=channels, num_heads=HEADS, dropout=dropout,
        merge_layer=merge_layer, **options,
    )  # fmt: skip
    for parameter in model.parameters():  # so that no bias is zero and no norm is one
        nn.init.normal_(parameter, std=0.5)
    return model.double()


def clip(batch=2, frames=4, height=2, width=2, channels=8, *, seed=1) -> torch.Tensor:
    return torch.randn(batch, frames, height, width, channels, generator=torch.Generator().manual_seed(seed)).double()


def test_clip_groupings_follow_every_token_through_all_blocks():
    model, features = network(window_frames=(2, 4), channels=(6, 4)).eval(), clip(frames=8)
    output = model(features)
    whole = output.clip_groupings()[-1]
    expected = torch.empty(2, 8 * 4, dtype=torch.int64)
    for b in range(2):
        for token in range(8 * 4):
            group, per_clip = token, 8 * 4
            for trace in output.blocks:
                windows = trace.grouping.index.shape[0] // 2
                per_window = per_clip // windows
                window, inside = divmod(group, per_window)
                group = window * trace.grouping.num_groups + int(trace.grouping.index[b * windows + window, inside])
                per_clip = windows * trace.grouping.num_groups
            expected[b, token] = group
    assert torch.equal(whole.index, expected)
    assert whole.num_groups == per_clip


@pytest.mark.parametrize("index", [0, 2])
def test_outputs_of_a_clip_do_not_depend_on_its_batch(index):
    model, features = network().eval(), clip(batch=3)
    one, alone = model(features).clip(index), model(features[index : index + 1])
    torch.testing.assert_close(one.logits, alone.logits)
    for trace, other in zip(one.blocks, alone.blocks, strict=True):
        assert torch.equal(trace.grouping.index, other.grouping.index)
        assert torch.equal(trace.grouping.anchor, other.grouping.anchor)
        assert torch.equal(trace.targets, other.targets)
        torch.testing.assert_close(trace.saliency, other.saliency)
    assert [trace.window_frames for trace in one.blocks] == [2, 4]
    assert all(map(torch.equal, one.clip_targets(), alone.clip_targets()))


def test_for_inference_drops_the_auxiliary_path_and_nothing_else():
    model, features = network().eval(), clip()
    expected, names = model(features).logits, set(model.state_dict())
    assert model.for_inference() is model
    assert names - set(model.state_dict()) == {name for name in names if ".auxiliary." in name} != set()
    assert torch.equal(model(features).logits, expected)
    assert not model.training


@pytest.mark.parametrize(
    ("changes", "needs_motion"),
    [({}, False), ({"partition": motion_partition}, True), ({"weighting": partial(motion_weights)}, True)],
    ids=["saliency", "partition by motion", "weighting by motion"],
)
def test_needs_motion(changes, needs_motion):
    assert network(partial(LEARNABLE, **changes)).needs_motion is needs_motion
    assert network(NoMerger).needs_motion is False


def test_samples_in_eval():
    assert network(partial(LEARNABLE, sample_in_eval=True)).samples_in_eval is True
    assert network().samples_in_eval is network(NoMerger).samples_in_eval is False


def test_freeze_unused_freezes_blocks_with_windows_longer_than_the_clip():
    model = network(window_frames=(2, 4, 8), channels=(6, 6, 6))
    model.freeze_unused(4, 2, 2)
    assert [all(p.requires_grad for p in block.parameters()) for block in model.blocks] == [True, True, False]


def test_features_in_another_layout_than_the_grid_are_refused():
    model = VTM(
        8,
        3,
        FeatureGrid(2, 2, prefix=1),
        window_frames=(2, 4),
        channels=(6, 4),
        num_heads=HEADS,
        dropout=0.0,
        merge_layer=NoMerger,
    )
    assert model(torch.randn(1, 4, 1, 5, 8)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match=r"with \(H, W\) = \(1, 5\), got \(1, 4, 2, 2, 8\)"):
        model(torch.randn(1, 4, 2, 2, 8))

"""A selection keeps the blocks, layers and frames it names, and refuses what a clip does not have."""

from dataclasses import replace

import pytest
import torch

from vtm.pictures.layers import Scale
from vtm.pictures.selection import Selection


def test_all_is_drawn_by_default(view):
    selected = Selection().of(view)
    assert selected.layers == ("saliency", "targets", "groups")
    assert [part.number for part in selected.parts] == [1, 2]
    assert selected.steps.tolist() == [0, 1, 2, 3]


def test_blocks_and_layers_keep_their_order_numbers_and_facts(view):
    selected = Selection(blocks=(2, 1), layers=("groups", "targets")).of(view)
    assert selected.layers == ("groups", "targets")
    assert [part.number for part in selected.parts] == [2, 1]
    assert [part.block for part in selected.parts] == [view.blocks[1], view.blocks[0]]
    first, second = (block.num_groups for block in view.blocks)
    assert [part.facts for part in selected.parts] == [
        ["4 frames at a time", f"{first} → {second} tokens"],
        ["2 frames at a time", f"36 → {first} tokens"],
    ]


@pytest.mark.parametrize(("frames", "steps"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (9, [0, 1, 2, 3])])
def test_frames_are_spread_evenly(view, frames, steps):
    assert Selection(frames=frames).of(view).steps.tolist() == steps


def test_one_scale_is_that_of_all_blocks_drawn_or_not(view):
    selected = Selection(blocks=(2,)).of(view)
    assert selected.scale == selected.parts[0].scale == Scale.of(view.blocks)


def test_a_scale_for_each_block_is_its_own_range(view):
    selected = Selection(scale="block").of(view)
    assert selected.scale is None
    assert [part.scale for part in selected.parts] == [Scale.of([block]) for block in view.blocks]
    assert selected.parts[0].scale != selected.parts[1].scale


def test_without_an_estimator_there_is_no_saliency(make_clip):
    view = make_clip(estimates=False).view()
    selected = Selection().of(view)
    assert selected.layers == ("targets", "groups")
    assert [part.scale for part in selected.parts] == [None, None]
    with pytest.raises(ValueError, match=r"layers: expected targets or groups, .* no saliency, got saliency"):
        Selection(layers=("saliency", "groups")).of(view)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": ("frames",)}, "layers: expected some of saliency,targets,groups, each at most once, got frames"),
        ({"layers": ()}, "layers: expected some of .*, got $"),
        ({"frames": 0}, "frames: expected a whole number above 0, got 0"),
        ({"scale": "both"}, "scale: expected all or block, got both"),
        ({"blocks": (3,)}, "blocks: expected some of 1,2, each at most once, got 3"),
        ({"blocks": (0, 1)}, "blocks: expected some of 1,2, each at most once, got 0,1"),
        ({"blocks": (1, 1)}, "blocks: expected some of 1,2, each at most once, got 1,1"),
    ],
)
def test_other_values_are_refused(view, choice, message):
    with pytest.raises(ValueError, match=message):
        Selection(**choice).of(view)


def with_spreads(view, *spreads):
    """Return a view whose blocks have a saliency of these standard deviations in each frame."""
    signs = torch.tensor([-1.0, 1.0]).repeat(4).expand(4, 8).reshape(4, 2, 4)
    blocks = (replace(view.blocks[0], saliency=spread * signs) for spread in spreads)
    return replace(view, blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("spreads", "opening"),
    [((0.2, 0.15, 0.02), 1), ((0.2, 0.15, 0.11), 2), ((0.1, 0.3, 0.1), 1), ((0.3, 0.1), 0), ((0.0, 0.0), 1)],
)
def test_the_first_look_is_at_the_last_block_whose_saliency_varies_within_frames(view, spreads, opening):
    assert Selection().of(with_spreads(view, *spreads)).opening == opening


def test_saliency_that_varies_only_from_frame_to_frame_does_not_count(view):
    levels = torch.arange(4.0)[:, None, None].expand(4, 3, 3)
    blocks = (view.blocks[0], replace(view.blocks[1], saliency=levels))
    assert Selection().of(replace(view, blocks=blocks)).opening == 0


def test_without_an_estimator_the_first_look_is_at_the_last_block(make_clip):
    assert Selection().of(make_clip(estimates=False).view()).opening == 1


def test_the_first_look_is_among_the_selected_blocks(view):
    assert Selection(blocks=(1,)).of(view).opening == 0

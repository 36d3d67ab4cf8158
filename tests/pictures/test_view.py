"""The view of every input token equals what loops find that follow it through two merges."""

from dataclasses import replace

import pytest
import torch

from vtm.merging import FeatureGrid


def followed(clip):
    """Follow each input token by loops: per block its group, the saliency of its token, and the targets."""
    found, position, origin = [], list(range(4 * clip.grid.num_tokens)), None
    for trace in clip.output.blocks:
        size, groups = trace.grouping.index.shape[1], trace.grouping.num_groups
        saliency = None
        if trace.saliency is not None:
            saliency = [float(trace.saliency[p // size, p % size]) for p in position]
        first = origin or position  # of a token that enters the block, the input token that gave it its position
        targets = {first[row * size + int(t)] for row, some in enumerate(trace.targets) for t in some}
        anchors = [row * size + int(a) for row, some in enumerate(trace.grouping.anchor) for a in some]
        origin = [first[anchor] for anchor in anchors]
        position = [p // size * groups + int(trace.grouping.index[p // size, p % size]) for p in position]
        found.append((list(position), saliency, targets))
    return found


@pytest.mark.parametrize("estimates", [True, False])
def test_tokens_are_followed_through_two_merges(make_clip, estimates):
    clip = make_clip(estimates=estimates)
    view = clip.view()
    assert view.grid == (3, 3)
    assert [block.window_frames for block in view.blocks] == [2, 4]
    for block, (position, saliency, targets) in zip(view.blocks, followed(clip), strict=True):
        assert block.group.shape == (4, 3, 3)
        assert block.group.flatten().tolist() == position
        assert block.num_groups == len(set(position)) < 36
        assert set(block.target.flatten().nonzero().flatten().tolist()) == targets
        if estimates:
            assert block.saliency.flatten().tolist() == saliency
        else:
            assert block.saliency is None
    assert view.blocks[1].num_groups < view.blocks[0].num_groups


def test_padded_steps_are_cut_off(make_clip):
    clip = make_clip(steps=3)
    for block, (position, saliency, targets) in zip(clip.view().blocks, followed(clip), strict=True):
        numbers = {group: number for number, group in enumerate(sorted(set(position[:27])))}
        assert block.group.flatten().tolist() == [numbers[group] for group in position[:27]]
        assert block.num_groups == len(numbers)
        assert block.saliency.flatten().tolist() == saliency[:27]
        assert set(block.target.flatten().nonzero().flatten().tolist()) == {t for t in targets if t < 27}


def test_prefix_tokens_are_left_out(make_clip):
    clip = make_clip(height=1, width=11)  # two tokens such as CLS, and 3 × 3
    view = clip.view(grid=FeatureGrid(3, 3, prefix=2))
    assert view.grid == (3, 3)
    for block, (position, saliency, targets) in zip(view.blocks, followed(clip), strict=True):
        kept = [token for token in range(44) if token % 11 >= 2]
        numbers = {group: number for number, group in enumerate(sorted({position[token] for token in kept}))}
        assert block.group.flatten().tolist() == [numbers[position[token]] for token in kept]
        assert block.num_groups == len(numbers)
        assert block.saliency.flatten().tolist() == [saliency[token] for token in kept]
        assert block.target.flatten().tolist() == [token in targets for token in kept]


def test_arguments_that_do_not_match_are_refused(clip):
    with pytest.raises(ValueError, match=r"expected frames \(T, 3, Y, X\) of dtype torch.uint8, got .* torch.float32"):
        clip._replace(frames=clip.frames.float()).view()
    with pytest.raises(ValueError, match="1 to the 4 steps of 36 tokens in a grid of 9, got 4 frames and 3 times"):
        clip._replace(times=clip.times[:3]).view()
    with pytest.raises(ValueError, match="got the outputs of 2 clips"):
        clip._replace(output=replace(clip.output, logits=torch.zeros(2, 3))).view()
    with pytest.raises(ValueError, match="36 tokens in a grid of 10, got"):
        clip.view(grid=FeatureGrid(2, 5))

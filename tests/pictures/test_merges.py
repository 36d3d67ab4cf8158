"""What a patched model merged is drawn like the merges of vtm's own networks, and described truly."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vtm.merging import ClipMerge, FeatureGrid, Grouping
from vtm.patching import patch, recording
from vtm.pictures import ClipView
from vtm.pictures.layers import DROPPED, Painter, enlarge
from vtm.pictures.legend import Legend
from vtm.pictures.overlay import write_overlay
from vtm.pictures.page import write_page
from vtm.pictures.selection import Selection
from vtm.pictures.sheet import write_sheet

GRID = FeatureGrid(2, 2)
INDEX = [[0, 1, 0, 2, 3, 4, 3, 4], [0, 0, 0, 1, 2, 1, 2, 1]]  # of two steps of 2 × 2 tokens, after blocks 2 and 5
ANCHOR = [[0, 1, 3, 4, 7], [1, 3, 6]]


def merges(*, tubelet: int = 1, dropped: tuple[int, ...] = ()) -> list[ClipMerge]:
    found = []
    for block, index, anchor in zip((1, 4), INDEX, ANCHOR, strict=True):
        grouping = Grouping(torch.tensor([index]), len(anchor), torch.tensor([anchor]))
        lost = torch.zeros(1, 8, dtype=torch.bool)
        lost[0, list(dropped)] = True
        found.append(ClipMerge(block, grouping, lost, 2, tubelet))
    return found


def view_of(frames: int = 2, *, dropped: tuple[int, ...] = ()) -> ClipView:
    pixels = torch.randint(0, 200, (frames, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    times = [0.1 * n for n in range(frames)]
    return ClipView.of_merges(pixels, times, merges(tubelet=frames // 2, dropped=dropped), GRID)


def words(view: ClipView) -> str:
    selected = Selection().of(view)
    legend = Legend(selected.layers, selected.scale, width=1500, size=20, view=view)
    return " ".join(line for _, lines in legend.entries for line in lines)


def test_groups_and_anchors_are_on_the_grid():
    view = view_of()
    assert view.times == (0.0, 0.1)
    for block, index, anchor in zip(view.blocks, INDEX, ANCHOR, strict=True):
        assert block.group.tolist() == torch.tensor(index).reshape(2, 2, 2).tolist()
        assert block.target.flatten().nonzero().flatten().tolist() == anchor
        assert (block.num_groups, block.saliency) == (len(anchor), None)
        assert not block.dropped.any()


def test_blocks_keep_their_numbers_and_facts_leave_out_what_is_not_known():
    view = view_of()
    parts = Selection().of(view).parts
    assert [(part.number, part.facts) for part in parts] == [(2, ["8 → 5 tokens"]), (5, ["5 → 3 tokens"])]
    (part,) = Selection(blocks=(5,)).of(view).parts
    assert part.block is view.blocks[1]
    with pytest.raises(ValueError, match="blocks: expected some of 2,5, each at most once, got 1"):
        Selection(blocks=(1,)).of(view)


@pytest.mark.parametrize(("frames", "times"), [(2, (0.0, 0.1)), (4, (0.05, 0.25)), (6, (0.1, 0.4))])
def test_a_tubelet_has_the_mean_time_and_the_first_picture_of_its_frames(frames, times):
    view = view_of(frames)
    assert view.times == pytest.approx(times)
    assert view.step_frames == frames // 2
    pixels = torch.randint(0, 200, (frames, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(view.frames, pixels[:: frames // 2])
    assert (f"A token covers {frames // 2} frames" in words(view)) == (frames > 2)


def test_the_legend_of_a_patched_model_claims_nothing_of_vtms_own(clip):
    assert "frames that it sees" not in words(view_of())
    assert "may be merged" not in words(view_of())
    assert "dropped" not in words(view_of())
    assert "Blank tokens were dropped." in words(view_of(dropped=(2,)))
    own = clip.view()
    assert "frames that it sees at a time" in words(own)
    assert "may be merged in this block" in words(own)


def test_only_groups_across_frames_are_said_to_be():
    block = view_of().blocks[0]
    assert replace(block, group=torch.tensor([[[0, 1]], [[2, 0]]])).spans_frames
    assert not replace(block, group=torch.tensor([[[0, 0]], [[1, 2]]])).spans_frames
    view = view_of()
    assert view.spans_frames
    assert "also across frames" in words(view)
    apart = tuple(replace(block, group=torch.arange(8).reshape(2, 2, 2) // 2) for block in view.blocks)
    assert "are merged; a lone token" in words(replace(view, blocks=apart))


def test_tokens_that_were_dropped_are_blank_and_in_no_group():
    view = view_of(dropped=(2, 5))
    block = view.blocks[0]
    assert block.dropped.flatten().nonzero().flatten().tolist() == [2, 5]
    assert block.num_groups == 5
    pictures = enlarge(view.frames, view.grid, 24)
    painter = Painter(view.frames, block)
    assert painter.colors.size.tolist() == [1, 1, 1, 2, 1, 1, 1]
    (groups,) = painter(pictures, np.arange(2), ("groups",))
    for token in range(8):
        t, y, x = token // 4, token // 2 % 2, token % 2
        cell = np.s_[t, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12]
        assert (groups.pictures[cell] == DROPPED).all() == (token in (2, 5))
        assert np.array_equal(groups.pictures[cell], pictures[cell]) == (token in (0, 1, 3, 7))


def test_a_batch_of_frames_through_timm_becomes_a_sheet_a_video_and_a_page(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=64, embed_dim=48).eval()
    frames = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    patch(model, [3, 0, 4])
    with torch.no_grad(), recording(model) as trace:
        model(frames / 255)
    view = ClipView.of_merges(frames, [0.0, 0.5, 1.0, 1.5], trace.clip_merges(images=4), FeatureGrid(4, 4, prefix=1))
    assert [part.number for part in Selection().of(view).parts] == [1, 3]
    assert [block.num_groups for block in view.blocks] == [4 * 13, 4 * 9]
    for block in view.blocks:  # no group holds tokens of two images
        assert sum(len(frame.unique()) for frame in block.group) == block.num_groups
    write_sheet(tmp_path / "sheet.png", view, title="a clip")
    assert Image.open(tmp_path / "sheet.png").size[0] > 4 * 250
    assert (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")
    write_overlay(tmp_path / "overlay.mp4", view, title="a clip")
    assert (tmp_path / "overlay.mp4").stat().st_size > 0
    write_page(tmp_path / "page.html", view, title="a clip")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert [(block["number"], block["left"]) for block in data["blocks"]] == [(1, 52), (3, 36)]
    assert (data["patched"], data["hasDropped"], data["stepFrames"]) == (True, False, 1)
    assert data["layers"] == ["Targets", "Groups"]


def test_arguments_that_do_not_match_are_refused():
    pixels = torch.zeros(2, 3, 24, 24, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected frames \(T, 3, Y, X\) of dtype torch.uint8, got .* torch.float32"):
        ClipView.of_merges(pixels.float(), [0.0, 0.1], merges(), GRID)
    with pytest.raises(ValueError, match="grid of 4 tokens, since the clip has 8 tokens in 2 steps, got 4 × 2"):
        ClipView.of_merges(pixels, [0.0, 0.1], merges(), FeatureGrid(4, 2))
    four = pixels[[0, 1, 0, 1]], [0.0, 0.1, 0.2, 0.3]
    for frames, times in ((pixels, [0.0]), (pixels[:1], [0.0]), (pixels[:0], []), four):
        message = f"2 frames and times, .* 2 steps of 1 frames, got {len(frames)} frames and {len(times)} times; images"
        with pytest.raises(ValueError, match=message):
            ClipView.of_merges(frames, times, merges(), GRID)
    with pytest.raises(ValueError, match="expected the merges of at least one block, got none"):
        ClipView.of_merges(pixels, [0.0, 0.1], [], GRID)
    two = [replace_rows(merge) for merge in merges()]
    with pytest.raises(ValueError, match="expected the merges of one clip, got 2"):
        ClipView.of_merges(pixels, [0.0, 0.1], two, GRID)


def replace_rows(merge: ClipMerge) -> ClipMerge:
    """Double the rows of a merge."""
    grouping = merge.grouping
    twice = replace(grouping, index=grouping.index.repeat(2, 1), anchor=grouping.anchor.repeat(2, 1))
    return merge._replace(grouping=twice)

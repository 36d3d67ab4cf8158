"""The overlay video plays the steps of a clip one after the other, each with what every block did."""

from dataclasses import replace

import pytest
import torch

from vtm.pictures.overlay import write_overlay
from vtm.pictures.selection import Selection
from vtm.video.reading import read_frames
from vtm.video.scanning import duration


def pictures(path, view, *, title="a clip", **selection):
    """Write a video, and return the picture of each step, (T, 3, S, S) from 0 to 255."""
    write_overlay(path, view, title=title, selection=Selection(**selection))
    times = [0.1 + step / 2 for step in range(len(view.times))]
    frames, *_ = read_frames(path, times, size=720, frames_per_step=1, squash=True)
    return frames.float()


@pytest.mark.parametrize("estimates", [True, False])
def test_the_video_has_half_a_second_for_every_step(tmp_path, make_clip, estimates):
    path = tmp_path / "new" / "clip.mp4"
    write_overlay(path, make_clip(estimates=estimates, steps=3).view(), title="a clip")
    assert duration(path) == pytest.approx(3 / 2)
    assert list(path.parent.iterdir()) == [path]


def test_every_step_shows_its_frame(tmp_path, view):
    colors = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]], dtype=torch.uint8)
    plain = replace(view, frames=colors[..., None, None].expand_as(view.frames).contiguous())
    for step, picture in enumerate(pictures(tmp_path / "clip.mp4", plain)):
        alike = [(picture - color[:, None, None]).abs().amax(0).lt(50).float().mean().item() for color in colors]
        assert alike.index(max(alike)) == step
        assert alike[step] > 0.2


@pytest.fixture(scope="module")
def still(make_clip):
    return make_clip(steps=1).view()


@pytest.fixture(scope="module")
def usual(tmp_path_factory, still):
    return pictures(tmp_path_factory.mktemp("usual") / "clip.mp4", still)


@pytest.mark.parametrize("changes", [{"title": "another"}, {"scores": (("sitting", 0.9),)}, {"times": (888.0,)}])
def test_title_scores_and_time_are_seen(tmp_path, still, usual, changes):
    of_view = {name: value for name, value in changes.items() if name != "title"}
    changed = pictures(tmp_path / "clip.mp4", replace(still, **of_view), title=changes.get("title", "a clip"))
    assert (changed - usual).abs().max() > 60


@pytest.mark.parametrize("kind", ["group", "target", "saliency"])
@pytest.mark.parametrize("number", [0, 1])
def test_all_that_a_block_did_is_seen(tmp_path, still, usual, number, kind):
    block = still.blocks[number]
    others = {
        "group": {"group": torch.zeros_like(block.group), "num_groups": 1},
        "target": {"target": ~block.target},
        "saliency": {"saliency": -block.saliency},
    }
    blocks = list(still.blocks)
    blocks[number] = replace(block, **others[kind])
    changed = pictures(tmp_path / "clip.mp4", replace(still, blocks=tuple(blocks)))
    assert (changed - usual).abs().max() > 60


@pytest.mark.parametrize("kind", ["group", "target", "saliency"])
@pytest.mark.parametrize("number", [0, 1])
def test_only_the_selected_blocks_and_layers_are_seen(tmp_path, still, number, kind):
    block = still.blocks[number]
    others = {
        "group": {"group": torch.zeros_like(block.group), "num_groups": block.num_groups},
        "target": {"target": ~block.target},
        "saliency": {"saliency": block.saliency.flip(1)},
    }
    blocks = list(still.blocks)
    blocks[number] = replace(block, **others[kind])
    views = (still, replace(still, blocks=tuple(blocks)))
    of_one, of_other = (
        pictures(tmp_path / f"{index}.mp4", view, blocks=(2,), layers=("targets",)) for index, view in enumerate(views)
    )
    selected = number == 1 and kind == "target"
    assert ((of_one - of_other).abs().max() > 60) == selected

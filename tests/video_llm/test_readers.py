"""Clips of each family: encoder features on the grid of the tokens, CLS where there is one."""

from __future__ import annotations

import pytest
import torch

from tests.video_llm.tiny import FAMILIES, Tiny, build, video
from vtm.compressors import Clip, Compressed, keep_all
from vtm.video_llm import compress

pytestmark = pytest.mark.filterwarnings("ignore:0 of .* tokens merged")


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Tiny:
    return build(request.param)


def test_encoder_features_lie_on_the_grid_of_the_tokens(tiny):
    """With layers that do nothing, a bright cell of a frame changes its own tokens and features alone."""
    core = tiny.model.base_model
    tower = next(getattr(core, name) for name in ("vision_tower", "vision_model", "visual") if hasattr(core, name))
    layers = next(
        module for name, module in tower.named_modules() if name.split(".")[-1] in ("layers", "layer", "blocks")
    )
    saved = [parameter.detach().clone() for parameter in layers.parameters()]
    frames, height, width = 8, 32, 32 if tiny.frames_per_step == 1 else 48
    dark = torch.full((frames, 3, height, width), 60, dtype=torch.uint8)
    bright = dark.clone()
    bright[4:6, :, 16:24, 24:32] = 250  # the windows of Qwen2.5-VL move this cell
    clips: list[Clip] = []

    def look(clip: Clip) -> Compressed:
        clips.append(clip)
        return keep_all(clip)

    try:
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter.zero_()
        for film in (dark, bright):
            compress(tiny.model, tiny.inputs("V Why?", [film]), look)
    finally:
        with torch.no_grad():
            for parameter, value in zip(layers.parameters(), saved, strict=True):
                parameter.copy_(value)
    steps = [2] if tiny.frames_per_step == 2 else [4, 5]
    for values in ([clip.tokens for clip in clips], [clip.encoder for clip in clips]):
        changed = ((values[1] - values[0]).abs().amax(-1) > 1e-4).nonzero().tolist()
        assert changed == [[step, 2, 3] for step in steps]


def test_frames_have_cls_where_the_encoder_has_one(tiny):
    clips: list[Clip] = []
    compress(tiny.model, tiny.inputs("V Why?", [video(4)]), lambda clip: clips.append(clip) or keep_all(clip))
    (clip,) = clips
    if tiny.family not in ("llava_next_video", "internvl"):
        assert clip.frames is None
        return
    pixels = tiny.inputs("V Why?", [video(4)])
    pixels = pixels["pixel_values_videos"][0] if tiny.family == "llava_next_video" else pixels["pixel_values"]
    with torch.no_grad():
        layers = tiny.model.model.vision_tower(pixels, output_hidden_states=True)
    hidden = layers.hidden_states[-2] if tiny.family == "llava_next_video" else layers.last_hidden_state
    torch.testing.assert_close(clip.frames, hidden[:, 0])

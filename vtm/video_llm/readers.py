"""What the vision encoder of each family returns, as clips: the only place that knows the layout of its features."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from vtm.compressors import Clip


@dataclass(frozen=True)
class Encoded:
    """The visual tokens of a batch.

    Attributes:
        outputs: output of the model's encoder.
        clips: one clip per video; for families whose frames are images, one clip of all images.
        newline: (n, d), tokens that the model puts behind those of each video.
        deepstack: (t, h, w, d) per video, one list for each layer of the language model that they are added to.
    """

    outputs: Any
    clips: list[Clip]
    newline: Tensor | None = None
    deepstack: tuple[list[Tensor], ...] = ()


def call(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Call a function of a model with those of the inputs that it takes."""
    taken = {name: inputs[name] for name in inspect.signature(function).parameters if inputs.get(name) is not None}
    return function(**taken)


def llava_onevision(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """Pooled frames of a video, with one newline token behind all of them."""
    outputs = call(core.get_video_features, inputs)
    patches, cls = _selected(core, outputs)
    time = inputs["pixel_values_videos"].shape[1]
    tokens, newline = outputs.pooler_output[:, :-1], outputs.pooler_output[0, -1:]
    clips = _split(tokens.flatten(0, 1), core.apply_pooling(patches).flatten(0, 1), cls, time, len(tokens))
    return Encoded(outputs, clips, newline)


def llava_next_video(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """Frames of a video pooled 2 × 2 before the projector."""
    outputs = call(core.get_video_features, inputs)
    patches, cls = _selected(core, outputs)
    count, time = inputs["pixel_values_videos"].shape[:2]
    tokens = outputs.pooler_output.flatten(0, 1)
    return Encoded(outputs, _split(tokens, core.vision_resampler(patches).flatten(0, 1), cls, time, count))


def qwen(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """Videos of any size, whose patches come in blocks that make up one token."""
    outputs = call(core.get_video_features, inputs)
    return _read_grids(core, inputs, outputs, _blocks(core, outputs))


def qwen2_5(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """As `qwen`, with the blocks brought back from the order of the attention windows."""
    from transformers.vision_utils import get_vision_window_index

    outputs = call(core.get_video_features, inputs)
    visual = core.visual
    order, _ = get_vision_window_index(
        inputs["video_grid_thw"], visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    blocks = _blocks(core, outputs)
    return _read_grids(core, inputs, outputs, blocks[order.argsort().to(blocks.device)])


def internvl(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """Frames and tiles of images alike, of which each token stands for a square of patches."""
    outputs = call(core.get_image_features, inputs)
    last = core.config.vision_feature_layer == -1
    patches, cls = _selected(core, outputs, outputs.last_hidden_state if last else None)
    return Encoded(outputs, [_images(outputs.pooler_output.flatten(0, 1), patches, cls)])


def smolvlm(core: Any, inputs: Mapping[str, Any]) -> Encoded:
    """As `internvl`, without CLS."""
    outputs = call(core.get_image_features, inputs)
    return Encoded(outputs, [_images(torch.cat(list(outputs.pooler_output)), outputs.last_hidden_state, None)])


def _selected(core: Any, outputs: Any, features: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the patches (N, P, c) that go to the projector, and the CLS tokens (N, c) where the model drops them."""
    if features is None:
        layer = core.config.vision_feature_layer
        layers = [layer] if isinstance(layer, int) else layer
        features = torch.cat([outputs.hidden_states[i] for i in layers], dim=-1)
    if core.config.vision_feature_select_strategy != "default":
        return features, None
    return features[:, 1:], features[:, 0]


def _split(tokens: Tensor, encoder: Tensor, cls: Tensor | None, time: int, count: int) -> list[Clip]:
    """Return the clips of `count` videos of square frames."""
    side = _side(len(tokens) // (count * time))
    parts = (value.view(count, time, side, side, -1) for value in (tokens, encoder))
    frames = [None] * count if cls is None else cls.view(count, time, -1)
    return [Clip(*clip) for clip in zip(*parts, frames, strict=True)]


def _images(tokens: Tensor, patches: Tensor, cls: Tensor | None) -> Clip:
    """Return one clip of all images, with the patches (N, P, c) averaged over the square of each token."""
    side, patch_side = _side(len(tokens) // len(patches)), _side(patches.shape[1])
    step = patch_side // side
    encoder = patches.view(len(patches), side, step, side, step, -1).mean((2, 4))
    return Clip(tokens.view(len(patches), side, side, -1), encoder, cls)


def _blocks(core: Any, outputs: Any) -> Tensor:
    """Average the patches of each token."""
    patches: Tensor = outputs.last_hidden_state
    return patches.view(-1, core.visual.spatial_merge_size**2, patches.shape[-1]).mean(1)


def _read_grids(core: Any, inputs: Mapping[str, Any], outputs: Any, blocks: Tensor) -> Encoded:
    merge = core.visual.spatial_merge_size
    grids = [(t, h // merge, w // merge) for t, h, w in inputs["video_grid_thw"].tolist()]

    def on_grids(values: Any) -> list[Tensor]:
        return [value.view(*grid, -1) for value, grid in zip(values, grids, strict=True)]

    encoder = on_grids(blocks.split([prod(grid) for grid in grids]))
    clips = [Clip(*clip) for clip in zip(on_grids(outputs.pooler_output), encoder, strict=True)]
    layers = getattr(outputs, "deepstack_features", None) or ()
    return Encoded(outputs, clips, deepstack=tuple(on_grids(layer) for layer in layers))


def _side(count: int) -> int:
    side = isqrt(count)
    if side * side != count:
        raise ValueError(f"expected square frames of tokens, got {count} tokens per frame, which is not a square")
    return side

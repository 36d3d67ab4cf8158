"""A trace follows every token of a clip as loops do, whatever the order of the tokens in the model."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vtm.merging import ClipMerge
from vtm.patching import Trace, drop_random, drop_similar, merge_hybrid, merge_similar, patch, recording

SIDE, PATCH = 32, 8  # pixels; 4 × 4 tokens
STEPS = 3  # of a video; tubelets of two frames where the model has them


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", depth=3, img_size=SIDE, patch_size=PATCH, num_classes=5, embed_dim=48
    )


def eva() -> nn.Module:
    return timm.create_model("vit_small_patch16_dinov3", depth=3, img_size=SIDE, patch_size=PATCH, num_classes=5)


def video(family: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        options: dict[str, Any] = {
            "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48,
            "image_size": SIDE, "num_labels": 5,
        }  # fmt: skip
        if family == "vivit":
            config = transformers.VivitConfig(num_frames=2 * STEPS, tubelet_size=[2, PATCH, PATCH], **options)
            return transformers.VivitForVideoClassification(config)
        if family == "videomae":
            config = transformers.VideoMAEConfig(num_frames=2 * STEPS, tubelet_size=2, patch_size=PATCH, **options)
            return transformers.VideoMAEForVideoClassification(config)
        config = transformers.TimesformerConfig(num_frames=STEPS, patch_size=PATCH, **options)
        return transformers.TimesformerForVideoClassification(config)

    return make


IMAGES = {"ViT": (vit, "clip"), "DINOv3": (eva, "clip")}
VIDEOS = {
    "ViViT": (video("vivit"), "clip"),
    "ViViT, frames": (video("vivit"), "frame"),
    "VideoMAE": (video("videomae"), "clip"),
    "VideoMAE, frames": (video("videomae"), "frame"),
    "TimeSformer": (video("timesformer"), "frame"),
}
MODES = {
    "merge": merge_similar,
    "drop": drop_similar,
    "random drop": drop_random,
    "hybrid": partial(merge_hybrid, threshold=1.1),  # each source replaces its target
}
SCHEDULE = [4, 0, 3]


def recorded(case: tuple[Callable[[], nn.Module], str], *, reduce: Any = merge_similar) -> tuple[nn.Module, Trace]:
    """Patch a model and run it on a batch of two clips, or of six images."""
    torch.manual_seed(0)
    model = case[0]().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    patch(model, SCHEDULE, reduce=reduce, groups=case[1])  # type: ignore[arg-type]
    with torch.no_grad(), recording(model) as trace:
        model(batch_of(model))
    return model, trace


def batch_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if not hasattr(model, "config"):
        return torch.randn(6, 3, SIDE, SIDE, generator=generator)
    return torch.randn(2, model.config.num_frames, 3, SIDE, SIDE, generator=generator)


def tokens_by_position(model: nn.Module) -> list[int]:
    """List which token of the first block each patch of each step enters, by changing one patch after the other."""
    block = next(module for module in model.modules() if hasattr(module, "merging"))
    entered: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda module, given: entered.append(given[0][0]))
    clip = batch_of(model)[:1]
    frames = 1 if clip.ndim == 4 else clip.shape[1]
    steps = 1 if clip.ndim == 4 else STEPS
    numbers = []
    with torch.no_grad():
        model(clip)
        for t, y, x in product(range(steps), range(SIDE // PATCH), range(SIDE // PATCH)):
            other = clip.clone().reshape(frames, 3, SIDE, SIDE)
            other[t * frames // steps, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] += 1
            model(other.reshape(clip.shape))
            (changed,) = (entered[-1] != entered[0]).any(-1).nonzero().flatten().tolist()
            numbers.append(changed)
    hook.remove()
    return numbers


def followed(trace: Trace, row: int, tokens: list[int]) -> list[tuple[list[int], set[int]]]:
    """Follow tokens of the input by loops: after each block, the index of each, and which are anchors."""
    position, found = {token: token for token in tokens}, []
    origin = list(range(trace.groupings[0].index.shape[1]))
    for _, grouping in sorted(trace.groupings.items()):
        position = {token: int(grouping.index[row, place]) for token, place in position.items()}
        origin = [origin[int(anchor)] for anchor in grouping.anchor[row]]
        found.append(([position[token] for token in tokens], {n for n, token in enumerate(tokens) if token in origin}))
    return found


def check(merges: list[ClipMerge], expected: list[tuple[list[int], set[int]]]) -> None:
    assert [merge.block for merge in merges] == [0, 2]
    for merge, (position, anchors) in zip(merges, expected, strict=True):
        index = merge.grouping.index
        assert index.shape == merge.dropped.shape == (1, len(position))
        numbers: dict[int, int] = {}
        assert [numbers.setdefault(group, n) for n, group in enumerate(index[0].tolist())] == [
            position.index(group) for group in position
        ]
        assert merge.grouping.num_groups == len(numbers) == index.max() + 1
        assert set(merge.grouping.anchor[0].tolist()) == anchors
        assert index.gather(1, merge.grouping.anchor).tolist() == [list(range(merge.grouping.num_groups))]


@pytest.mark.parametrize("case", VIDEOS)
@pytest.mark.parametrize("clip", [0, 1])
def test_the_tokens_of_a_clip_are_followed_step_by_step(case: str, clip: int) -> None:
    model, trace = recorded(VIDEOS[case])
    merges = trace.clip_merges(clip)
    check(merges, followed(trace, clip, tokens_by_position(model)))
    assert {merge.steps for merge in merges} == {STEPS}
    if VIDEOS[case][1] == "frame":  # 4 and then 3 of the 16 tokens of each step
        for merge, left in zip(merges, (12, 9), strict=True):
            groups = [set(step.tolist()) for step in merge.grouping.index.reshape(STEPS, 16)]
            assert [len(some) for some in groups] == [left] * STEPS
            assert len(set().union(*groups)) == left * STEPS


@pytest.mark.parametrize("case", IMAGES)
def test_images_of_a_batch_are_joined_to_a_clip(case: str) -> None:
    model, trace = recorded(IMAGES[case])
    tokens = tokens_by_position(model)
    check(trace.clip_merges(4), followed(trace, 4, tokens))
    assert trace.clip_merges(4)[0].steps == 1
    expected: list[tuple[list[int], set[int]]] = [([], set()), ([], set())]
    for number, row in enumerate((3, 4, 5)):
        for (joined, all_anchors), (position, anchors) in zip(expected, followed(trace, row, tokens), strict=True):
            joined += [100 * number + group for group in position]
            all_anchors |= {16 * number + anchor for anchor in anchors}
    check(trace.clip_merges(1, images=3), expected)
    assert trace.clip_merges(1, images=3)[0].steps == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [*VIDEOS, *IMAGES])
def test_tokens_that_were_dropped_are_marked(case: str, mode: str) -> None:
    _, trace = recorded((VIDEOS | IMAGES)[case], reduce=MODES[mode])
    for merge, size in zip(trace.clip_merges(1), trace.sizes.values(), strict=True):
        kept = [0] * merge.grouping.num_groups
        for group, dropped in zip(merge.grouping.index[0].tolist(), merge.dropped[0].tolist(), strict=True):
            kept[group] += not dropped
        assert kept == size[1, trace.protected :].tolist()
        assert bool(merge.dropped.any()) == (mode != "merge")
        if "drop" in mode:
            left = (~merge.dropped[0]).nonzero().flatten().tolist()
            assert left == sorted(merge.grouping.anchor[0].tolist())


def test_a_clip_that_was_not_recorded_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was recorded; call the model inside `with recording"):
        Trace().clip_merges()
    _, trace = recorded(IMAGES["ViT"])
    for clip, images in ((6, 1), (-1, 1), (2, 3), (0, 7)):
        message = (
            rf"expected clip in \[0, {6 // images}\), since the batch of 6 .* images = {images}, got clip = {clip}"
        )
        with pytest.raises(ValueError, match=message):
            trace.clip_merges(clip, images=images)
    with pytest.raises(ValueError, match="expected images >= 1, got 0"):
        trace.clip_merges(images=0)

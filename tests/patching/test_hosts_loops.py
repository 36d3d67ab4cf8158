"""Patched models equal whole models written as loops, after every block: sizes, order of the tokens, and values."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.patching.host_loops import TimeSformer, timm_model, videomae_model, vivit_model
from tests.patching.model_loops import Outcome, Recipe
from vtm.patching import (
    constant,
    decreasing,
    drop_random,
    drop_similar,
    increasing,
    merge_hybrid,
    merge_random,
    merge_similar,
    patch,
    recording,
)

DEPTH = 4
WIDTH, HEADS = 24, 3


@dataclass(frozen=True)
class Host:
    """A tiny model, the loops that compute it, and the shape of its input."""

    make: Callable[[], nn.Module]
    loops: Callable[[Any], Callable[[Tensor, Recipe], Outcome]]
    shape: tuple[int, ...]
    groups: str = "clip"
    frames: int = 1


def image(
    name: str, *, size: int = 40, patch_size: int = 8, half: bool = False, eps: float = 1e-6, **options: Any
) -> Host:
    """Return a model of timm for images of size × size."""
    make = partial(
        timm.create_model, name, depth=DEPTH, img_size=size, patch_size=patch_size, num_classes=5, embed_dim=WIDTH,
        num_heads=HEADS, **options,
    )  # fmt: skip
    return Host(make, partial(timm_model, num_heads=HEADS, half=half, eps=eps), (2, 3, size, size))


def video(family: str, groups: str = "clip", attention: str = "sdpa") -> Host:
    """Return a model of transformers: 4 steps of 3 × 3 tokens."""

    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        options: dict[str, Any] = {
            "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 40,
            "image_size": 24, "num_labels": 5, "num_frames": 4,
        }  # fmt: skip
        if family == "vivit":
            return transformers.VivitForVideoClassification(transformers.VivitConfig(tubelet_size=[1, 8, 8], **options))
        if family == "videomae":
            return transformers.VideoMAEForVideoClassification(
                transformers.VideoMAEConfig(tubelet_size=1, patch_size=8, attn_implementation=attention, **options)
            )
        return transformers.TimesformerForVideoClassification(transformers.TimesformerConfig(patch_size=8, **options))

    loops: dict[str, Any] = {"vivit": vivit_model, "videomae": videomae_model, "timesformer": TimeSformer}
    loop = loops[family]
    if groups == "frame" and family != "timesformer":
        loop = partial(loop, frames=4)
    return Host(make, loop, (2, 4, 3, 24, 24), groups, 4)


HOSTS = {
    "ViT": image("vit_tiny_patch16_224"),
    "ViT, even prefix and tokens": image("vit_tiny_patch16_224", size=48, patch_size=12, reg_tokens=1),
    "ViT, q and k norms, no CLS, mean": image(
        "vit_tiny_patch16_224", qk_norm=True, class_token=False, global_pool="avg", init_values=0.5
    ),
    "ViT, CLS, mean": image("vit_tiny_patch16_224", global_pool="avg"),
    "DeiT distilled": image("deit_tiny_distilled_patch16_224"),
    "DeiT-III, LayerScale": image("deit3_small_patch16_224", init_values=0.5),
    "DINOv2, registers": image("vit_small_patch14_reg4_dinov2", init_values=0.5),
    "EVA-02, RoPE": image("eva02_tiny_patch14_224"),
    "DINOv3, RoPE": image("vit_small_patch16_dinov3", init_values=0.5, half=True, eps=1e-5),
    "ViViT": video("vivit"),
    "ViViT, frames": video("vivit", "frame"),
    "VideoMAE": video("videomae"),
    "VideoMAE, eager attention": video("videomae", attention="eager"),
    "VideoMAE, frames": video("videomae", "frame"),
    "TimeSformer": video("timesformer", "frame"),
}  # fmt: skip

BOTH_BRANCHES = 9.0  # stands for a threshold that half of the similarities in the first block reach
RECIPES = {  # counts for 36 tokens or fewer, a quarter of it for frames
    "merge, constant": (Recipe([], "merge"), constant(DEPTH, 4)),
    "merge, all heads, decreasing, plain attention": (
        Recipe([], "merge", concat=True, proportional=False), decreasing(DEPTH, 4)
    ),
    "merge, increasing": (Recipe([], "merge"), increasing(DEPTH, 4)),
    "merge, list with pauses": (Recipe([], "merge", concat=True), [0, 5, 0, 6]),
    "merge, half": (Recipe([], "merge"), constant(DEPTH, 100)),
    "drop, constant": (Recipe([], "drop"), constant(DEPTH, 4)),
    "drop, all heads, list": (Recipe([], "drop", concat=True, proportional=False), [5, 0, 3, 1]),
    "drop, half": (Recipe([], "drop"), constant(DEPTH, 100)),
    "hybrid 0.4, decreasing": (Recipe([], "hybrid", threshold=0.4), decreasing(DEPTH, 4)),
    "hybrid 0.8, plain attention": (Recipe([], "hybrid", threshold=0.8, proportional=False), constant(DEPTH, 4)),
    "hybrid, both branches": (Recipe([], "hybrid", threshold=BOTH_BRANCHES), constant(DEPTH, 8)),
    "hybrid, both branches, all heads, half": (
        Recipe([], "hybrid", threshold=BOTH_BRANCHES, concat=True), constant(DEPTH, 100)
    ),
}  # fmt: skip
REDUCTIONS = {
    "merge": merge_similar, "drop": drop_similar, "random merge": merge_random, "random drop": drop_random,
}  # fmt: skip


def made(host: Host, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights and its input."""
    generator = torch.Generator().manual_seed(0)
    model = host.make().eval().double()
    for parameter in model.parameters():  # initial values leave the tokens nearly equal
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5, generator=generator)
    return model.to(dtype), torch.randn(host.shape, generator=generator, dtype=torch.float64).to(dtype)


def patched(model: nn.Module, x: Tensor, host: Host, recipe: Recipe) -> Outcome:
    """Return what the patched model computes; sizes of blocks that take no token away are those of the block before."""
    reduce = REDUCTIONS.get(recipe.mode, partial(merge_hybrid, threshold=recipe.threshold))
    patch(
        model, recipe.counts,
        reduce=reduce, keys="concat" if recipe.concat else "mean", proportional=recipe.proportional, groups=host.groups,
    )  # fmt: skip
    outcome, hooks = Outcome(), []
    containers = (module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential))
    for block in next(container for container in containers if len(container) == DEPTH):
        hooks.append(
            block.register_forward_hook(
                lambda block, args, output: outcome.tokens.append(
                    (output[0] if isinstance(output, tuple) else output)[..., :WIDTH]
                )
            )
        )
    torch.manual_seed(recipe.seed)
    with torch.no_grad(), recording(model) as trace:
        output = model(x)
    outcome.logits = output if isinstance(output, Tensor) else output.logits
    for block, tokens in enumerate(outcome.tokens):
        before = outcome.sizes[-1] if outcome.sizes else torch.ones(tokens.shape[:2], dtype=tokens.dtype)
        outcome.sizes.append(trace.sizes.get(block, before))
    return outcome


def check(host: Host, recipe: Recipe, dtype: torch.dtype, tolerance: float) -> None:
    model, x = made(host, dtype)
    if host.groups == "frame":
        recipe = replace(recipe, counts=[(count + 3) // 4 for count in recipe.counts])
    loops, given = host.loops(copy.deepcopy(model).double()), x.double()
    if recipe.threshold == BOTH_BRANCHES:
        first, *_ = (found for found in loops(given, recipe).similarities if found)
        first = sorted(first)
        recipe = replace(recipe, threshold=sum(first[len(first) // 2 - 1 : len(first) // 2 + 1]) / 2)
        assert first[0] < recipe.threshold < first[-1]
    expected, found = loops(given, recipe), patched(model, x, host, recipe)
    for block in range(DEPTH):
        assert torch.equal(found.sizes[block].double(), expected.sizes[block]), f"sizes after block {block}"
        torch.testing.assert_close(found.tokens[block].double(), expected.tokens[block], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.logits.double(), expected.logits, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("host", HOSTS)
def test_a_patched_model_equals_the_loops(host: str, recipe: str) -> None:
    how, counts = RECIPES[recipe]
    check(HOSTS[host], replace(how, counts=counts), torch.float64, 1e-10)


@pytest.mark.parametrize(
    "recipe", ["merge, constant", "drop, all heads, list", "hybrid, both branches, all heads, half"]
)
@pytest.mark.parametrize("host", HOSTS)
def test_a_patched_model_in_float32_equals_the_loops(host: str, recipe: str) -> None:
    how, counts = RECIPES[recipe]
    check(HOSTS[host], replace(how, counts=counts), torch.float32, 1e-5)


@pytest.mark.parametrize("mode", ["random merge", "random drop"])
@pytest.mark.parametrize("counts", [[5, 0, 3, 6], constant(DEPTH, 100)], ids=["list", "half"])
@pytest.mark.parametrize("host", HOSTS)
def test_random_reductions_draw_what_the_loops_draw(host: str, counts: list[int], mode: str) -> None:
    check(HOSTS[host], Recipe(counts, mode, seed=3), torch.float64, 1e-10)

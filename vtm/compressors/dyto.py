"""DYTO (Zhang et al., ICCV 2025, arXiv 2411.14401): key frames by clustering, then bipartite merging in each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.compressors.bipartite import ORDERS, PARTITIONS, merge_rounds
from vtm.compressors.clip import Clip, Compressed, check_choice, check_reduce, compressed_frames, count_budget
from vtm.compressors.frames import select_frames
from vtm.compressors.reduction import elements_at_once
from vtm.merging.tokens import accumulator

METRICS = ("encoder", "features", "head_mean")
DESCRIPTORS = ("cls", "mean")


def dyto(
    clip: Clip,
    *,
    budget: float,
    level: str | int = "second_largest",
    few_clusters: int = 6,
    few_frames: int = 12,
    few_pick: str = "uniform",
    max_frames: int = 25,
    descriptor: str = "mean",
    partition: str = "alternate",
    metric: str = "encoder",
    heads: int = 16,
    reduce: str = "mean",
    order: str = "raster",
) -> Compressed:
    """Keep key frames, and merge the tokens of each until all together fit into a budget.

    Every frame keeps ⌊budget/frames⌋ tokens. All frames are kept if they fit into the budget without merging, or are
    at most `few_frames`, but never more than `max_frames`. The defaults are those of conf/compressor/dyto.yaml;
    dyto_released.yaml reconstructs the released code.

    Args:
        clip: a video; what it must have depends on `descriptor` and `metric`.
        budget: number of tokens of all frames (int), or in frames' worth of tokens (float): 6.39 in the paper.
        level: like few_clusters, few_frames, few_pick and max_frames, an option of `select_frames`.
        descriptor: what frames are clustered by: "cls" (`clip.frames`), or the "mean" of the encoder features.
        partition: "alternate" or "halves", see `match_halves`.
        metric: what tokens are compared by: "encoder" features; "features", the tokens; or "head_mean", the mean of
            `heads` blocks of channels of the tokens.
        heads: number of blocks of "head_mean".
        reduce: "mean" of all tokens merged over all rounds, or "max".
        order: "raster" or "score", see `match_halves`.

    Raises:
        ValueError: if the clip lacks what is compared, an option is unknown, or the budget is below one token per
            frame kept.

    >>> clip = Clip(torch.randn(30, 4, 6, 8), encoder=torch.randn(30, 4, 6, 5))
    >>> len(dyto(clip, budget=100, max_frames=5).tokens)
    100
    """
    check_choice("partition", partition, PARTITIONS)
    check_choice("metric", metric, METRICS)
    check_choice("order", order, ORDERS)
    check_reduce(reduce)
    total = count_budget(clip, budget)
    keys = _keys(clip, metric, heads)
    descriptors = _descriptors(clip, descriptor)
    if clip.num_tokens <= total and len(descriptors) <= max_frames:
        frames = torch.arange(len(descriptors), device=keys.device)
    else:
        frames = select_frames(
            descriptors,
            level=level,
            few_clusters=few_clusters,
            few_frames=few_frames,
            few_pick=few_pick,
            max_frames=max_frames,
        ).to(keys.device)
    if total < len(frames):
        raise ValueError(
            f"a budget of {total} tokens is less than one token for each of the {len(frames)} frames kept; raise "
            "budget, or lower few_frames and max_frames"
        )
    grouping = merge_rounds(
        keys.flatten(1, 2),
        total // len(frames),
        rows=frames,
        partition=partition,
        order=order,
        reduce=reduce,
        heads=heads if metric == "head_mean" else None,
    )
    return compressed_frames(clip, frames, grouping, reduce=reduce)


def _keys(clip: Clip, metric: str, heads: int) -> Tensor:
    """Return the features (t, h, w, c) that are compared."""
    if metric == "encoder":
        if clip.encoder is None:
            raise ValueError("metric='encoder' needs the encoder features of the clip; pass them, or metric='features'")
        return clip.encoder
    if metric == "head_mean" and (heads < 1 or clip.tokens.shape[3] % heads):
        raise ValueError(f"expected heads to divide the width of the tokens, {clip.tokens.shape[3]}, got {heads}")
    return clip.tokens


@torch.no_grad()
def _descriptors(clip: Clip, descriptor: str) -> Tensor:
    """Return a vector for each frame (t, c)."""
    check_choice("descriptor", descriptor, DESCRIPTORS)
    if descriptor == "cls":
        if clip.frames is None:
            raise ValueError(
                "descriptor='cls' needs the CLS token of each frame, Clip(frames=...), and this clip has none; use "
                "descriptor='mean' with encoders that have no CLS"
            )
        return clip.frames
    if clip.encoder is None:
        raise ValueError("descriptor='mean' needs the encoder features of the clip; pass them, or descriptor='cls'")
    dtype = accumulator(clip.encoder.dtype)
    features = clip.encoder.flatten(1, 2)  # (t, h·w, c)
    share = features.new_full((1, features.shape[1]), 1 / features.shape[1], dtype=dtype)
    frames_at_once = max(1, elements_at_once(features.device) // features[0].numel())
    if dtype == features.dtype:
        frames_at_once = len(features)  # without a copy
    means = features.new_empty(len(features), features.shape[2], dtype=dtype)  # allocated first, against fragmentation
    with torch.autocast(features.device.type, enabled=False):
        for some, part in zip(means.split(frames_at_once), features.split(frames_at_once), strict=True):
            some.copy_((share @ part.to(dtype))[:, 0])  # twice as fast as a mean
    return means

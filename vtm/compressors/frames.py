"""Selection of key frames from clusters of frames (DYTO, arXiv 2411.14401, section on hierarchical frame selection)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.compressors.clip import check_choice
from vtm.compressors.clustering import check_features, tw_finch

LEVELS = ("largest", "second_largest")


@torch.no_grad()
def select_frames(
    features: Tensor,
    *,
    level: str | int = "second_largest",
    few_clusters: int = 6,
    few_frames: int = 12,
    few_pick: str = "uniform",
    max_frames: int = 25,
) -> Tensor:
    """Select frames that represent the scenes of a video.

    Of K clusters of TW-FINCH, if K is at most `few_clusters`, each supplies up to ⌊few_frames/K⌋ frames; otherwise,
    each supplies its middle frame. If there are more than `max_frames`, they are thinned out evenly. All frames of a
    video of at most `few_frames` frames are selected.

    Args:
        features: (n, d), one row per frame, in the order of time.
        level: partition of TW-FINCH with the "largest" or the "second_largest" number of clusters, or its rank from
            fine to coarse; the coarsest if there are fewer.
        few_clusters: number of clusters up to which a cluster supplies several frames.
        few_frames: number of frames that few clusters supply together, at most.
        few_pick: which frames few clusters supply: the "first" ones, or "uniform" ones.
        max_frames: upper bound of the number of frames.

    Returns:
        indices of the frames, ascending.

    >>> select_frames(torch.eye(4).repeat_interleave(5, dim=0), few_frames=8)
    tensor([ 1,  3,  6,  8, 11, 13, 16, 18])
    """
    check_choice("few_pick", few_pick, ("first", "uniform"))
    if isinstance(level, str):
        check_choice("level", level, LEVELS)
    elif level < 0:
        raise ValueError(f"expected level to be a name or a rank >= 0, got {level}")
    if not 0 <= few_clusters <= few_frames or min(few_frames, max_frames) < 1:
        raise ValueError(
            "expected 0 <= few_clusters <= few_frames, few_frames >= 1 and max_frames >= 1, got "
            f"few_clusters={few_clusters}, few_frames={few_frames}, max_frames={max_frames}"
        )
    check_features(features)
    if len(features) <= few_frames:
        return _thinned(torch.arange(len(features), device=features.device), max_frames)
    partitions = tw_finch(features)
    rank = LEVELS.index(level) if isinstance(level, str) else level
    labels = partitions[min(rank, len(partitions) - 1)]
    order = labels.argsort(stable=True)  # frames by cluster, then by time
    size = torch.bincount(labels)  # (K,)
    share = few_frames // len(size) if len(size) <= few_clusters else 1
    taken = size.clamp(max=share)[:, None]
    j = torch.arange(share, device=labels.device)
    rank_in_cluster = j.expand(len(size), -1)
    if few_pick == "uniform" or len(size) > few_clusters:
        rank_in_cluster = (2 * j + 1) * size[:, None] // (2 * taken)  # centers of equal parts
    first = (size.cumsum(0) - size)[:, None]
    return _thinned(order[(first + rank_in_cluster)[j < taken]].sort().values, max_frames)


def _thinned(frames: Tensor, most: int) -> Tensor:
    """Keep the first, the last and evenly spaced frames between them, at most `most`."""
    if len(frames) <= most:
        return frames
    steps = torch.arange(most, device=frames.device) * (len(frames) - 1)
    return frames[steps // max(1, most - 1)]

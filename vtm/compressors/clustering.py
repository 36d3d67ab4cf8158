"""Clustering of frames by features and time: TW-FINCH (Sarfraz et al., CVPR 2021), as used by DYTO."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.compressors.reduction import elements_at_once

_TIE = 1e-12  # added to distances, so that the nearest in time is chosen among equal features


@torch.no_grad()
def tw_finch(features: Tensor) -> list[Tensor]:
    """Cluster frames into ever fewer clusters; each partition refines the next.

    Every cluster is linked to the one at the smallest distance (1 − cosine similarity)·|time difference|, and the
    connected components are the clusters of the next partition. Cluster means are those of all their frames. Computed
    in fp64; a frame whose features are zero or not finite has similarity 0 to all others.

    Args:
        features: (n, d), one row per frame, in the order of time.

    Returns:
        labels (n,) int64 of each partition, from fine to coarse. Clusters are numbered by their first frame. The single
        cluster of all frames is a partition only if there is no other.

    Raises:
        ValueError: if the shape is not (n, d) with n ≥ 1.

    >>> tw_finch(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]))
    [tensor([0, 0, 1, 1])]
    """
    check_features(features)
    features = features.double()
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    features = features.masked_fill(~norm.isfinite(), 0)
    time = torch.arange(len(features), device=features.device, dtype=features.dtype)[:, None]
    frames = torch.cat([features, time], dim=1)
    labels = torch.arange(len(frames), device=frames.device)
    partitions: list[Tensor] = []
    means, count = frames, len(frames)
    while True:
        coarser = _components(_nearest(means))[labels]
        before, count = count, int(coarser.max()) + 1
        if partitions and (count == 1 or count == before):
            return partitions
        partitions.append(coarser)
        if before - count <= 1 or count == 1:
            return partitions
        labels = coarser
        size = torch.bincount(labels)[:, None]
        means = frames.new_zeros(count, frames.shape[1]).index_add(0, labels, frames) / size


def check_features(features: Tensor) -> None:
    """Raise a ValueError if the features are not (n, d) with n ≥ 1."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"expected features (n, d) of at least one frame, got {tuple(features.shape)}")


def _nearest(clusters: Tensor) -> Tensor:
    """Return the nearest other cluster of each: (K, d + 1) features and time -> (K,); itself if there is no other."""
    features, time = clusters[:, :-1], clusters[:, -1]
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    features = features / torch.where(norm == 0, 1, norm)
    index = torch.arange(len(features), device=features.device)
    nearest = []
    for rows in index.split(max(1, elements_at_once(features.device) // len(features))):
        distance = (1 - features[rows] @ features.T).clamp(min=0).add(_TIE)
        distance *= (time[rows, None] - time).abs()
        distance[index[: len(rows)], rows] = torch.inf
        nearest.append(distance.argmin(dim=1))
    return torch.cat(nearest)


def _components(link: Tensor) -> Tensor:
    """Number the connected components of a graph with one link from each node, by their first node: (K,) -> (K,)."""
    index = torch.arange(len(link), device=link.device)
    smallest, ahead = index, link  # of the first 2^i nodes on the way from each node; the node after them
    for _ in range(len(link).bit_length()):
        smallest, ahead = torch.minimum(smallest, smallest[ahead]), ahead[ahead]
    cycle = smallest[ahead]  # the way from each node ends in the only cycle of its component
    first = index.scatter_reduce(0, cycle, index, "amin")[cycle]
    return ((first == index).cumsum(0) - 1)[first]

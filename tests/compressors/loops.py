"""The compressors as slow loops over one token or frame at a time in float64; imports nothing of vtm.

Written from the descriptions of DYTO (arXiv 2411.14401), TW-FINCH (CVPR 2021), ToMe (ICLR 2023) and DynTok
(arXiv 2506.03990).
"""

import math

import torch
from torch import Tensor

Token = tuple[int, int, int]


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def reduce_loops(x: Tensor, members: list[int], reduce: str) -> Tensor:
    """Return the mean or the maximum of some rows of x."""
    result = x[members[0]].double()
    for n in members[1:]:
        result = torch.maximum(result, x[n].double()) if reduce == "max" else result + x[n].double()
    return result if reduce == "max" else result / len(members)


def dyntok_loops(encoder: Tensor, threshold: float, *, axis: str = "row") -> list[list[int]]:
    """Return the tokens (flat indices) of each group, in the order of their first tokens."""
    t, h, w, _ = encoder.shape
    step = {"row": (0, 0, 1), "column": (0, 1, 0), "time": (1, 0, 0)}[axis]
    group_of: dict[Token, int] = {}
    groups: list[list[int]] = []
    for i in range(t):
        for j in range(h):
            for k in range(w):
                before = (i - step[0], j - step[1], k - step[2])
                joins = min(before) >= 0 and cosine(encoder[before], encoder[i, j, k]) > threshold
                if not joins:
                    groups.append([])
                group_of[i, j, k] = group_of[before] if joins else len(groups) - 1
                groups[group_of[i, j, k]].append((i * h + j) * w + k)
    return groups


def tw_finch_loops(features: Tensor) -> list[list[list[int]]]:
    """Return the clusters of frames of each partition, in the order of their first frames."""
    n = len(features)
    partitions: list[list[list[int]]] = []
    clusters = [[i] for i in range(n)]
    while True:
        means = [reduce_loops(features, cluster, "mean") for cluster in clusters]
        times = [sum((i + 1) / n for i in cluster) / len(cluster) for cluster in clusters]
        links = []
        for a in range(len(clusters)):
            others = [b for b in range(len(clusters)) if b != a] or [a]
            nearest = min(others, key=lambda b: (1 - cosine(means[a], means[b])) * abs(times[a] - times[b]))
            links.append((a, nearest))
        component = list(range(len(clusters)))
        for a, b in links:
            old, new = component[b], component[a]
            component = [new if c == old else c for c in component]
        joined = [
            sorted(i for a, cluster in enumerate(clusters) if component[a] == c for i in cluster)
            for c in dict.fromkeys(component)
        ]
        joined.sort()
        drop = len(clusters) - len(joined)
        if partitions and (len(joined) == 1 or drop < 1):
            return partitions
        partitions.append(joined)
        if len(joined) == 1 or drop <= 1:
            return partitions
        clusters = joined


def select_loops(
    features: Tensor, *, level: int, few_clusters: int, few_frames: int, few_pick: str, max_frames: int
) -> list[int]:
    """Return the selected frames."""
    selected = []
    if len(features) <= few_frames:
        selected = list(range(len(features)))
    else:
        partitions = tw_finch_loops(features)
        clusters = partitions[min(level, len(partitions) - 1)]
        for cluster in clusters:
            if len(clusters) > few_clusters:
                selected.append(cluster[len(cluster) // 2] if len(cluster) > 2 else cluster[-1])
                continue
            count = min(few_frames // len(clusters), len(cluster))
            for j in range(count):
                part = len(cluster) / count
                selected.append(cluster[j if few_pick == "first" else math.floor((j + 0.5) * part + 1e-9)])
    selected.sort()
    if len(selected) > max_frames:
        step = (len(selected) - 1) / max(1, max_frames - 1)
        selected = [selected[math.floor(i * step + 1e-9)] for i in range(max_frames)]
    return selected


def merge_loops(
    keys: Tensor, target: int, *, partition: str, order: str, reduce: str, heads: int | None = None
) -> list[tuple[int, list[int]]]:
    """Merge the tokens of one frame until `target` are left; return the anchor and the tokens of each group."""
    groups = [(n, [n]) for n in range(len(keys))]
    while len(groups) > target:
        count = min(len(groups) // 2, len(groups) - target)
        compared = [reduce_loops(keys, sorted(members), reduce) for _, members in groups]
        if heads is not None:
            compared = [sum(vector.chunk(heads)) / heads for vector in compared]
        half = len(groups) // 2
        places = range(len(groups))
        sources = [n for n in places if (n < half if partition == "halves" else n % 2 == 0)]
        targets = [n for n in places if n not in sources]
        best = {a: max((cosine(compared[a], compared[b]), -b) for b in targets) for a in sources}
        ranked = sorted(sources, key=lambda a: -best[a][0])
        content = {n: list(groups[n][1]) for n in places}
        for a in ranked[:count]:
            content[-best[a][1]] += groups[a][1]
        left = [*ranked[count:], *targets]
        groups = [(groups[n][0], content[n]) for n in left]
        if order == "raster":
            groups.sort()
    return groups

"""Training-free reductions as slow loops over one clip and one token, written from the papers; imports nothing of vtm.

Bolya et al. 2023, section 3 (bipartite soft matching), and Pollard and Wray 2025, section 3 (drop, random, hybrid).
"""

import math
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor


class Reduced(NamedTuple):
    """The tokens of one clip that are left: x (N', C), size (N'), and of each the indices of the tokens it holds.

    The anchors are the indices of the tokens that the others were merged into; the similarities are those of the tokens
    that were taken away.
    """

    x: Tensor
    size: Tensor
    members: list[list[int]]
    anchors: list[int]
    similarities: list[float]


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(map(mul, a, b)) / lengths if lengths else 0.0


def reduce_loops(
    keys: Tensor,
    x: Tensor,
    size: Tensor,
    count: int,
    *,
    mode: str,
    protected: int = 0,
    threshold: float = 0.0,
    scores: Tensor | None = None,
) -> Reduced:
    """Reduce one clip.

    Args:
        keys: (N, D).
        x: (N, C).
        size: (N,).
        count: number of tokens to take away.
        mode: "merge", "drop" or "hybrid".
        protected: number of leading tokens that stay.
        threshold: similarity below which a source replaces its target, for "hybrid".
        scores: (⌈N/2⌉, ⌊N/2⌋), scores of the even and the odd tokens in place of the similarities of their keys.
    """
    num_tokens, rows_of_keys = len(keys), keys.tolist()
    sources = [n for n in range(protected, num_tokens) if n % 2 == 0]
    targets = [n for n in range(protected, num_tokens) if n % 2 == 1]
    best: dict[int, tuple[float, int]] = {}
    for source in sources:
        found = (
            cosine(rows_of_keys[source], rows_of_keys[target])
            if scores is None
            else float(scores[source // 2, target // 2])
            for target in targets
        )
        best[source] = max(zip(found, (-target for target in targets), strict=True), default=(0.0, 0))
    by_similarity = sorted(sources, key=lambda source: -best[source][0])
    taken, kept = by_similarity[:count], by_similarity[count:]
    if not count:  # nothing changes, not even the order
        return Reduced(x, size, [[n] for n in range(num_tokens)], list(range(num_tokens)), [])
    if protected:
        kept = sorted(kept)
    left = [*range(protected), *kept, *targets]
    content = {n: (x[n] * size[n], size[n], [n]) for n in left}
    if mode == "hybrid":
        for source in taken:
            if best[source][0] < threshold:
                target = -best[source][1]
                content[target] = (torch.zeros_like(x[target]), torch.zeros_like(size[target]), content[target][2])
    for source in taken:
        target = -best[source][1]
        total, weight, members = content[target]
        if mode == "drop":
            content[target] = (total, weight, [*members, source])
        else:
            content[target] = (total + x[source] * size[source], weight + size[source], [*members, source])
    rows = [content[n] for n in left]
    return Reduced(
        torch.stack([total / weight for total, weight, _ in rows]),
        torch.stack([weight for _, weight, _ in rows]),
        [sorted(members) for *_, members in rows],
        left,
        [best[source][0] for source in taken],
    )


def tome_order(keys: Tensor, count: int, *, cls: bool, distilled: bool) -> list[list[int]]:
    """Return the indices of the tokens of each group, in the order of ToMe (its code; Bolya et al. 2023, section 3).

    CLS is one of the even tokens and the distillation token one of the odd ones, and neither is similar to any token.
    """
    rows_of_keys = keys.tolist()
    even, odd = range(0, len(keys), 2), range(1, len(keys), 2)
    scores = {
        (a, b): -math.inf if (cls and a == 0) or (distilled and b == 1) else cosine(rows_of_keys[a], rows_of_keys[b])
        for a in even
        for b in odd
    }
    best = {a: max(odd, key=lambda b, a=a: scores[a, b]) for a in even}
    order = sorted(even, key=lambda a: -scores[a, best[a]])
    taken, kept = order[:count], order[count:]
    if cls:
        kept = sorted(kept)
    groups = {n: [n] for n in [*kept, *odd]}
    for a in taken:
        groups[best[a]].append(a)
    targets = list(odd)
    left = [kept[0], targets[0], *kept[1:], *targets[1:]] if distilled else [*kept, *targets]
    return [sorted(groups[n]) for n in left]

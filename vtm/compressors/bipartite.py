"""Bipartite merging within groups of tokens, in rounds that halve them at most (ToMe; DYTO, arXiv 2411.14401)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.compressors.reduction import elements_at_once, reduce_groups
from vtm.merging import Grouping, compose
from vtm.merging.matching import nearest_target
from vtm.merging.tokens import accumulator

PARTITIONS = ("alternate", "halves")
ORDERS = ("raster", "score")


def budget_rounds(tokens: int, target: int) -> list[int]:
    """Return how many tokens to merge in each round until `target` are left; a round merges at most half of them.

    >>> budget_rounds(576, 204)
    [288, 84]
    """
    if tokens < 0 or target < 1:
        raise ValueError(f"expected tokens >= 0 and target >= 1, got {tokens} and {target}")
    rounds = []
    while tokens > target:
        rounds.append(min(tokens // 2, tokens - target))
        tokens -= rounds[-1]
    return rounds


def match_halves(keys: Tensor, count: int, *, partition: str, order: str) -> Grouping:
    """Merge the `count` sources most similar to a target into that target.

    Similarities are those of `nearest_target`; ties go to the first source.

    Args:
        keys: (B, N, c).
        count: number of sources to merge, at most ⌊N/2⌋.
        partition: "alternate", tokens at even indices are sources, those at odd ones targets, as in ToMe; or "halves",
            the first ⌊N/2⌋ tokens are sources, as in DYTO.
        order: "raster", groups are in the order of their anchors; or "score", first the sources that are left, in
            descending order of their similarity, then the targets.

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]])
    >>> match_halves(keys, 1, partition="alternate", order="raster")
    Grouping(index=tensor([[0, 1, 1, 2]]), num_groups=3, anchor=tensor([[0, 1, 3]]))
    """
    batch, num_tokens, _ = keys.shape
    index = torch.arange(num_tokens, device=keys.device)
    if partition == "halves":
        of_sources, of_targets = slice(num_tokens // 2), slice(num_tokens // 2, None)
    else:
        of_sources, of_targets = slice(0, None, 2), slice(1, None, 2)
    sources, targets = index[of_sources], index[of_targets]
    if keys.numel() <= 4 * elements_at_once(keys.device):
        similarity, choice = nearest_target(keys, targets.expand(batch, -1), sources=of_sources)  # (B, S)
    else:
        similarity, choice = _nearest_in_parts(keys, sources, targets)
    ranked = similarity.sort(dim=1, descending=True, stable=True).indices
    merged, left = ranked[:, :count], sources[ranked[:, count:]]
    anchor = torch.cat([left, targets.expand(batch, -1)], dim=1)
    anchor = anchor.sort(dim=1).values if order == "raster" else anchor
    numbers = index[: num_tokens - count].expand(batch, -1)
    group = torch.zeros(batch, num_tokens, dtype=torch.int64, device=keys.device).scatter(1, anchor, numbers)
    group = group.scatter(1, sources[merged], group.gather(1, choice.gather(1, merged)))
    return Grouping(group, num_tokens - count, anchor)


def _nearest_in_parts(keys: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the target most similar to each source, both (B, S), with few keys and products in memory at a time."""
    tokens_at_once = max(1, 2 * elements_at_once(keys.device) // keys[:, 0].numel())
    similarity, choice = [], []
    for some in sources.split(tokens_at_once):
        best = keys.new_full((len(keys), len(some)), -torch.inf, dtype=accumulator(keys.dtype))
        best_target = torch.zeros_like(best, dtype=torch.int64)
        for those in targets.split(tokens_at_once):
            local = torch.arange(len(some), len(some) + len(those), device=keys.device)
            values, found = nearest_target(
                keys[:, torch.cat([some, those])], local.expand(len(keys), -1), sources=slice(len(some))
            )
            better = values > best
            best = torch.where(better, values, best)
            best_target = torch.where(better, those[found - len(some)], best_target)
        similarity.append(best)
        choice.append(best_target)
    return torch.cat(similarity, dim=1), torch.cat(choice, dim=1)


@torch.no_grad()
def merge_rounds(
    keys: Tensor,
    target: int,
    *,
    rows: Tensor | None = None,
    partition: str,
    order: str,
    reduce: str,
    heads: int | None = None,
) -> Grouping:
    """Merge the tokens of each row until `target` are left.

    From the second round on, the keys are the means, or the maxima, of all keys merged so far.

    Args:
        keys: (B, N, c), any floating-point dtype.
        target: number of tokens to keep of each row.
        rows: (R,), rows to merge; None for all.
        partition: like that of `match_halves`.
        order: like that of `match_halves`.
        reduce: "mean" or "max".
        heads: number of blocks of channels, the mean of which is compared; None to compare all channels.

    Returns:
        grouping of the N tokens of each of the R rows.
    """
    rows_at_once = max(1, elements_at_once(keys.device) // keys[0].numel())
    num_rows, num_tokens = len(keys) if rows is None else len(rows), keys.shape[1]
    num_groups = num_tokens - sum(budget_rounds(num_tokens, target))
    index = torch.empty(num_rows, num_tokens, dtype=torch.int64, device=keys.device)  # first, against fragmentation
    anchor = torch.empty(num_rows, num_groups, dtype=torch.int64, device=keys.device)
    for start in range(0, num_rows, rows_at_once):
        some = slice(start, start + rows_at_once)
        part = keys[some] if rows is None else keys.index_select(0, rows[some])
        grouping = _merge_rows(part, target, heads, partition=partition, order=order, reduce=reduce)
        index[some], anchor[some] = grouping.index, grouping.anchor
    return Grouping(index, num_groups, anchor)


def _merge_rows(keys: Tensor, target: int, heads: int | None, *, partition: str, order: str, reduce: str) -> Grouping:
    """Compute `merge_rounds` of all rows together."""
    batch, num_tokens, _ = keys.shape
    dtype = accumulator(keys.dtype)
    grouping = Grouping.identity(batch, num_tokens, device=keys.device)
    compared = keys
    for count in budget_rounds(num_tokens, target):
        if grouping.num_groups < num_tokens:
            joined = grouping.join_windows(batch)
            compared = reduce_groups(
                keys.flatten(0, 1), joined.index[0], joined.num_groups, reduce=reduce, dtype=dtype
            ).unflatten(0, (batch, -1))
        if heads is not None:
            compared = compared.unflatten(2, (heads, -1)).mean(2, dtype=dtype)
        grouping = compose(grouping, match_halves(compared, count, partition=partition, order=order))
    return grouping

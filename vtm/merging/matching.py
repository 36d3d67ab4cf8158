"""Bipartite matching of sources to targets by their attention keys (VTM paper, equations 3 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.merging.partition import true_indices
from vtm.merging.tokens import Grouping

PRODUCTS_AT_ONCE = 2**21  # keys × targets; 8 MB in fp32, which fit into the cache of a current CPU


def match_bipartite(keys: Tensor, targets: Tensor, merge_count: int, *, mask: Tensor | None = None) -> Grouping:
    """Assign the `merge_count` sources most similar to a target to that target; all others stay unmerged.

    Each source is matched to the target with the highest cosine similarity of keys, all heads concatenated (equation
    3); of the N − M sources, only the R most similar ones are merged (equation 5). A zero key has similarity 0. Nothing
    is merged into a target whose key is not finite while another target is left, and a source whose key is not finite
    is merged last. Similarities of half-precision keys are computed in fp32. No gradient flows through the matching.

    Args:
        keys: (B, N, D).
        targets: (B, M) int64, ascending, unique in each row.
        merge_count: R, between 0 and N − M.
        mask: (B, N) bool, True = real. Masked sources are merged first; real sources avoid masked targets.

    Returns:
        grouping of N tokens into N − R groups.

    Raises:
        ValueError: if the shapes do not match, or R is outside [0, N − M].
        TypeError: if the keys are not floating point or the targets are not int64.

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.6, 0.6]]])
    >>> match_bipartite(keys, torch.tensor([[0, 1]]), 1)
    Grouping(index=tensor([[0, 1, 0, 2]]), num_groups=3, anchor=tensor([[0, 1, 3]]))
    """
    if keys.ndim != 3 or targets.ndim != 2 or keys.shape[0] != targets.shape[0]:
        raise ValueError(f"expected keys (B, N, D), targets (B, M), got {tuple(keys.shape)}, {tuple(targets.shape)}")
    if mask is not None and mask.shape != keys.shape[:2]:
        raise ValueError(f"expected mask (B, N) = {tuple(keys.shape[:2])}, got {tuple(mask.shape)}")
    if not keys.is_floating_point() or targets.dtype != torch.int64:
        raise TypeError(f"expected floating keys and int64 targets, got {keys.dtype} and {targets.dtype}")
    batch, num_tokens, _ = keys.shape
    num_sources = num_tokens - targets.shape[1]
    if not 0 <= merge_count <= num_sources:
        raise ValueError(f"expected merge_count between 0 and the {num_sources} sources, got {merge_count}")
    if merge_count == 0:
        return Grouping.identity(batch, num_tokens, device=keys.device)

    similarity, choice = nearest_target(keys.detach(), targets, mask=mask)  # (B, N)
    if mask is not None:
        similarity = similarity.masked_fill(~mask, torch.inf)
    similarity = similarity.scatter(1, targets, -torch.inf)  # a target is never merged away
    merged = torch.zeros_like(similarity, dtype=torch.bool)
    merged = merged.scatter(1, similarity.topk(merge_count, dim=1, sorted=False).indices, True)
    group = (~merged).cumsum(1) - 1  # right for unmerged tokens only
    index = torch.where(merged, group.gather(1, choice), group)
    num_groups = num_tokens - merge_count
    return Grouping(index, num_groups, anchor=true_indices(~merged, num_groups))


def nearest_target(
    keys: Tensor, targets: Tensor, *, sources: slice = slice(None), mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the target with the highest cosine similarity to each source.

    A zero key has similarity 0. A target whose key is not finite is chosen only if all are such; the similarity of a
    source whose key is not finite is -2. Similarities of half-precision keys are computed in fp32.

    Args:
        keys: (B, N, D).
        targets: (B, M) int64, indices of tokens.
        sources: the S tokens to find a target for; all by default.
        mask: (B, N) bool, True = real. A masked target is chosen only if all are masked.

    Returns:
        highest similarity of each source and the index of its target, both (B, S).
    """
    with torch.autocast(keys.device.type, enabled=False):
        keys = keys.float() if keys.dtype in (torch.float16, torch.bfloat16) else keys
        keys = keys if mask is None else keys.masked_fill(~mask[..., None], 0)
        norm = _norm(keys, mask)  # (B, N)
        usable = norm.gather(1, targets).isfinite()  # (B, M)
        if mask is not None:
            usable = usable & mask.gather(1, targets)
        targets = torch.where(usable, targets, targets.gather(1, usable.byte().argmax(1, keepdim=True)))
        target_keys = keys.gather(1, targets[..., None].expand(-1, -1, keys.shape[-1]))  # (B, M, D)
        target_keys = target_keys / norm.gather(1, targets)[..., None]
        keys, norm = keys[:, sources], norm[:, sources]
        find = _largest_product
        if keys.device.type == "cpu" and not torch.compiler.is_compiling():
            find = _largest_product_in_parts
        best, choice = find(keys, target_keys)  # the norm of a source does not change the argmax
        return (best / norm).nan_to_num(nan=-2.0), targets.gather(1, choice)


def _norm(keys: Tensor, mask: Tensor | None) -> Tensor:
    """Return the norm of each key, whose squares may overflow: (B, N, D) -> (B, N).

    The norm is 1 for a zero key and not finite for a key that is not.
    """
    number = torch.finfo(keys.dtype)
    norm = torch.linalg.vector_norm(keys, dim=-1)
    moderate = (norm > number.tiny**0.4) & (norm < number.max**0.4)
    if not _all_on_cpu(moderate if mask is None else moderate | ~mask):  # the scaled copy takes time
        smallest, largest = keys.aminmax(dim=-1, keepdim=True)
        scale = torch.maximum(largest, -smallest).clamp(min=number.tiny)
        norm = torch.linalg.vector_norm(keys / scale, dim=-1) * scale[..., 0]
    return torch.where(norm == 0, 1, norm)


def _all_on_cpu(values: Tensor) -> bool:
    """Return whether all values are true; False where they are not at hand: on a GPU, in a graph, under vmap."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    try:
        return bool(values.all())
    except RuntimeError:  # of fake tensors and vmap
        return False


def _largest_product(keys: Tensor, target_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest dot product of each key with a target key, and the rank of that target; both (B, N).

    Args:
        keys: (B, N, D).
        target_keys: (B, M, D).
    """
    best, choice = (keys @ target_keys.mT).max(-1)
    return best, choice


def _largest_product_in_parts(keys: Tensor, target_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `_largest_product`, up to rounding, with at most `PRODUCTS_AT_ONCE` products (or M) in memory."""
    num_tokens, num_targets = keys.shape[1], target_keys.shape[1]
    rows = max(1, PRODUCTS_AT_ONCE // (num_tokens * num_targets))
    width = max(1, PRODUCTS_AT_ONCE // num_targets)
    chunks = []
    for some_keys, some_targets in zip(keys.split(rows), target_keys.split(rows), strict=True):
        parts = [_largest_product(part, some_targets) for part in some_keys.split(width, dim=1)]
        chunks.append([torch.cat(values, dim=1) for values in zip(*parts, strict=True)])
    best, choice = (torch.cat(values) for values in zip(*chunks, strict=True))
    return best, choice

"""Training-free reductions: which tokens a block merges or drops (Pollard and Wray 2025, section 3; Bolya et al. 2023).

All reductions share the signature `reduce(keys, size, count, *, protected=0, generator=None) -> (Grouping, size)` and
take `count` tokens away. Tokens are split by the parity of their index: those at even indices are sources, those at odd
ones targets. The first `protected` tokens, such as CLS, are neither. The sizes returned are the weights of the tokens
in the average of their group, so `merge(replace(tokens, size=size), grouping, weights=size)` reduces the tokens; a
dropped token has weight 0 but still belongs to the group of its target, so `unmerge` returns a dense grid.

The order of the groups is part of the algorithm, because the next block splits them by parity again: protected tokens,
remaining sources, targets. The remaining sources are in ascending order if there are protected tokens; otherwise, in
descending order of their similarity.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vtm.merging import Grouping
from vtm.merging.matching import nearest_target
from vtm.merging.partition import true_indices


class Reduction(Protocol):
    """The signature of all reductions.

    Args:
        keys: (B, N, D), attention keys that are compared.
        size: (B, N), number of tokens of the input in each token.
        count: number of tokens to take away, at most `most_reduced(N, protected)`.
        protected: number of leading tokens that stay as they are.
        generator: generator of the random reductions; None for the global generator of its device.

    Returns:
        grouping of N tokens into N − count groups, and the weights (B, N) of the tokens.
    """

    def __call__(
        self,
        keys: Tensor,
        size: Tensor,
        count: int,
        /,
        *,
        protected: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Grouping, Tensor]: ...


def most_reduced(num_tokens: int, protected: int = 0) -> int:
    """Return how many tokens a block can take away: half of those that are not protected.

    >>> most_reduced(197, 1), most_reduced(5)
    (98, 2)
    """
    return max(0, num_tokens - protected) // 2


def merge_similar(
    keys: Tensor, size: Tensor, count: int, *, protected: int = 0, generator: torch.Generator | None = None
) -> tuple[Grouping, Tensor]:
    """Merge the sources most similar to a target into it: ToMe's bipartite soft matching.

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]])
    >>> merge_similar(keys, torch.ones(1, 4), 1)[0].index
    tensor([[0, 1, 1, 2]])
    """
    _check(keys, size, count, protected)
    if not count:
        return _identity(size), size
    similarity, target = _match(keys, protected)
    return _group(similarity, target, count, keys.shape[1], protected), size


def drop_similar(
    keys: Tensor, size: Tensor, count: int, *, protected: int = 0, generator: torch.Generator | None = None
) -> tuple[Grouping, Tensor]:
    """Drop the sources that `merge_similar` would merge.

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]])
    >>> drop_similar(keys, torch.ones(1, 4), 1)[1]
    tensor([[1., 1., 0., 1.]])
    """
    _check(keys, size, count, protected)
    if not count:
        return _identity(size), size
    similarity, target = _match(keys, protected)
    grouping = _group(similarity, target, count, keys.shape[1], protected)
    return grouping, size.masked_fill(~_is_anchor(grouping), 0)


def merge_hybrid(
    keys: Tensor,
    size: Tensor,
    count: int,
    *,
    threshold: float,
    protected: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Grouping, Tensor]:
    """Merge like `merge_similar`, but let a source whose similarity is below a threshold replace its target.

    Args:
        threshold: τ, cosine similarity; 0.4 for ViViT and 0.8 for VideoMAE in the paper.

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [0.0, -1.0]]])
    >>> merge_hybrid(keys, torch.ones(1, 4), 1, threshold=0.95)[1]
    tensor([[1., 0., 1., 1.]])
    """
    _check(keys, size, count, protected)
    if not count:
        return _identity(size), size
    similarity, target = _match(keys, protected)
    grouping = _group(similarity, target, count, keys.shape[1], protected)
    merged = ~_is_anchor(grouping)[:, _sources(protected)]
    replaced = torch.zeros_like(size).scatter_add(1, target, (merged & (similarity < threshold)).to(size.dtype))
    return grouping, size.masked_fill(replaced > 0, 0)


def merge_random(
    keys: Tensor, size: Tensor, count: int, *, protected: int = 0, generator: torch.Generator | None = None
) -> tuple[Grouping, Tensor]:
    """Merge random sources into random targets; the keys are not used."""
    _check(keys, size, count, protected)
    if not count:
        return _identity(size), size
    score, target = _draw(keys, protected, generator)
    return _group(score, target, count, keys.shape[1], protected), size


def drop_random(
    keys: Tensor, size: Tensor, count: int, *, protected: int = 0, generator: torch.Generator | None = None
) -> tuple[Grouping, Tensor]:
    """Drop random sources; the keys are not used."""
    _check(keys, size, count, protected)
    if not count:
        return _identity(size), size
    score, target = _draw(keys, protected, generator)
    grouping = _group(score, target, count, keys.shape[1], protected)
    return grouping, size.masked_fill(~_is_anchor(grouping), 0)


def has_generator(reduce: Reduction) -> bool:
    """Return whether a reduction, a `functools.partial`, draws from a generator of its own."""
    return getattr(reduce, "keywords", {}).get("generator") is not None


def _sources(protected: int) -> slice:
    """Return the even indices after the protected tokens."""
    return slice(protected + protected % 2, None, 2)


def _targets(num_tokens: int, protected: int, device: torch.device) -> Tensor:
    """Return the odd indices after the protected tokens, (M,)."""
    return torch.arange(protected + 1 - protected % 2, num_tokens, 2, device=device)


def _check(keys: Tensor, size: Tensor, count: int, protected: int) -> None:
    if keys.ndim != 3 or size.shape != keys.shape[:2]:
        raise ValueError(f"expected keys (B, N, D) and size (B, N), got {tuple(keys.shape)} and {tuple(size.shape)}")
    most = most_reduced(keys.shape[1], protected)
    if not 0 <= count <= most:
        raise ValueError(
            f"expected count between 0 and {most}, half of the {keys.shape[1] - protected} tokens that are not "
            f"protected, got {count}"
        )


def _match(keys: Tensor, protected: int) -> tuple[Tensor, Tensor]:
    """Return the similarity of each source to its target, and the index of the target; both (B, S)."""
    targets = _targets(keys.shape[1], protected, keys.device).expand(len(keys), -1)
    return nearest_target(keys.detach(), targets, sources=_sources(protected))


def _draw(keys: Tensor, protected: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw a score for each pair of a source and a target, and return the best target of each source like `_match`.

    The scores are drawn for all even and odd tokens, protected ones included, as the code of Pollard and Wray does, so
    that the same seed takes the same tokens away.
    """
    batch, num_tokens, _ = keys.shape
    device = keys.device if generator is None else generator.device
    scores = torch.rand(batch, (num_tokens + 1) // 2, num_tokens // 2, device=device, generator=generator)
    score, choice = scores[:, (protected + 1) // 2 :, protected // 2 :].to(keys.device).max(-1)
    return score, _targets(num_tokens, protected, keys.device)[choice]


def _group(score: Tensor, target: Tensor, count: int, num_tokens: int, protected: int) -> Grouping:
    """Group the `count` sources of the highest score with their targets, in the order that the module describes."""
    batch, num_sources = score.shape
    device = score.device
    prefix = torch.arange(protected, device=device).expand(batch, -1)
    sources = torch.arange(num_tokens, device=device)[_sources(protected)]  # (S,)
    targets = _targets(num_tokens, protected, device)  # (M,)
    order = score.topk(num_sources, dim=1).indices  # (B, S), by descending score
    kept = order[:, count:]  # (B, S − count)
    if protected:
        left = torch.zeros_like(score, dtype=torch.bool).scatter(1, kept, True)
        kept = true_indices(left, num_sources - count)
    first_target = protected + num_sources - count
    group = first_target + (target - targets[0]) // 2  # (B, S), right for merged sources
    rank = torch.arange(protected, first_target, device=device).expand(batch, -1)
    group = group.scatter(1, kept, rank)
    of_targets = torch.arange(first_target, num_tokens - count, device=device).expand(batch, -1)
    place = torch.cat([prefix[0], sources, targets]).argsort()  # where the columns of the next line belong
    index = torch.cat([prefix, group, of_targets], dim=1)[:, place]
    anchor = torch.cat([prefix, sources[kept], targets.expand(batch, -1)], dim=1)
    return Grouping(index, num_tokens - count, anchor)


def _identity(size: Tensor) -> Grouping:
    return Grouping.identity(*size.shape, device=size.device)


def _is_anchor(grouping: Grouping) -> Tensor:
    """Return whether each token is the anchor of its group, (B, N) bool."""
    return torch.zeros_like(grouping.index, dtype=torch.bool).scatter(1, grouping.anchor, True)

"""Partition strategies: the choice of the merge targets among the tokens (VTM paper, section 3).

All strategies share the signature `strategy(tokens, grid, partition_factor, *, sample=False, generator=None)` and
return exactly M = ⌈N/γ⌉ targets per batch item as (B, M) int64, ascending and without repeats. All other tokens are
sources. Masked (padded) tokens become targets only if there are fewer than M real ones. `grid` is the token grid of the
window before any merging; only the strategies that divide frames into areas need it.

`generator` is None (the global generator of the device), a `torch.Generator`, or a sequence with one generator per
clip: the B rows are split evenly among them, so that the targets of a clip do not depend on the other clips of the
batch. Noise is drawn on the device of the generator, so a CPU generator yields the same targets on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vtm.merging.tokens import Grid, Tokens

Generators = torch.Generator | Sequence[torch.Generator] | None


class Partition(Protocol):
    """The signature of all strategies."""

    def __call__(
        self,
        tokens: Tokens,
        grid: Grid | None,
        partition_factor: int,
        *,
        sample: bool = False,
        generator: Generators = None,
    ) -> Tensor: ...


def num_targets(num_tokens: int, partition_factor: int) -> int:
    """Return the number of targets, M = ⌈N/γ⌉.

    >>> num_targets(13, 6)
    3
    """
    if not isinstance(partition_factor, int) or isinstance(partition_factor, bool) or partition_factor < 1:
        raise ValueError(f"expected partition_factor to be an integer >= 1, got {partition_factor!r}")
    return -(-num_tokens // partition_factor)


def uniform_partition(
    tokens: Tokens, grid: Grid | None, partition_factor: int, *, sample: bool = False, generator: Generators = None
) -> Tensor:
    """Choose every γ-th token: 0, γ, 2γ, … (naïve VTM, equation 1 counted from 0).

    With a mask, the targets are the real tokens of rank ⌊jγn/N⌋, where n is the number of real tokens; if n < M, all
    real tokens and the first masked ones. `sample` and `generator` are ignored.

    >>> uniform_partition(Tokens.from_grid(torch.zeros(1, 1, 2, 5, 3)), Grid(1, 2, 5), 4)
    tensor([[0, 4, 8]])
    """
    batch, num_tokens = tokens.x.shape[:2]
    count = num_targets(num_tokens, partition_factor)
    if tokens.mask is None:
        return torch.arange(0, num_tokens, partition_factor, device=tokens.x.device).expand(batch, count).contiguous()
    rank = tokens.mask.cumsum(1) - 1
    stride = partition_factor * tokens.mask.sum(1, keepdim=True).clamp(min=1)  # in N-ths of a token: γn
    j = (rank * num_tokens + stride - 1).div(stride, rounding_mode="floor")  # the first with ⌊jγn/N⌋ >= rank
    taken = tokens.mask & (j * stride < (rank + 1) * num_tokens)
    return true_indices(_fill(taken, tokens.mask, count), count)


def center_partition(
    tokens: Tokens, grid: Grid | None, partition_factor: int, *, sample: bool = False, generator: Generators = None
) -> Tensor:
    """Choose ⌈M/2⌉ targets from the central H/2 × W/2 of the frames and the rest from outside it.

    This is a partition factor of γ/2 in the center and 3γ/2 around it. Targets are spread evenly within each area, in
    token order. If an area has too few tokens, all of them are targets and the other area supplies the rest. Areas are
    derived from token positions, so the strategy also works after merging. `sample` and `generator` are ignored.

    >>> center_partition(Tokens.from_grid(torch.zeros(1, 1, 4, 4, 3)), Grid(1, 4, 4), 4)
    tensor([[ 6,  7, 10, 15]])
    """
    count = num_targets(tokens.x.shape[1], partition_factor)
    return _by_area(tokens, grid, count, inside_count=(count + 1) // 2)


def boundary_partition(
    tokens: Tokens, grid: Grid | None, partition_factor: int, *, sample: bool = False, generator: Generators = None
) -> Tensor:
    """Choose round(M/6) targets, halves rounded up, from the central H/2 × W/2 of the frames and the rest from outside.

    The counterpart of `center_partition`, with a partition factor of 3γ/2 in the center.

    >>> boundary_partition(Tokens.from_grid(torch.zeros(1, 1, 4, 4, 3)), Grid(1, 4, 4), 4)
    tensor([[ 3, 10, 11, 15]])
    """
    count = num_targets(tokens.x.shape[1], partition_factor)
    return _by_area(tokens, grid, count, inside_count=(count + 3) // 6)


def motion_partition(
    tokens: Tokens, grid: Grid | None, partition_factor: int, *, sample: bool = False, generator: Generators = None
) -> Tensor:
    """Prefer tokens that move: p = softmax(v), v the motion magnitude `tokens.motion` in pixels per frame.

    With `sample`, M targets are drawn without replacement (Gumbel-top-k); otherwise, the M largest v are taken. Among
    tokens with equal motion, as in a static scene, the targets are spread evenly.

    >>> tokens = Tokens.from_grid(torch.zeros(1, 1, 2, 2, 3), motion=torch.tensor([[[[0.0, 3.0], [2.0, 1.0]]]]))
    >>> motion_partition(tokens, Grid(1, 2, 2), 2)
    tensor([[1, 2]])
    """
    if tokens.motion is None:
        raise ValueError(
            "motion_partition needs tokens.motion (B, N), got None: pass it, or use another partition if the data have "
            "no motion"
        )
    if sample:
        return _by_score(tokens.motion, tokens, partition_factor, sample, generator)
    return _by_score(_spread_ties(tokens.motion, 1e-4), tokens, partition_factor, sample, generator)


def saliency_partition(
    tokens: Tokens, grid: Grid | None, partition_factor: int, *, sample: bool = False, generator: Generators = None
) -> Tensor:
    """Prefer salient tokens: p = softmax(s), s the learned saliency `tokens.saliency` (learnable VTM, equation 9).

    With `sample`, M targets are drawn without replacement (Gumbel-top-k); otherwise, the M largest s are taken. Among
    tokens with equal saliency, as before training, the targets are spread evenly.
    """
    if tokens.saliency is None:
        raise ValueError("saliency_partition needs tokens.saliency (B, N), got None: estimate it first")
    if sample:
        return _by_score(tokens.saliency, tokens, partition_factor, sample, generator)
    return _by_score(_spread_ties(tokens.saliency, 1e-6), tokens, partition_factor, sample, generator)


def true_indices(chosen: Tensor, count: int) -> Tensor:
    """Return the indices of the true entries of each row, ascending: (B, N) bool -> (B, count) int64.

    Every row must have exactly `count` true entries. Nothing is sorted and the device is not synchronized.

    >>> true_indices(torch.tensor([[True, False, True], [False, True, True]]), 2)
    tensor([[0, 2],
            [1, 2]])
    """
    indices = torch.arange(chosen.shape[1], device=chosen.device).expand(chosen.shape)
    slots = torch.where(chosen, chosen.cumsum(1) - 1, count)  # false entries go to slot `count`, which is dropped
    return indices.new_zeros(chosen.shape[0], count + 1).scatter(1, slots, indices)[:, :count]


def _by_score(scores: Tensor, tokens: Tokens, factor: int, sample: bool, generator: Generators) -> Tensor:
    count = num_targets(tokens.x.shape[1], factor)
    scores = scores.detach()
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if sample:
        scores = scores + _gumbel(scores, generator)
    if tokens.mask is not None:
        scores = scores.masked_fill(~tokens.mask, -torch.inf)
    return scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values


def _spread_ties(scores: Tensor, step: float) -> Tensor:
    """Break ties by adding small offsets, so that the largest of equal scores are spread evenly over the row.

    The offsets are multiples of the golden ratio modulo 1, times `step`.

    Args:
        scores: (B, N).
        step: upper bound of the offsets.
    """
    order = torch.arange(scores.shape[1], device=scores.device) * 40503 % 65536 / 65536
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) + step * order


def _gumbel(scores: Tensor, generator: Generators) -> Tensor:
    """Draw standard Gumbel noise (B, N): minus the logarithm of an exponential variable."""
    if generator is None:
        return -torch.empty_like(scores).exponential_().log()
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    rows, width = scores.shape
    if not generators or rows % len(generators):
        raise ValueError(f"expected the {rows} rows to split evenly among the generators, got {len(generators)}")
    share = (rows // len(generators), width)
    noise = [torch.empty(share, dtype=scores.dtype, device=g.device).exponential_(generator=g) for g in generators]
    return -torch.cat(noise).to(scores.device).log()


def _by_area(tokens: Tokens, grid: Grid | None, count: int, *, inside_count: int) -> Tensor:
    if grid is None:
        raise ValueError("this partition divides frames into areas and needs the grid, got None: pass Grid(T, H, W)")
    y, x = tokens.position[..., 1], tokens.position[..., 2]
    inside = (4 * y + 2 >= grid.height) & (4 * y + 2 < 3 * grid.height)  # H/4 <= y + 1/2 < 3H/4
    inside = inside & (4 * x + 2 >= grid.width) & (4 * x + 2 < 3 * grid.width)
    real = torch.ones_like(inside) if tokens.mask is None else tokens.mask
    inside, outside = inside & real, ~inside & real
    num_inside, num_outside = inside.sum(1, keepdim=True), outside.sum(1, keepdim=True)
    from_inside = torch.maximum(num_inside.clamp(max=inside_count), count - num_outside).minimum(num_inside)
    from_outside = (count - from_inside).minimum(num_outside)
    taken = _evenly(inside, from_inside) | _evenly(outside, from_outside)
    return true_indices(taken if tokens.mask is None else _fill(taken, tokens.mask, count), count)


def _evenly(area: Tensor, count: Tensor) -> Tensor:
    """Choose `count` (B, 1) of the n tokens of `area` (B, N): those of rank r with ⌊(r+1)·count/n⌋ > ⌊r·count/n⌋."""
    rank = area.cumsum(1) - 1
    size = area.sum(1, keepdim=True).clamp(min=1)
    return area & (
        ((rank + 1) * count).div(size, rounding_mode="floor") > (rank * count).div(size, rounding_mode="floor")
    )


def _fill(taken: Tensor, real: Tensor, count: int) -> Tensor:
    """Add tokens to `taken` (B, N) up to `count` per row: the first remaining real ones, then the first masked ones."""
    for candidates in (real & ~taken, ~real):
        missing = count - taken.sum(1, keepdim=True)
        taken = taken | (candidates & (candidates.cumsum(1) <= missing))
    return taken

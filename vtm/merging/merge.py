"""Operations on groupings of tokens: merge, unmerge, compose (VTM paper, equation 4).

A merge is a segment mean, an unmerge is a gather, and tokens are tracked by composing index tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtm.merging.tokens import Grouping, Tokens, accumulator, check_shape


def merge(tokens: Tokens, grouping: Grouping, *, weights: Tensor | None = None, reduce: str = "mean") -> Tokens:
    """Average the tokens of each group: y_i = (x_i + Σ x_j) / (1 + |M_i|), equation 4; or take their maximum.

    Sizes are summed; motion and saliency are averaged; the position of a group is the position of its anchor; a
    group is real if any of its tokens is real. Masked tokens have weight zero; a group whose weights are all zero gets
    the plain average. If nothing is merged (num_groups = N), the tokens are returned unchanged.

    Args:
        tokens: N tokens per batch item.
        grouping: groups of the N tokens.
        weights: (B, N), non-negative weights in the averages; None for plain averages.
        reduce: "mean", or "max" for the element-wise maximum of x.

    Returns:
        num_groups tokens per batch item, in the dtype of the input (half precision is accumulated in fp32).

    Raises:
        ValueError: if the shapes do not match or `reduce` is unknown.

    >>> tokens = Tokens.from_grid(torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1, 1))
    >>> grouping = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> merge(tokens, grouping).x.flatten(), merge(tokens, grouping).size
    (tensor([3.5000, 2.0000]), tensor([[2., 1.]]))
    >>> merge(tokens, grouping, reduce="max").x.flatten()
    tensor([6., 2.])
    """
    batch, num_tokens = tokens.x.shape[:2]
    check_shape("grouping.index (B, N)", grouping.index, (batch, num_tokens))
    if weights is not None:
        check_shape("weights (B, N)", weights, (batch, num_tokens))
    if reduce not in ("mean", "max"):
        raise ValueError(f"expected reduce to be mean or max, got {reduce!r}")
    if grouping.num_groups == num_tokens:
        return tokens
    share = _shares(grouping, tokens.x.dtype, weights=weights, mask=tokens.mask)
    bags = _bags(grouping)

    def mean(values: Tensor | None) -> Tensor | None:
        return None if values is None else _average(values[..., None], grouping, share, bags, mask=tokens.mask)[..., 0]

    x = tokens.x
    return Tokens(
        x=group_max(x, grouping, mask=tokens.mask)
        if reduce == "max"
        else _average(x, grouping, share, bags, mask=tokens.mask),
        size=_group_sum(tokens.size[..., None], grouping)[..., 0],
        position=tokens.position.gather(1, grouping.anchor[..., None].expand(-1, -1, 3)),
        motion=mean(tokens.motion),
        saliency=mean(tokens.saliency),
        mask=None if tokens.mask is None else _group_sum(tokens.mask[..., None].float(), grouping)[..., 0] > 0,
    )


def average(x: Tensor, grouping: Grouping, *, weights: Tensor | None = None) -> Tensor:
    """Average the rows of each group: (B, N, C) -> (B, num_groups, C).

    Args:
        x: (B, N, C).
        grouping: groups of the N tokens.
        weights: (B, N), non-negative; None for the plain average. A group with zero total weight has equal weights.

    >>> grouping = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> average(torch.tensor([[[1.0], [2.0], [6.0]]]), grouping).flatten()
    tensor([3.5000, 2.0000])
    """
    return _average(x, grouping, _shares(grouping, x.dtype, weights=weights), _bags(grouping))


def group_max(x: Tensor, grouping: Grouping, *, mask: Tensor | None = None) -> Tensor:
    """Take the element-wise maximum of the rows of each group: (B, N, C) -> (B, num_groups, C).

    Args:
        x: (B, N, C).
        grouping: groups of the N tokens.
        mask: (B, N) bool; masked tokens are ignored, and a group without others gets 0.

    >>> grouping = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> group_max(torch.tensor([[[1.0, 4.0], [2.0, 5.0], [3.0, 0.0]]]), grouping)
    tensor([[[3., 4.],
             [2., 5.]]])
    """
    batch, _, channels = x.shape
    if mask is not None:
        x = x.masked_fill(~mask[..., None], -torch.inf)
    rows = _flat_groups(grouping)[:, None].expand(-1, channels)
    largest = x.new_full((batch * grouping.num_groups, channels), -torch.inf)
    largest = largest.scatter_reduce(0, rows, x.reshape(-1, channels), "amax", include_self=False)
    largest = largest.reshape(batch, grouping.num_groups, channels)
    if mask is None:
        return largest
    return largest.masked_fill(group_sum(mask.float(), grouping)[..., None] == 0, 0)


def group_sum(values: Tensor, grouping: Grouping) -> Tensor:
    """Sum the values of each group: (B, N) -> (B, num_groups).

    >>> grouping = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> group_sum(torch.tensor([[1.0, 2.0, 6.0]]), grouping)
    tensor([[7., 2.]])
    """
    return _group_sum(values[..., None], grouping)[..., 0]


def unmerge(x: Tensor, grouping: Grouping) -> Tensor:
    """Copy the value of each group to all of its tokens: (B, num_groups, C) -> (B, N, C).

    >>> grouping = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> unmerge(torch.tensor([[[3.5], [2.0]]]), grouping).flatten()
    tensor([3.5000, 2.0000, 3.5000])
    """
    if x.ndim != 3 or x.shape[:2] != (grouping.index.shape[0], grouping.num_groups):
        expected = (grouping.index.shape[0], grouping.num_groups)
        raise ValueError(f"expected x (B, num_groups, C) = {expected} + (C,), got {tuple(x.shape)}")
    return x.gather(1, grouping.index[..., None].expand(-1, -1, x.shape[2]))


def compose(first: Grouping, second: Grouping) -> Grouping:
    """Compose two groupings, `first` and then `second`, into one.

    >>> first = Grouping(torch.tensor([[0, 1, 0]]), 2, torch.tensor([[0, 1]]))
    >>> compose(first, Grouping(torch.tensor([[0, 0]]), 1, torch.tensor([[1]])))
    Grouping(index=tensor([[0, 0, 0]]), num_groups=1, anchor=tensor([[1]]))
    """
    expected = (first.index.shape[0], first.num_groups)
    check_shape("second.index (B, first.num_groups)", second.index, expected)
    return Grouping(second.index.gather(1, first.index), second.num_groups, first.anchor.gather(1, second.anchor))


def _shares(
    grouping: Grouping, dtype: torch.dtype, *, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Return each token's share in the average of its group, (B, N); the shares of a group sum to one.

    Args:
        grouping: groups of the N tokens.
        dtype: dtype of the tokens to average; the shares are in fp32 for half precision.
        weights: (B, N), non-negative; None for equal shares. A group with zero total weight has equal shares.
        mask: (B, N) bool; masked tokens have no share in a group with real tokens.
    """
    dtype = accumulator(dtype)
    equal = torch.ones_like(grouping.index, dtype=dtype)
    real = equal if mask is None else mask.to(dtype)
    weights = real if weights is None else weights.to(dtype)
    weights = weights if mask is None else weights.masked_fill(~mask, 0)
    for fallback in (equal,) if mask is None else (real, equal):
        weights = torch.where(_group_total(weights, grouping) == 0, fallback, weights)
    return weights / _group_total(weights, grouping)


def _average(
    x: Tensor, grouping: Grouping, share: Tensor, bags: tuple[Tensor, Tensor] | None, *, mask: Tensor | None = None
) -> Tensor:
    """Sum x (B, N, C) over each group, weighted by the shares (B, N): (B, num_groups, C), in the dtype of x.

    Masked tokens are ignored even if they are NaN.
    """
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0)
    if bags is None:
        return _group_sum(x * share[..., None], grouping).to(x.dtype)
    flat = x.reshape(-1, x.shape[-1]).to(share.dtype)
    sums: Tensor = _BagSum.apply(flat, share.flatten(), _flat_groups(grouping), *bags)
    return sums.reshape(len(x), grouping.num_groups, x.shape[-1]).to(x.dtype)


class _BagSum(torch.autograd.Function):
    """The weighted sum of the rows in each bag, by `embedding_bag`, which alone has first derivatives only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, share: Tensor, group: Tensor, order: Tensor, starts: Tensor) -> Tensor:
        """Sum x (rows, C), weighted by share (rows,), over groups: (groups, C)."""
        return F.embedding_bag(order, x, starts, mode="sum", per_sample_weights=share[order])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save what the derivatives need."""
        x, share, group, *_ = inputs
        ctx.save_for_backward(x, share, group)
        ctx.save_for_forward(x, share, group)
        ctx.num_groups = len(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and share, by operations that can be differentiated again."""
        x, share, group = ctx.saved_tensors
        grad_x = grad.index_select(0, group)  # (rows, C)
        grad_share = _row_products(grad_x, x) if ctx.needs_input_grad[1] else None
        if torch.is_grad_enabled():  # differentiated again, so nothing may change in place
            return grad_x * share[:, None], grad_share, None, None, None
        return grad_x.mul_(share[:, None]), grad_share, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, share_tangent: Tensor | None, *_: None) -> Tensor:
        """Return the tangent of the sums."""
        x, share, group = ctx.saved_tensors
        sums: Tensor = x.new_zeros(ctx.num_groups, x.shape[-1])
        tangent = torch.zeros_like(x)
        if x_tangent is not None:
            tangent = tangent + x_tangent * share[:, None]
        if share_tangent is not None:
            tangent = tangent + x * share_tangent[:, None]
        return sums.index_add(0, group, tangent)


def _bags(grouping: Grouping) -> tuple[Tensor, Tensor] | None:
    """Return all tokens of the batch sorted by group, (B · N,), and the start of each group, (B · num_groups,).

    They let `embedding_bag` average x in one pass, without the (B, N, C) product and several times faster than
    scatter_add. None while compiling: compilers fuse the product, and every export format supports scatter_add.
    """
    if torch.compiler.is_compiling():
        return None
    rows, order = _flat_groups(grouping).sort(stable=True)
    return order, torch.searchsorted(rows, torch.arange(len(grouping.index) * grouping.num_groups, device=rows.device))


def _group_sum(values: Tensor, grouping: Grouping) -> Tensor:
    """Sum the values of each group: (B, N, C) -> (B, num_groups, C)."""
    batch, _, channels = values.shape
    rows = _flat_groups(grouping)[:, None].expand(-1, channels)
    sums = values.new_zeros(batch * grouping.num_groups, channels)
    return sums.scatter_add(0, rows, values.reshape(-1, channels)).reshape(batch, grouping.num_groups, channels)


def _flat_groups(grouping: Grouping) -> Tensor:
    """Number the groups across the batch: (B, N) -> (B · N,)."""
    first = torch.arange(grouping.index.shape[0], device=grouping.index.device) * grouping.num_groups
    return (grouping.index + first[:, None]).flatten()


def _group_total(weights: Tensor, grouping: Grouping) -> Tensor:
    """Return the total weight of the group of each token: (B, N) -> (B, N)."""
    return unmerge(_group_sum(weights[..., None], grouping), grouping)[..., 0]


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of each row of a and b, (rows, C): (rows,); in parts that fit into the cache."""
    return torch.cat([(some * other).sum(-1) for some, other in zip(a.split(512), b.split(512), strict=True)])

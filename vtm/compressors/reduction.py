"""One token for each group of tokens: the mean or the element-wise maximum, in little memory."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vtm.merging.merge import group_max
from vtm.merging.tokens import Grouping, accumulator

REDUCTIONS = ("mean", "max")


def elements_at_once(device: torch.device) -> int:
    """Return how many elements to convert or multiply at once: 16 MB in fp32 on a CPU, 256 MB elsewhere."""
    return 2**22 if device.type == "cpu" else 2**26


def reduce_groups(
    x: Tensor, index: Tensor, num_groups: int, *, reduce: str = "mean", dtype: torch.dtype | None = None
) -> Tensor:
    """Reduce the tokens of each group to one: (N, c) -> (num_groups, c).

    Half precision is accumulated in fp32. Groups of one token are copied exactly; if nothing is merged, left out or
    moved, x itself is returned.

    Args:
        x: (N, c).
        index: (N,) int64, group of each token; -1 to leave it out. Every group has a token.
        num_groups: number of groups.
        reduce: "mean" or "max".
        dtype: dtype of the result; None for the dtype of x.

    >>> reduce_groups(torch.tensor([[1.0], [2.0], [6.0], [9.0]]), torch.tensor([0, 1, 0, -1]), 2)
    tensor([[3.5000],
            [2.0000]])
    """
    dtype = dtype or x.dtype
    if num_groups == len(x) and torch.equal(index, torch.arange(len(x), device=x.device)):
        return x.to(dtype)
    order = index.argsort(stable=True)[(index < 0).sum() :]  # tokens by group
    if len(order) == num_groups:
        return x.index_select(0, order).to(dtype)
    reduced: Tensor = _Reduce.apply(x, index, order, num_groups, reduce, dtype)
    return reduced


class _Reduce(torch.autograd.Function):
    """The mean or maximum of each group. Autograd's own would keep copies of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, order: Tensor, num_groups: int, reduce: str, dtype: torch.dtype
    ) -> Tensor:
        """Reduce x (N, c) to (num_groups, c)."""
        starts = torch.searchsorted(index[order], torch.arange(num_groups + 1, device=x.device))
        with torch.autocast(x.device.type, enabled=False):
            reduced = _mean(x, order, starts, dtype) if reduce == "mean" else _max(x, order, starts, dtype)
        ctx.reduce = reduce
        ctx.save_for_backward(index, starts.diff(), *((x, reduced) if reduce == "max" else ()))
        return reduced

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of x: 1/size of that of its group for the mean; for the maximum, all to where it is."""
        index, size, *values = ctx.saved_tensors
        kept, group = (index >= 0)[:, None], index.clamp(min=0)
        if ctx.reduce == "mean":
            grad = (grad / size[:, None]).index_select(0, group)
            return torch.where(kept, grad, 0), None, None, None, None, None
        x, reduced = values
        largest = kept & (x == reduced.index_select(0, group))
        ties = torch.zeros_like(grad).index_add(0, group, largest.to(grad.dtype)).clamp(min=1)
        grad = torch.where(largest, (grad / ties).index_select(0, group), 0)
        return grad.to(x.dtype), None, None, None, None, None


def _mean(x: Tensor, order: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """Average the rows of x of each group.

    Args:
        x: (N, c).
        order: (rows,), rows of x by group.
        starts: (num_groups + 1,), first entry of each group in `order`.
        dtype: dtype of the result.
    """
    share = starts.diff().to(accumulator(x.dtype)).reciprocal().repeat_interleave(starts.diff())
    if x.dtype == share.dtype == dtype:
        return _weighted_sum(x, order, starts, share)
    out = _empty(len(starts) - 1, x, dtype)
    for groups, rows in _chunks(starts, x):
        part = x.index_select(0, order[rows]).to(share.dtype)
        local = torch.arange(len(part), device=x.device)
        start = starts[groups.start : groups.stop + 1] - starts[groups.start]
        out[groups] = _weighted_sum(part, local, start, share[rows])
    return out


def _weighted_sum(x: Tensor, order: Tensor, starts: Tensor, share: Tensor) -> Tensor:
    """Sum share·x of the rows of each group.

    On a CPU, the product with a sparse matrix is the fastest, if it writes to huge pages.
    """
    if x.device.type != "cpu" or not torch.backends.mkl.is_available():
        return F.embedding_bag(order, x, starts[:-1], mode="sum", per_sample_weights=share)
    num_groups = len(starts) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(starts, order, share, size=(num_groups, len(x)), check_invariants=False)
    out = _empty(num_groups, x, x.dtype)
    return torch.addmm(out, matrix, x, beta=0, out=out)


def _max(x: Tensor, order: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """Take the element-wise maximum of the rows of x of each group; arguments like `_mean`."""
    out = _empty(len(starts) - 1, x, dtype)
    for groups, rows in _chunks(starts, x):
        size = starts[groups.start : groups.stop + 1].diff()
        index = torch.arange(len(size), device=x.device).repeat_interleave(size)[None]
        anchor = (starts[groups] - starts[groups.start])[None]
        out[groups] = group_max(x.index_select(0, order[rows])[None], Grouping(index, len(size), anchor))[0]
    return out


def _chunks(starts: Tensor, x: Tensor) -> list[tuple[slice, slice]]:
    """Split groups into runs of limited size: slices of the groups and of the rows by group."""
    rows_at_once = max(1, elements_at_once(x.device) // x.shape[1])
    num_rows, num_groups = int(starts[-1]), len(starts) - 1
    marks = torch.arange(0, num_rows, rows_at_once, device=x.device)
    first = (torch.searchsorted(starts, marks, right=True) - 1).unique_consecutive()
    groups = pairwise([*first.tolist(), num_groups])
    rows = pairwise([*starts[first].tolist(), num_rows])
    return [(slice(*some), slice(*those)) for some, those in zip(groups, rows, strict=True)]


def _empty(rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate (rows, c) on the device of `like`.

    For large arrays, NumPy asks Linux for huge pages; with small ones, page faults take longer than the sums.
    """
    if like.device.type != "cpu":
        return like.new_empty(rows, like.shape[1], dtype=dtype)
    memory = torch.from_numpy(np.empty(rows * like.shape[1] * dtype.itemsize, np.uint8))
    return memory.view(dtype).view(rows, like.shape[1])

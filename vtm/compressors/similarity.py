"""Cosine similarity of neighboring tokens (DynTok, arXiv 2506.03990)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from vtm.compressors.clip import check_choice
from vtm.compressors.reduction import elements_at_once
from vtm.merging.tokens import accumulator

AXES = ("time", "column", "row")  # dimension along which tokens of the grid are neighbors


@torch.no_grad()
def neighbor_similarity(encoder: Tensor, *, axis: str = "row") -> Tensor:
    """Return the cosine similarity of each token and its neighbor before it: (t, h, w, c) -> (t, h, w).

    It is -inf for the first token of each line, and if either token is not finite; a zero token has similarity 0. Half
    precision is computed in fp32.

    Args:
        encoder: features of the tokens.
        axis: "row" for the left neighbor, "column" for the one above, "time" for the same place in the frame before.

    >>> neighbor_similarity(torch.tensor([[[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]]]))
    tensor([[[-inf, 1., 0.]]])
    """
    check_choice("axis", axis, AXES)
    if encoder.ndim != 4 or 0 in encoder.shape:
        raise ValueError(f"expected encoder features (t, h, w, c), got {tuple(encoder.shape)}")
    along = AXES.index(axis)
    across = 1 if along == 0 else 0  # no line crosses a cut along this dimension
    slices_at_once = max(1, elements_at_once(encoder.device) * encoder.shape[across] // encoder.numel())
    if encoder.device.type == "cpu" and encoder.dtype == accumulator(encoder.dtype) and encoder.is_contiguous():
        slices_at_once = encoder.shape[across]  # without a copy
    similarity = encoder.new_empty(encoder.shape[:3], dtype=accumulator(encoder.dtype))
    parts = (values.split(slices_at_once, dim=across) for values in (similarity, encoder))
    with torch.autocast(encoder.device.type, enabled=False):
        for some, part in zip(*parts, strict=True):
            some.copy_(_similarity(part, along))
    return similarity


def _similarity(encoder: Tensor, along: int) -> Tensor:
    """Compute `neighbor_similarity` along a dimension; half precision is copied as a whole."""
    shape = encoder.shape[:3]
    x = encoder.to(accumulator(encoder.dtype)).flatten(0, 2)  # (N, c)
    index = torch.arange(len(x), device=x.device)
    token = index.view(shape).narrow(along, 1, shape[along] - 1).flatten()  # those with a neighbor, ascending
    before = token - shape[along + 1 :].numel()
    squares, products = _products(x, token, before)
    cosine = _cosine(products, squares[token].sqrt(), squares[before].sqrt())
    if x.dtype == torch.float32:  # whose squares may overflow or vanish
        moderate = (squares > 1e-24) & (squares < 1e30)
        extreme = (~(moderate[token] & moderate[before])).nonzero().flatten()
        for some in extreme.split(max(1, elements_at_once(x.device) // x.shape[1])):
            a, b = x[token[some]].double(), x[before[some]].double()
            exact = _cosine((a * b).sum(1), torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1))
            cosine[some] = exact.float()
    return x.new_full((len(x),), -torch.inf).index_copy(0, token, cosine).view(shape)


def _cosine(products: Tensor, *norms: Tensor) -> Tensor:
    """Divide products by norms; 0 for a zero norm, -inf for what is not finite."""
    first, second = (torch.where(norm == 0, 1, norm) for norm in norms)
    cosine = products / (first * second)
    return torch.where(cosine.isnan(), -torch.inf, cosine.clamp(-1, 1))


def _products(x: Tensor, token: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared norm of each row of x (N, c), and the product of each of some rows with one before it."""
    if x.device.type == "cpu":
        return _sampled_products(x, token, before)
    return x.square().sum(1), (x[token] * x[before]).sum(1)


def _sampled_products(x: Tensor, token: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `_products` as entries of x xᵀ sampled by a sparse matrix, which reads x once and makes no copy."""
    rows = torch.arange(len(x), device=x.device)
    has_neighbor = torch.zeros_like(rows, dtype=torch.bool).index_fill(0, token, True)
    wanted = torch.stack([has_neighbor, torch.ones_like(has_neighbor)], dim=1)
    column = torch.stack([rows.index_copy(0, token, before), rows], dim=1)[wanted]
    ends = wanted.sum(1).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        size = (len(x), len(x))
        pattern = torch.sparse_csr_tensor(starts, column, x.new_zeros(len(column)), size, check_invariants=False)
    values = torch.sparse.sampled_addmm(pattern, x, x.T, beta=0).values()
    return values[ends - 1], values[ends[token] - 2]

"""Compressors to compare others with: random and uniform choices, pooling, and ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.compressors.bipartite import merge_rounds
from vtm.compressors.clip import Clip, Compressed, check_choice, compressed, compressed_frames, count_budget
from vtm.merging import Grouping


def keep_all(clip: Clip) -> Compressed:
    """Keep all tokens."""
    everything = torch.arange(clip.num_tokens, device=clip.tokens.device)
    return compressed(clip, everything, everything)


def random_tokens(clip: Clip, *, budget: float, seed: int = 0) -> Compressed:
    """Keep random tokens, in their order.

    Args:
        clip: a video.
        budget: number of tokens (int), or in frames' worth of tokens (float).
        seed: seed of the choice, which depends on nothing else but the shape of the clip.
    """
    kept = _draw(clip.num_tokens, min(clip.num_tokens, count_budget(clip, budget)), seed, clip)
    index = torch.full((clip.num_tokens,), -1, device=kept.device)
    index[kept] = torch.arange(len(kept), device=kept.device)
    return compressed(clip, index, kept)


def random_frames(clip: Clip, *, budget: float, seed: int = 0) -> Compressed:
    """Keep all tokens of random frames, in their order; arguments like `random_tokens`."""
    return _keep_frames(clip, _draw(len(clip.tokens), _count_frames(clip, budget), seed, clip))


def uniform_frames(clip: Clip, *, budget: float) -> Compressed:
    """Keep all tokens of the frames in the middle of equally long parts of the clip.

    Args:
        clip: a video.
        budget: number of tokens (int), or in frames' worth of tokens (float).

    >>> uniform_frames(Clip(torch.zeros(10, 1, 2, 3)), budget=4).position.tolist()
    [[2, 0, 0], [2, 0, 1], [7, 0, 0], [7, 0, 1]]
    """
    count = _count_frames(clip, budget)
    j = torch.arange(count, device=clip.tokens.device)
    return _keep_frames(clip, (2 * j + 1) * len(clip.tokens) // (2 * count))


def pool(clip: Clip, *, budget: float) -> Compressed:
    """Average the tokens in the cells of a coarser grid of each frame.

    The grid is the finest that fits into the budget and has the proportions of the frame, up to one row or column.
    Cells differ in size by one row and one column at most; a cell has the position of its first token.

    Args:
        clip: a video.
        budget: number of tokens (int), or in frames' worth of tokens (float).

    >>> pool(Clip(torch.arange(8.0).view(1, 2, 4, 1)), budget=2).tokens.flatten()
    tensor([2.5000, 4.5000])
    """
    frames, height, width = clip.grid
    rows, columns = _coarser(height, width, _per_frame(clip, budget))
    device = clip.tokens.device
    row, column = (torch.arange(n, device=device) * m // n for n, m in ((height, rows), (width, columns)))
    cell = row[:, None] * columns + column  # (h, w)
    time = torch.arange(frames, device=device)[:, None, None]
    index = (time * rows * columns + cell).flatten()
    token = torch.arange(clip.num_tokens, device=device)
    anchor = token.new_zeros(frames * rows * columns).scatter_reduce(0, index, token, "amin", include_self=False)
    return compressed(clip, index, anchor)


def tome(clip: Clip, *, budget: float, per: str = "frame", metric: str = "features") -> Compressed:
    """Merge similar tokens in rounds of bipartite soft matching, as ToMe does before each block.

    Args:
        clip: a video.
        budget: number of tokens (int), or in frames' worth of tokens (float).
        per: "frame", tokens meet only those of their frame, or "clip", any others; the time of the latter grows with
            the square of the number of tokens.
        metric: "features" to compare the tokens, or "encoder" for the encoder features.
    """
    check_choice("per", per, ("frame", "clip"))
    check_choice("metric", metric, ("features", "encoder"))
    keys = clip.tokens if metric == "features" else clip.encoder
    if keys is None:
        raise ValueError("metric='encoder' needs the encoder features of the clip; pass them, or metric='features'")
    if per == "clip":
        target = min(clip.num_tokens, count_budget(clip, budget))
        grouping = merge_rounds(keys.flatten(0, 2)[None], target, partition="alternate", order="raster", reduce="mean")
        return compressed(clip, grouping.index[0], grouping.anchor[0])
    target = _per_frame(clip, budget)
    grouping = merge_rounds(keys.flatten(1, 2), target, partition="alternate", order="raster", reduce="mean")
    return compressed_frames(clip, torch.arange(len(keys), device=keys.device), grouping)


def _draw(size: int, count: int, seed: int, clip: Clip) -> Tensor:
    """Draw `count` of `size` numbers, ascending; the same on every device."""
    numbers = torch.randperm(size, generator=torch.Generator().manual_seed(seed), device="cpu")[:count]
    return numbers.sort().values.to(clip.tokens.device)


def _keep_frames(clip: Clip, frames: Tensor) -> Compressed:
    _, height, width = clip.grid
    return compressed_frames(clip, frames, Grouping.identity(len(frames), height * width, device=frames.device))


def _count_frames(clip: Clip, budget: float) -> int:
    """Return how many frames fit into a budget."""
    frames, height, width = clip.grid
    total = count_budget(clip, budget)
    if total < height * width:
        raise ValueError(
            f"a budget of {total} tokens is less than the {height * width} of one frame; raise budget, or use a "
            "compressor that reduces frames"
        )
    return min(frames, total // (height * width))


def _per_frame(clip: Clip, budget: float) -> int:
    """Return how many tokens each frame may keep."""
    frames, total = len(clip.tokens), count_budget(clip, budget)
    if total < frames:
        raise ValueError(
            f"a budget of {total} tokens is less than one token for each of the {frames} frames; raise budget, or use "
            "a compressor that leaves frames out"
        )
    return total // frames


def _coarser(height: int, width: int, count: int) -> tuple[int, int]:
    """Return the rows and columns of the largest grid of at most `count` cells in the proportions of the frame."""
    off = max(height, width)  # one row or one column
    grids = [(1, 1)]
    for columns in range(1, min(width, count) + 1):
        rows = min(height, count // columns, (columns * height + off) // width)
        if rows * width >= columns * height - off:
            grids.append((rows, columns))
    return max(grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] * width - grid[1] * height)))

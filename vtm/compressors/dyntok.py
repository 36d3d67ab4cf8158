"""DynTok (arXiv 2506.03990): similar neighbors in a row of tokens become one token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtm.compressors.clip import Clip, Compressed, check_reduce, compressed
from vtm.compressors.similarity import AXES, neighbor_similarity


def dyntok(
    clip: Clip,
    *,
    threshold: float | None = None,
    target_ratio: float | None = None,
    axis: str = "row",
    reduce: str = "mean",
) -> Compressed:
    """Merge each token into the group of its left neighbor if their encoder features are similar.

    The first token of every row opens a group, so at least one token per row is left. Similarities are those of
    `neighbor_similarity`; what is merged are the tokens for the language model.

    Args:
        clip: a video with encoder features.
        threshold: τ; a token joins the group of its neighbor if their cosine similarity is above it.
        target_ratio: share of the tokens to keep; the threshold is chosen for this clip. More are kept where
            similarities are equal.
        axis: "row" as in the paper; "column" or "time" for neighbors above, or in the frame before.
        reduce: "mean" or "max".

    Raises:
        ValueError: if there are no encoder features, not exactly one of threshold and target_ratio is given, or the
            ratio cannot be reached.

    >>> row = torch.eye(3)[[0, 0, 0, 1, 1, 2]].view(1, 1, 6, 3)
    >>> dyntok(Clip(row, encoder=row), threshold=0.6).size
    tensor([3, 2, 1])
    """
    if (threshold is None) == (target_ratio is None):
        raise ValueError(
            f"expected one of threshold and target_ratio, got {threshold} and {target_ratio}; set the other to None, "
            "or null on a command line"
        )
    check_reduce(reduce)
    similarity = neighbor_similarity(_encoder(clip), axis=axis)
    limit = threshold if target_ratio is None else _threshold(similarity.flatten(), target_ratio)
    assert limit is not None
    if math.isnan(limit):
        raise ValueError("expected threshold to be a cosine similarity such as 0.6, got nan")
    opens = similarity <= limit  # (t, h, w)
    first = torch.arange(clip.num_tokens, device=opens.device).view(clip.grid)
    first = torch.where(opens, first, 0).cummax(dim=AXES.index(axis)).values  # first token of the group of each token
    index = (opens.flatten().cumsum(0) - 1)[first.flatten()]
    return compressed(clip, index, opens.flatten().nonzero().flatten(), reduce=reduce)


@dataclass(frozen=True)
class Calibration:
    """The thresholds at which `dyntok` keeps a given share of the tokens.

    Attributes:
        per_clip: threshold of each clip alone.
        pooled: one threshold, at which the share is kept of all clips together.
        kept: share of the tokens of each clip that is kept at the pooled threshold.
    """

    per_clip: tuple[float, ...]
    pooled: float
    kept: tuple[float, ...]


def calibrate(clips: Iterable[Clip], ratio: float, *, axis: str = "row") -> Calibration:
    """Find the thresholds at which `dyntok` keeps a share of the tokens.

    Args:
        clips: videos with encoder features, read one at a time.
        ratio: share of the tokens to keep.
        axis: like that of `dyntok`.

    Raises:
        ValueError: if there are no clips, one has no encoder features, or the ratio cannot be reached.
    """
    similarities = [neighbor_similarity(_encoder(clip), axis=axis).flatten() for clip in clips]
    if not similarities:
        raise ValueError("expected at least one clip to calibrate on, got none")
    pooled = _threshold(torch.cat([values.cpu() for values in similarities]), ratio)
    return Calibration(
        per_clip=tuple(_threshold(values, ratio) for values in similarities),
        pooled=pooled,
        kept=tuple(float((values <= pooled).double().mean()) for values in similarities),
    )


def _encoder(clip: Clip) -> Tensor:
    if clip.encoder is None:
        raise ValueError("dyntok compares encoder features, and the clip has none: pass Clip(tokens, encoder=...)")
    return clip.encoder


def _threshold(similarity: Tensor, ratio: float) -> float:
    """Return the threshold at which a share of the tokens open a group, from their similarities (N,)."""
    lines = int((similarity == -torch.inf).sum())  # which open a group at any threshold
    count = round(ratio * len(similarity)) if 0 < ratio <= 1 else 0
    if count < lines:
        raise ValueError(
            f"expected the ratio of tokens to keep between {lines / len(similarity):.3g}, the first of all lines "
            f"of the grid and tokens that are not finite, and 1, got {ratio}"
        )
    return float(similarity.kthvalue(count).values)

"""Make pictures of features, for clips whose frames are not available."""

from __future__ import annotations

import torch
from torch import Tensor

_PIXELS = 16  # per side of a token
_OUTSIDE = 0.01  # share of the tokens that lie beyond either end of a channel's range


def feature_colors(features: Tensor) -> Tensor:
    """Show the first three principal components of features as red, green and blue.

    Args:
        features: features of any floating dtype, (T, H, W, C).

    Returns:
        (T, 3, 16 · H, 16 · W) uint8; a channel is black if the features have no such component.
    """
    frames, height, width, channels = features.shape
    rows = features.reshape(-1, channels).cpu().double()  # MPS has no float64
    rows = rows - rows.mean(0)
    values, directions = torch.linalg.eigh(rows.T @ rows)  # ascending
    values, directions = values[-3:].flip(0), directions[:, -3:].flip(1)
    strongest = directions.abs().argmax(0, keepdim=True)
    directions = directions * directions.gather(0, strongest).sign()  # for a reproducible sign
    shares = rows @ directions * (values > 1e-9 * values[0])
    low, high = (shares.quantile(q, dim=0) for q in (_OUTSIDE, 1 - _OUTSIDE))
    shares = ((shares - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
    colors = torch.zeros(len(rows), 3, dtype=torch.uint8)
    colors[:, : shares.shape[1]] = (255 * shares).round().byte()
    picture = colors.reshape(frames, height, width, 3).movedim(-1, 1)
    return picture.repeat_interleave(_PIXELS, 2).repeat_interleave(_PIXELS, 3)

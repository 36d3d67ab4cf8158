"""Weights of the tokens in the average of their group (VTM paper, table 7, and by saliency)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.merging.tokens import Tokens


def size_weights(tokens: Tokens) -> Tensor:
    """Weight tokens by the number of encoder tokens merged into them, as in ToMe: (B, N)."""
    return tokens.size


def motion_weights(tokens: Tokens) -> Tensor:
    """Weight tokens by their motion magnitude (VTM paper, table 7): (B, N)."""
    if tokens.motion is None:
        raise ValueError(
            "motion_weights needs tokens.motion (B, N), got None: pass it, or use other weights if the data have no "
            "motion"
        )
    return tokens.motion


def saliency_weights(tokens: Tokens, *, beta: float) -> Tensor:
    """Weight tokens by exp(β s): (B, N). Salient tokens dominate the average, and s receives a gradient.

    The weights are divided by exp(|β|), which keeps them finite and does not change the averages.

    Raises:
        ValueError: if there is no saliency, or |β| is so large that weights would underflow in fp32.
    """
    if abs(beta) > 40:
        raise ValueError(f"expected beta in [-40, 40], because weights underflow in fp32 beyond, got {beta}")
    if tokens.saliency is None:
        raise ValueError("saliency_weights needs tokens.saliency (B, N), got None: estimate it first")
    return torch.exp(beta * tokens.saliency - abs(beta))

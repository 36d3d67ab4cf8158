"""How much each token weighs in the average of its group (VTM paper, table 7, and by saliency)."""

from __future__ import annotations

import torch
from torch import Tensor

from vtm.merging.tokens import Tokens


def size_weights(tokens: Tokens) -> Tensor:
    """Weigh tokens by how many of the encoder's tokens they stand for, as ToMe does: (B, N)."""
    return tokens.size


def motion_weights(tokens: Tokens) -> Tensor:
    """Weigh tokens by their motion magnitude (VTM paper, table 7): (B, N)."""
    if tokens.motion is None:
        raise ValueError(
            "motion_weights needs tokens.motion (B, N), got None: pass it; if the data give none, weigh otherwise"
        )
    return tokens.motion


def saliency_weights(tokens: Tokens, *, beta: float) -> Tensor:
    """Weigh tokens by exp(β s), which keeps salient tokens undiluted and gives s a gradient: (B, N).

    The weights are divided by exp(|β|), which changes no average and keeps them finite.

    Raises:
        ValueError: without saliency, or if |β| is so large that weights would vanish in fp32.
    """
    if abs(beta) > 40:
        raise ValueError(f"expected beta between -40 and 40, beyond which weights vanish in fp32, got {beta}")
    if tokens.saliency is None:
        raise ValueError("saliency_weights needs tokens.saliency (B, N), got None: estimate it first")
    return torch.exp(beta * tokens.saliency - abs(beta))

"""Learning-rate schedule and choice of the precision."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(optimizer: Optimizer, *, total_steps: int, total_epochs: int, warmup_epochs: int) -> LambdaLR:
    """Raise the learning rate linearly from zero during warm-up, then lower it to zero along a half cosine.

    Args:
        optimizer: optimizer whose learning rates are the peak.
        total_steps: optimization steps of the whole training.
        total_epochs: epochs of the whole training.
        warmup_epochs: epochs of warm-up; must be fewer than total_epochs.

    Raises:
        ValueError: if warmup_epochs is negative or not fewer than total_epochs.
    """
    if not 0 <= warmup_epochs < total_epochs:
        raise ValueError(
            f"scheduler.warmup_epochs = {warmup_epochs} must be fewer than trainer.max_epochs = {total_epochs}; "
            "a short trial needs scheduler.warmup_epochs=0"
        )
    warmup = total_steps * warmup_epochs // total_epochs

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return LambdaLR(optimizer, factor)


def auto_precision() -> str:
    """Return bf16 mixed precision if the GPU supports it in hardware, else fp32."""
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if native else "32-true"

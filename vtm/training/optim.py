"""Learning-rate schedule, choice of the precision, and check of the weights."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

from lightning import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vtm.system.bfloat16 import has_bfloat16
from vtm.system.processes import process_rank


def cosine_with_warmup(
    optimizer: Optimizer, *, total_steps: int, total_epochs: float | Fraction, warmup_epochs: int
) -> LambdaLR:
    """Raise the learning rate linearly from zero during warm-up, then lower it to zero along a half cosine.

    The factor is a function of the step, which need not be a whole number, because a resumed run may begin between two.

    Args:
        optimizer: optimizer whose learning rates are the peak.
        total_steps: optimization steps of the whole training.
        total_epochs: epochs of the whole training.
        warmup_epochs: epochs of warm-up; if the training is not longer, it warms up for a tenth of its steps.

    Raises:
        ValueError: if warmup_epochs is negative.
    """
    if warmup_epochs < 0:
        raise ValueError(f"expected scheduler.warmup_epochs to be 0 or more, got {warmup_epochs}")
    warmup = int(total_steps * warmup_epochs // total_epochs)
    if warmup_epochs >= total_epochs:
        warmup = total_steps // 10
        if process_rank().rank == 0:
            warnings.warn(
                f"scheduler.warmup_epochs = {warmup_epochs} is not shorter than this run of {float(total_epochs):g} "
                f"epochs, so the learning rate warms up for {warmup} of its {total_steps} steps instead",
                stacklevel=1,
            )

    def factor(step: float) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))

    return LambdaLR(optimizer, factor)


def schedule_position(trainer: Trainer) -> float:
    """Return how far the training is, in steps: from 0 to `trainer.estimated_stepping_batches`.

    In an uninterrupted run this is the number of steps taken. A resumed run may have another number of steps per epoch
    than before, after a change of the batch size, the gradient accumulation or the number of videos. The steps taken
    are then no measure of what is done, so this follows the epochs, and the steps only for `trainer.max_steps`.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    done = Fraction(epochs.processed)
    if epochs.ready > epochs.processed or batches.ready > batches.completed:  # inside an epoch
        full = batches.ready >= trainer.num_training_batches
        steps, total = batches.ready // trainer.accumulate_grad_batches, steps_per_epoch(trainer)
        done = epochs.ready - 1 + (Fraction(1) if full else Fraction(steps, total))
    limits = (done, trainer.max_epochs), (trainer.global_step, trainer.max_steps)
    position = max(Fraction(count, limit) for count, limit in limits if limit not in (None, -1, 0))
    position *= int(trainer.estimated_stepping_batches)
    return int(position) if position.denominator == 1 else float(position)


def steps_per_epoch(trainer: Trainer) -> int:
    """Return the number of optimization steps of an epoch."""
    trainer.fit_loop.setup_data()  # which Lightning does only once
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))


def has_finite_weights(module: nn.Module) -> bool:
    """Return whether all parameters of a module are finite."""
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def auto_precision() -> str:
    """Return bf16 mixed precision if the GPU supports it in hardware, else fp32."""
    return "bf16-mixed" if has_bfloat16("cuda") else "32-true"

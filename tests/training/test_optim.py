"""Learning-rate schedule and choice of the precision."""

import pytest
import torch
from torch import nn

from vtm.training.optim import auto_precision, cosine_with_warmup


def test_warm_up_rises_and_the_cosine_falls_to_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2.0)
    scheduler = cosine_with_warmup(optimizer, total_steps=70, total_epochs=7, warmup_epochs=1)
    rates = []
    for _ in range(71):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == 2.0
    assert rates[40] == pytest.approx(1.0)
    assert rates[70] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_warm_up_that_leaves_no_epoch_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    with pytest.raises(ValueError, match=r"warmup_epochs = 3 must be fewer than trainer.max_epochs = 3"):
        cosine_with_warmup(optimizer, total_steps=30, total_epochs=3, warmup_epochs=3)


def test_precision_is_fp32_without_a_gpu():
    assert auto_precision() == ("32-true" if not torch.cuda.is_available() else auto_precision())

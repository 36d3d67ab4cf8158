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


@pytest.mark.parametrize(("steps", "epochs", "warmup", "peak"), [(30, 3, 3, 3), (30, 3, 10, 3), (4, 1, 10, 0)])
def test_a_warm_up_that_leaves_no_epoch_shrinks_with_a_note(steps, epochs, warmup, peak):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2.0)
    note = rf"= {warmup} is not shorter than this run of {epochs} epochs, .* warms up for {peak} of its {steps} steps"
    with pytest.warns(UserWarning, match=note):
        scheduler = cosine_with_warmup(optimizer, total_steps=steps, total_epochs=epochs, warmup_epochs=warmup)
    rates = []
    for _ in range(steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates.index(max(rates)) == peak
    assert (max(rates), rates[-1]) == (2.0, pytest.approx(0.0))
    assert min(rates[:-1]) > 0


def test_a_negative_warm_up_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    with pytest.raises(ValueError, match=r"expected scheduler.warmup_epochs to be 0 or more, got -1"):
        cosine_with_warmup(optimizer, total_steps=30, total_epochs=3, warmup_epochs=-1)


def test_a_warm_up_that_fits_is_kept_without_a_note(recwarn):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    cosine_with_warmup(optimizer, total_steps=30, total_epochs=3, warmup_epochs=2)
    assert not recwarn.list


def test_precision_is_fp32_without_a_gpu():
    assert auto_precision() == ("32-true" if not torch.cuda.is_available() else auto_precision())

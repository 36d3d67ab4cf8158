"""Tests of attention with a bias on its keys, against the explicit formula."""

import pytest
import torch

from tests.reference import (
    attention_loops,
)
from vtm.merging.attention import attention

HEADS = 2
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", [None, [True, True, True, False]])
@pytest.mark.parametrize("key_bias", [False, True])
def test_attention_equals_the_explicit_formula(mask, key_bias, device):
    q, k, v = torch.randn(3, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    bias = torch.randn(2, 4, dtype=torch.float64, device=device) if key_bias else None
    real = None if mask is None else torch.tensor([mask, [True] * 4], device=device)
    out = attention(q, k, v, num_heads=HEADS, key_bias=bias, mask=real)
    expected = attention_loops(q, k, v, num_heads=HEADS, key_bias=bias, mask=real)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_attention_bias_has_the_gradient_of_the_explicit_formula():
    q, k, v = torch.randn(3, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 5, 6, dtype=torch.float64)
    actual = torch.autograd.grad((attention(q, k, v, num_heads=1, key_bias=bias) * weights).sum(), bias)[0]
    scores = q @ k.mT / 6**0.5 + bias[:, None]
    expected = torch.autograd.grad((scores.softmax(-1) @ v * weights).sum(), bias)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_attention_off_the_cpu_keeps_the_shape_of_the_values():
    q, k, v = torch.zeros(3, 2, 4, 6, device="meta")  # any device but a CPU gets padded heads
    assert attention(q, k, v, num_heads=HEADS, key_bias=torch.zeros(2, 4, device="meta")).shape == (2, 4, 6)

"""Tests of attention with a bias on its keys, against the explicit formula."""

import pytest
import torch

from tests.reference import (
    attention_loops,
)
from vtm.merging.attention import attention

HEADS = 2


@pytest.mark.parametrize("mask", [None, [True, True, True, False]])
@pytest.mark.parametrize("key_bias", [False, True])
def test_attention_equals_the_explicit_formula(mask, key_bias):
    q, k, v = torch.randn(3, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(2, 4, dtype=torch.float64) if key_bias else None
    real = None if mask is None else torch.tensor([mask, [True] * 4])
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

"""Tests of the rounding of tokens to storage formats: bounds on the error, and tokens that a format cannot hold."""

import pytest
import torch

from vtm.encoders.rounding import dequantize, quantize


@pytest.mark.parametrize(("storage", "bound"), [("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-11)])
def test_floating_formats_round_to_their_precision(storage, bound):
    tokens = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 100
    quantized = quantize(tokens, storage)
    assert quantized.values.dtype == getattr(torch, storage)
    assert quantized.scale is None
    assert (dequantize(quantized) - tokens).abs().max() <= bound * tokens.abs().max()
    assert ((dequantize(quantized) - tokens).abs() <= bound * tokens.abs() + 1e-6).all()


def test_int8_errors_are_at_most_half_a_step_of_each_token():
    tokens = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 50)[:, None]
    quantized = quantize(tokens, "int8")
    assert quantized.values.dtype == torch.int8
    assert quantized.scale.shape == (2, 50)
    step = tokens.abs().amax(-1, keepdim=True) / 127
    assert ((dequantize(quantized) - tokens).abs() <= 0.5001 * step).all()
    assert (quantized.values.int().abs().amax(-1) == 127).all()


def test_a_zero_token_stays_zero():
    assert not dequantize(quantize(torch.zeros(3, 4), "int8")).any()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8"])
def test_quantizing_twice_equals_quantizing_once(storage):
    once = dequantize(quantize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), storage))
    torch.testing.assert_close(dequantize(quantize(once, storage)), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_refused(storage, value):
    with pytest.raises(ValueError, match=f"not finite in {storage}, because the encoder returned NaN or infinity"):
        quantize(torch.tensor([[1.0, value]]), storage)


def test_tokens_too_large_for_the_format_are_refused():
    with pytest.raises(ValueError, match=r"up to 1e\+05, are not finite in float16; choose another encoder.storage"):
        quantize(torch.tensor([[1e5]]), "float16")
    assert dequantize(quantize(torch.tensor([[1e5]]), "bfloat16")).item() == pytest.approx(1e5, rel=0.01)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, int8, got fp8"):
        quantize(torch.zeros(1, 1), "fp8")

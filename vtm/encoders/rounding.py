"""Rounding of tokens to the number format of stored features, so that stored and new features are equal."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

StorageDtype = Literal["float32", "bfloat16", "float16", "int8"]

_FORMATS = ("float32", "bfloat16", "float16", "int8")


class Quantized(NamedTuple):
    """Tokens in a storage format.

    Attributes:
        values: (..., C), in the storage format.
        scale: (...) float32, factor of the int8 values; None for the other formats.
    """

    values: Tensor
    scale: Tensor | None


def quantize(tokens: Tensor, storage: StorageDtype) -> Quantized:
    """Round tokens (..., C) to a storage format; for int8, the scale of each token is max |x| / 127.

    Raises:
        ValueError: if the format is unknown, or a token is not finite in it.

    >>> quantize(torch.tensor([[1.0, -2.0]]), "int8").values
    tensor([[  64, -127]], dtype=torch.int8)
    """
    if storage not in _FORMATS:
        raise ValueError(f"expected storage to be one of {', '.join(_FORMATS)}, got {storage}")
    tokens = tokens.float()
    scale = tokens.abs().amax(-1) / 127 if storage == "int8" else None
    if scale is None:
        values = tokens.to(getattr(torch, storage))
        finite = values.isfinite().all()
    else:
        values = (tokens / torch.where(scale > 0, scale, 1)[..., None]).round().to(torch.int8)
        finite = scale.isfinite().all()
    if not finite and not tokens.isfinite().all():
        raise ValueError(
            f"some tokens are not finite in {storage}, because the encoder returned NaN or infinity; check its weights "
            "(encoder.checkpoint), or choose another encoder.precision"
        )
    if not finite:
        raise ValueError(
            f"some tokens, up to {tokens.abs().max():.3g}, are not finite in {storage}; choose another encoder.storage"
        )
    return Quantized(values, scale)


def dequantize(quantized: Quantized) -> Tensor:
    """Convert quantized tokens to float32 (..., C).

    >>> dequantize(quantize(torch.tensor([[0.0, 0.1], [3.0, 4.0]]), "bfloat16"))
    tensor([[0.0000, 0.1001],
            [3.0000, 4.0000]])
    """
    values = quantized.values.float()
    return values if quantized.scale is None else values * quantized.scale[..., None]

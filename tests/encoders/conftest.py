"""Fixtures for the tests of the encoders: a ViT with one block for 32 x 32 frames, and random frames."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vtm.encoders import ImageEncoder


@pytest.fixture(scope="session")
def options() -> dict[str, Any]:
    """Return the arguments of every encoder: random weights, center crop, no rounding."""
    return {
        "image_size": 32, "squash": False, "normalize": True, "pretrained": False, "checkpoint": None, "seed": 0,
        "precision": "float32", "storage": "float32",
    }  # fmt: skip


@pytest.fixture(scope="session")
def image_encoder(options) -> Callable[..., ImageEncoder]:
    def make(name: str, **changes: Any) -> ImageEncoder:
        return ImageEncoder(name, **(options | {"cls_in_grid": False} | changes))

    return make


@pytest.fixture(scope="session")
def vit(image_encoder) -> Callable[..., ImageEncoder]:
    def make(**changes: Any) -> ImageEncoder:
        return image_encoder("vit_tiny_patch16_224", **({"model_args": {"depth": 1}} | changes))

    return make


@pytest.fixture(scope="session")
def frames() -> Callable[..., Tensor]:
    def make(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    return make

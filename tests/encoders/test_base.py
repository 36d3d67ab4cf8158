"""The contract that every encoder keeps: frozen, in chunks, uint8 squares only."""

import pytest
import torch

from vtm.encoders import ImageEncoder


def vit(**options) -> ImageEncoder:
    return ImageEncoder(
        "vit_tiny_patch16_224", **{"image_size": 32, "pretrained": False, "model_args": {"depth": 1}, **options}
    )


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_chunks_change_nothing():
    clip = frames(1, 5, 3, 32, 32)
    torch.testing.assert_close(vit(chunk=2)(clip), vit(chunk=64)(clip))


def test_the_encoder_stays_frozen():
    encoder = vit().train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(frames(1, 1, 3, 32, 32)).requires_grad


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (torch.zeros(1, 1, 3, 32, 32), TypeError, "expected uint8 frames"),
        (frames(1, 1, 3, 32, 16), ValueError, r"got \(1, 1, 3, 32, 16\)"),
        (frames(1, 3, 32, 32), ValueError, r"got \(1, 3, 32, 32\)"),
    ],
)
def test_other_inputs_are_refused(clip, error, message):
    with pytest.raises(error, match=message):
        vit()(clip)

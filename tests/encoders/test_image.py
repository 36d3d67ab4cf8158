"""timm encoders: grid, width and normalisation come from the model; random weights from their own seed."""

import pytest
import timm
import torch

from vtm.encoders import ImageEncoder


def vit(**options) -> ImageEncoder:
    return ImageEncoder(
        "vit_tiny_patch16_224", **{"image_size": 32, "pretrained": False, "model_args": {"depth": 1}, **options}
    )


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "grid", "channels"),
    [
        ("vit_tiny_patch16_224", 48, (3, 3), 192),  # one CLS token
        ("vit_small_patch14_reg4_dinov2", 28, (2, 2), 384),  # CLS and registers
        ("resnet10t", 64, (2, 2), 512),  # channels first
        ("swin_tiny_patch4_window7_224", 64, (2, 2), 768),  # channels last
    ],
)
def test_grid_and_channels_come_from_the_model(name, size, grid, channels):
    encoder = ImageEncoder(name, image_size=size, pretrained=False)
    assert (encoder.grid, encoder.channels, encoder.frames_per_step) == (grid, channels, 1)
    assert encoder(frames(2, 3, 3, size, size)).shape == (2, 3, *grid, channels)


def test_tokens_are_the_model_s_patch_tokens_of_normalised_frames():
    encoder, clip = vit(), frames(1, 2, 3, 32, 32)
    normalised = (clip[0].float() / 255 - 0.5) / 0.5
    expected = encoder.backbone.forward_features(normalised)[:, 1:].reshape(1, 2, 2, 2, 192)
    torch.testing.assert_close(encoder(clip), expected)


def test_random_weights_depend_on_the_encoder_s_seed_alone():
    torch.manual_seed(1)
    first = vit(seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = vit(seed=3), vit(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    clip = frames(1, 1, 3, 32, 32)
    assert torch.equal(first(clip), again(clip))
    assert not torch.equal(first(clip), other(clip))
    assert first.key == again.key != other.key


def test_pretrained_weights_are_asked_of_timm(monkeypatch):
    asked = {}
    create = timm.create_model

    def remember(name, *, pretrained, **options):
        asked.update(name=name, pretrained=pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", remember)
    assert vit(pretrained=True).key.startswith("vit_tiny_patch16_224-32px-pretrained")
    assert asked == {"name": "vit_tiny_patch16_224", "pretrained": True}


def test_an_image_size_that_does_not_fit_names_those_that_do():
    with pytest.raises(ValueError, match=r"image_size = 40 is no multiple of the 16 px patches .*; 32 or 48 would be"):
        vit(image_size=40)

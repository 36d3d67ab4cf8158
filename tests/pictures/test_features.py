"""Features become the colors of their principal components, in order and reproducibly."""

import torch

from vtm.pictures.features import feature_colors


def test_the_first_components_are_red_green_and_blue():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2 * 5 * 6, 3, generator=generator) * torch.tensor([9.0, 3.0, 1.0])
    basis, _ = torch.linalg.qr(torch.randn(12, 3, generator=generator))
    picture = feature_colors((factors @ basis.T + 5).reshape(2, 5, 6, 12))
    assert picture.shape == (2, 3, 80, 96)
    assert picture.dtype == torch.uint8
    tokens = picture[:, :, ::16, ::16].movedim(1, -1).reshape(-1, 3).float()
    assert torch.equal(picture, picture[:, :, ::16, ::16].repeat_interleave(16, 2).repeat_interleave(16, 3))
    for channel in range(3):
        related = torch.corrcoef(torch.stack([tokens[:, channel], factors[:, channel]]))[0, 1].abs()
        assert related > 0.95
        assert tokens[:, channel].min() == 0
        assert tokens[:, channel].max() == 255


def test_colors_are_reproducible_and_almost_the_same_in_half_precision():
    features = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(feature_colors(features), feature_colors(features.clone()))
    difference = feature_colors(features.bfloat16()).float() - feature_colors(features).float()
    assert difference.abs().max() < 16


def test_missing_components_are_black():
    line = torch.arange(8.0).reshape(1, 2, 4, 1) * torch.tensor([1.0, 2.0])
    picture = feature_colors(line)
    assert picture[:, 0].max() == 255
    assert picture[:, 1:].max() == 0
    assert feature_colors(torch.ones(1, 2, 2, 3)).max() == 0


class WithoutDouble(torch.Tensor):
    """A tensor on a device without float64."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_float64_is_left_to_the_cpu():
    features = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(feature_colors(features.as_subclass(WithoutDouble)), feature_colors(features))

"""Video Swin: one step of features per clip of consecutive frames, averaged over time."""

import pytest
import torch

from vtm.encoders import VideoSwin


@pytest.fixture(scope="module")
def swin() -> VideoSwin:
    return VideoSwin(image_size=32, frames_per_step=4, pretrained=False)


def test_each_step_is_the_time_average_of_its_clip(swin):
    clip = torch.randint(0, 256, (1, 8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = swin(clip)
    assert tokens.shape == (1, 2, 1, 1, 1024)
    seen = []
    handle = swin.backbone.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    second = swin(clip[:, 4:])
    handle.remove()
    assert seen[0].shape == (1, 2, 1, 1, 1024)  # two time steps of two frames each
    torch.testing.assert_close(second[:, 0], seen[0].mean(1))
    torch.testing.assert_close(tokens[:, 1], second[:, 0], rtol=1e-4, atol=1e-5)


def test_steps_of_the_wrong_length_are_refused(swin):
    with pytest.raises(ValueError, match=r"expected frames \(B, T·4, 3, 32, 32\), got \(1, 6, 3, 32, 32\)"):
        swin(torch.zeros(1, 6, 3, 32, 32, dtype=torch.uint8))


def test_an_image_size_that_does_not_fit_names_those_that_do():
    with pytest.raises(ValueError, match="image_size = 100 is no multiple of 32, which swin3d_b needs; 96 or 128"):
        VideoSwin(image_size=100, frames_per_step=4, pretrained=False)

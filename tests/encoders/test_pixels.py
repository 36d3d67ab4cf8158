"""The frames that whole video transformers take are those of their own processors."""

import json

import pytest
import torch

from vtm.encoders import Pixels
from vtm.encoders.pixels import read_processor

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def clip() -> torch.Tensor:
    """A clip (B, T, 3, S, S) of frames that need no scaling."""
    return torch.randint(256, (1, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_frames_are_normalized_and_channels_come_last(clip):
    encoder = Pixels(image_size=32, squash=False, **IMAGENET)
    features = encoder(clip)
    assert (features.shape, features.dtype) == ((1, 4, 32, 32, 3), torch.float32)
    assert (encoder.grid.shape, encoder.channels, encoder.frames.frames_per_step) == ((32, 32), 3, 1)
    expected = (clip[0, 2, 1, 7, 9] / 255 - 0.456) / 0.224
    torch.testing.assert_close(features[0, 2, 7, 9, 1], expected)
    assert encoder.key == "pixels-32px-crop-mean0.485_0.456_0.406-std0.229_0.224_0.225"
    assert next(encoder.parameters(), None) is None


def test_frames_of_another_type_or_shape_are_refused(clip):
    encoder = Pixels(image_size=32, squash=False, **IMAGENET)
    with pytest.raises(TypeError, match=r"expected uint8 frames.*float32"):
        encoder(clip.float())
    with pytest.raises(ValueError, match=r"expected frames \(B, T, 3, 32, 32\), got \(1, 4, 3, 16, 32\)"):
        encoder(clip[..., :16, :])
    with pytest.raises(ValueError, match=r"positive encoder\.std"):
        Pixels(image_size=32, squash=False, mean=[0.0] * 3, std=[0.0] * 3)


HALVES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.25]}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("VideoMAEVideoProcessor", {}),
        ("VideoMAEVideoProcessor", HALVES),
        ("VivitVideoProcessor", HALVES),
        ("VJEPA2VideoProcessor", {"do_resize": False}),  # it would scale to 36 pixels, and cut the border off
        ("VideoMAEImageProcessor", HALVES),
        ("VivitImageProcessor", HALVES),
        ("VivitImageProcessor", HALVES | {"offset": False, "rescale_factor": 1 / 255}),
    ],
)
def test_frames_equal_those_of_the_processor_of_transformers(tmp_path, clip, name, settings):
    """On frames of the right size; larger ones are scaled by area averaging, not by bilinear interpolation."""
    transformers = pytest.importorskip("transformers")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = getattr(transformers, name)(**settings, **size)
    processor.save_pretrained(tmp_path)
    encoder = Pixels(image_size=1, squash=False, **IMAGENET, pretrained=True, processor=str(tmp_path))
    assert encoder.frames.image_size == 32
    frames = [frame.permute(1, 2, 0).numpy() for frame in clip[0]]
    expected = processor(clip[0] if "Video" in name.removeprefix("VideoMAE") else frames, return_tensors="pt")
    (expected,) = expected.values()
    torch.testing.assert_close(encoder(clip).permute(0, 1, 4, 2, 3), expected, rtol=1e-5, atol=2e-6)


def test_settings_build_the_encoder_without_the_file(tmp_path, clip):
    content = {"size": 32, "do_center_crop": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    encoder = Pixels(image_size=8, squash=False, **IMAGENET, pretrained=True, processor=str(tmp_path))
    again = Pixels(**encoder.settings)
    assert encoder.key == again.key
    assert torch.equal(encoder(clip), again(clip))
    unread = Pixels(image_size=8, squash=False, **IMAGENET, pretrained=False, processor=str(tmp_path))
    assert unread.frames.image_size == 8


def test_a_model_without_a_processor_file_changes_nothing_and_a_wrong_file_is_refused(tmp_path):
    assert read_processor(str(tmp_path)) is None
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 4, "width": 8}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a processor file of square frames.*encoder\.processor=null"):
        read_processor(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"cannot be found on this machine or downloaded.*encoder\.processor=null"):
        read_processor("nobody/nothing")

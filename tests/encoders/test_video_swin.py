"""Tests of Video Swin: one step of features per clip of consecutive frames, and checkpoints of three formats."""

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vtm.encoders import VideoSwin


class Unsafe:
    """A class that safe unpickling refuses."""


def small_swin(weights: Any = None) -> SwinTransformer3d:
    assert weights is None
    return SwinTransformer3d([2, 4, 4], 8, [2, 1, 2, 1], [1, 2, 2, 4], [2, 3, 3], num_classes=6)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("vtm.encoders.video_swin.swin3d_b", small_swin)


@pytest.fixture
def swin(options):
    def make(**changes: Any) -> VideoSwin:
        return VideoSwin(**({"frames_per_step": 4} | options | changes))

    return make


@pytest.fixture(scope="module")
def trained() -> SwinTransformer3d:
    """Return a network whose weights, biases and norms differ from those of any seed."""
    network = small_swin().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def official(network: SwinTransformer3d) -> dict[str, Tensor]:
    """Return the state with the tensor names of Video Swin Transformer."""
    state = {}

    def add(name: str, module: torch.nn.Module) -> None:
        state.update({f"backbone.{name}.{key}": value for key, value in module.state_dict().items()})

    add("patch_embed.proj", network.patch_embed.proj)
    add("patch_embed.norm", network.patch_embed.norm)
    for stage in range(4):
        for number, block in enumerate(network.features[2 * stage]):
            prefix = f"layers.{stage}.blocks.{number}"
            add(f"{prefix}.norm1", block.norm1)
            add(f"{prefix}.attn", block.attn)
            add(f"{prefix}.norm2", block.norm2)
            add(f"{prefix}.mlp.fc1", block.mlp[0])
            add(f"{prefix}.mlp.fc2", block.mlp[3])
        if stage < 3:
            add(f"layers.{stage}.downsample.reduction", network.features[2 * stage + 1].reduction)
            add(f"layers.{stage}.downsample.norm", network.features[2 * stage + 1].norm)
    add("norm", network.norm)
    assert len(state) == len(network.state_dict()) - 2
    return state | {"cls_head.fc_cls.weight": torch.zeros(600, 64), "cls_head.fc_cls.bias": torch.zeros(600)}


def mmaction2(network: SwinTransformer3d) -> dict[str, Tensor]:
    """Return the state with the tensor names of MMAction2, without position indices."""
    state = {name.replace("backbone.norm.", "backbone.norm3."): value for name, value in official(network).items()}
    return {name: value for name, value in state.items() if "position_index" not in name}


def save(path: Path, state: dict[str, Tensor]) -> str:
    torch.save({"meta": {"epoch": 30}, "state_dict": state}, path)
    return str(path)


def test_each_step_is_the_time_average_of_its_clip(swin, frames, trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "swin.pth")
    encoder, clip = swin(checkpoint=str(tmp_path / "swin.pth"), image_size=64), frames(2, 12, 3, 64, 64)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = []
    handle = trained.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        trained((((clip / 255) - mean) / std).reshape(6, 4, 3, 64, 64).transpose(1, 2))
    handle.remove()
    assert (encoder.grid.shape, encoder.channels, encoder.frames.frames_per_step) == ((2, 2), 64, 4)
    assert seen[0].shape == (6, 2, 2, 2, 64)  # two time steps of two frames each
    torch.testing.assert_close(encoder(clip), seen[0].mean(1).reshape(2, 3, 2, 2, 64), rtol=1e-4, atol=1e-5)


def test_a_clip_s_features_do_not_depend_on_the_other_clips_of_the_call(swin, frames):
    for precision in ("float32", "bfloat16"):
        encoder, clip = swin(precision=precision), frames(1, 36, 3, 32, 32)
        whole = encoder(clip)
        for start, end in ((0, 1), (1, 4), (2, 9)):
            assert torch.equal(encoder(clip[:, 4 * start : 4 * end]), whole[:, start:end])


@pytest.mark.parametrize("naming", [official, mmaction2])
def test_a_checkpoint_may_have_the_tensor_names_of_the_authors_or_of_mmaction2(swin, frames, trained, tmp_path, naming):
    torch.save(trained.state_dict(), tmp_path / "torchvision.pth")
    clip = frames(1, 8, 3, 32, 32)
    expected = swin(checkpoint=str(tmp_path / "torchvision.pth"))(clip)
    encoder = swin(checkpoint=save(tmp_path / "renamed.pth", naming(trained)), pretrained=True)
    assert torch.equal(encoder(clip), expected)
    assert not torch.equal(expected, swin()(clip))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"expected features\.0\.0\.mlp\.0\.bias \(32,\), found none"),
        ("other", r"expected features\.0\.0\.attn\.proj\.bias \(8,\), found none"),
        ("more", r"expected features\.2\.9\.norm1\.bias not at all, found \(16,\)"),
        ("shape", r"expected norm\.weight \(64,\), found \(32,\)"),
    ],
)
def test_a_checkpoint_that_does_not_match_is_an_error_that_names_the_first_tensor(
    swin, frames, trained, tmp_path, fault, message
):
    state = official(trained)
    if fault == "missing":
        del state["backbone.layers.0.blocks.0.mlp.fc1.bias"]
    elif fault == "other":
        state = {"epoch": 3, "model": trained.state_dict()}
    elif fault == "more":
        state["backbone.layers.1.blocks.9.norm1.bias"] = torch.zeros(16)
    else:
        state["backbone.norm.weight"] = torch.zeros(32)
    encoder = swin(checkpoint=save(tmp_path / "swin.pth", state))
    with pytest.raises(ValueError, match=rf"encoder\.checkpoint = .*swin\.pth does not match swin3d_b: {message}"):
        encoder(frames(1, 4, 3, 32, 32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}, "optimizer": Unsafe()}, "contains .*, which could run code when it is loaded; save only"),
        ([1, 2], "has no weights: expected tensors by name"),
        ({"state_dict": 3}, "has no weights: expected tensors by name"),
        (b"<html>", "looks like an HTML page; download the file again"),
        (b"some text", "is damaged, or was not written by torch.save"),
    ],
    ids=["code", "list", "number", "page", "text"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(swin, frames, tmp_path, content, reason):
    path = tmp_path / "swin.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"encoder\.checkpoint = .*swin\.pth {reason}"):
        swin(checkpoint=str(path))(frames(1, 4, 3, 32, 32))


def test_published_weights_are_loaded_by_torchvision(swin, frames, monkeypatch):
    def fetch(weights: Any = None) -> SwinTransformer3d:
        if weights is not None:
            assert weights.name == "KINETICS400_V1"
            raise urllib.error.URLError("no route to host")
        return small_swin()

    monkeypatch.setattr("vtm.encoders.video_swin.swin3d_b", fetch)
    encoder = swin(pretrained=True)
    message = (
        r"the weights swin3d_b of Kinetics-400 cannot be found on this machine or downloaded "
        r".*no route to host.*encoder\.checkpoint=<file>"
    )
    with pytest.raises(RuntimeError, match=message):
        encoder(frames(1, 4, 3, 32, 32))


def test_the_key_differs_for_other_weights_and_clips(swin, trained, tmp_path):
    path = save(tmp_path / "swin.pth", official(trained))
    changes = [{}, {"frames_per_step": 8}, {"pretrained": True}, {"checkpoint": path}, {"seed": 1}, {"squash": True}]
    keys = [swin(**change).key for change in changes]
    assert len(set(keys)) == len(changes)
    assert keys[0] == "swin3d_b-random0-32px-crop-4f-float32-float32"
    assert keys[2] == "swin3d_b.kinetics400-pretrained-32px-crop-4f-float32-float32"


def test_clips_of_incomplete_steps_are_refused(swin):
    with pytest.raises(ValueError, match=r"expected frames \(B, T·4, 3, 32, 32\), got \(1, 6, 3, 32, 32\)"):
        swin()(torch.zeros(1, 6, 3, 32, 32, dtype=torch.uint8))


def test_an_invalid_image_size_is_an_error_with_valid_sizes(swin):
    with pytest.raises(
        ValueError, match=r"image_size = 100 is not a multiple of the 32 px .* swin3d_b; use 96 or 128$"
    ):
        swin(image_size=100)

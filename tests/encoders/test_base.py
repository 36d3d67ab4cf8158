"""Tests of the interface of encoders: lazy loading, frozen weights, keys, and reproducible features."""

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vtm.encoders import Encoder
from vtm.encoders.rounding import dequantize, quantize
from vtm.patching import DenseMerge, merge_similar


class Patches(Encoder):
    """An encoder with one convolution, from patches of 8 pixels to tokens of 5 channels."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, frames_per_step=1, chunk=4, mean=(0.5,) * 3, std=(0.5,) * 3, **options)

    def build(self, *, load: bool) -> nn.Module:
        return nn.Conv2d(3, 5, 8, 8)

    def encode(self, backbone: nn.Module, frames: Tensor) -> Tensor:
        return backbone(frames).permute(0, 2, 3, 1)


def test_weights_are_created_with_the_first_frames(vit, frames, monkeypatch):
    devices = []
    create = timm.create_model

    def remember(*args, **options):
        model = create(*args, **options)
        devices.append({parameter.device.type for parameter in model.parameters()})
        return model

    monkeypatch.setattr("timm.create_model", remember)
    encoder = vit()
    assert set.union(*devices) == {"meta"}
    devices.clear()
    encoder(frames(1, 1, 3, 32, 32))
    encoder(frames(1, 1, 3, 32, 32))
    assert devices == [{"cpu"}]


def test_the_backbone_is_not_part_of_the_state(vit, frames):
    encoder = vit()
    encoder(frames(1, 1, 3, 32, 32))
    assert not encoder.state_dict()
    assert not [*encoder.parameters(), *encoder.buffers()]


def test_the_encoder_stays_frozen(vit, frames):
    clip = frames(1, 3, 3, 32, 32)
    encoder = vit(model_args={"depth": 1, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}).train()
    first = encoder(clip)
    assert not first.requires_grad
    assert torch.equal(first, encoder.train()(clip))


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("vit_tiny_patch16_224", 16, {"depth": 1}),
        ("swin_tiny_patch4_window7_224", 32, {"depths": (1, 1, 1, 1)}),
        ("resnet10t", 32, {}),
    ],
)
def test_a_frame_s_features_do_not_depend_on_the_other_frames_of_the_call(image_encoder, frames, name, size, arguments):
    encoder, clip = image_encoder(name, image_size=size, model_args=arguments), frames(1, 50, 3, size, size)
    whole = encoder(clip)
    for start, end in ((0, 1), (3, 10), (1, 21), (5, 45)):
        assert torch.equal(encoder(clip[:, start:end]), whole[:, start:end])
    assert torch.equal(encoder(clip[0].unflatten(0, (5, 10)))[3], whole[0, 30:40])


def test_every_call_of_the_backbone_gets_a_whole_chunk(vit, frames, monkeypatch):
    encoder = vit()
    lengths = []
    encode = encoder.encode

    def remember(backbone, part):
        lengths.append(len(part))
        return encode(backbone, part)

    monkeypatch.setattr(encoder, "encode", remember)
    encoder(frames(1, 2 * encoder.chunk + 1, 3, 32, 32))
    assert lengths == [encoder.chunk] * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_do_not_depend_on_the_precision_of_the_trainer(vit, frames, precision):
    clip = frames(1, 2, 3, 32, 32)
    expected = vit(precision=precision)(clip)
    autocast, double, inference = (vit(precision=precision) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.float16 if precision == "bfloat16" else torch.bfloat16):
        assert torch.equal(autocast(clip), expected)
    torch.set_default_dtype(torch.float64)
    try:
        features = double(clip)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)
    with torch.inference_mode():
        assert torch.equal(inference(clip), expected)
    assert torch.equal(inference(clip), expected)


def test_precision_is_the_precision_of_the_backbone(vit, frames):
    clip = frames(1, 2, 3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1).eval()
    normalized = torch.cat([clip[0], clip[0].new_zeros(14, 3, 32, 32)]).float() / 255 * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = backbone.forward_features(normalized)[:2, 1:].float().reshape(1, 2, 2, 2, 192)
    features = vit(precision="bfloat16")(clip)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    assert not torch.equal(features, vit()(clip))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16", "int8"])
def test_features_are_rounded_as_in_storage(vit, frames, storage):
    clip = frames(2, 2, 3, 32, 32)
    encoder = vit(storage=storage)
    exact, quantized = vit()(clip), encoder.quantized(clip)
    assert quantized.values.dtype == getattr(torch, storage)
    assert quantized.values.shape == exact.shape
    assert (quantized.scale is not None) == (storage == "int8")
    assert torch.equal(encoder(clip), dequantize(quantize(exact, storage)))
    assert torch.equal(encoder.tokens(clip), exact)


def test_random_weights_depend_only_on_the_seed_of_the_encoder(vit, frames, monkeypatch):
    clip = frames(1, 1, 3, 32, 32)
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: pytest.fail("the GPUs' generators were seeded"))
    first, second, other = vit(seed=3), vit(seed=3), vit(seed=4)
    torch.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    expected = first(clip)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(second(clip), expected)
    assert not torch.equal(other(clip), expected)
    assert first.key == second.key != other.key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_backbone_moves_to_the_device_of_the_frames(vit, frames):
    encoder, clip = vit(), frames(1, 2, 3, 32, 32)
    on_cpu, on_gpu, back_on_cpu = encoder(clip), encoder(clip.cuda()), encoder(clip)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)
    assert torch.equal(back_on_cpu, on_cpu)


def test_the_key_differs_for_all_options_that_change_features(vit):
    changes = [
        {}, {"image_size": 48}, {"squash": True}, {"normalize": False}, {"seed": 1}, {"pretrained": True},
        {"precision": "bfloat16"}, {"storage": "bfloat16"}, {"cls_in_grid": True}, {"model_args": {"depth": 2}},
        {"model_args": {"depth": 1, "init_values": 0.1}},
    ]  # fmt: skip
    keys = [vit(**change).key for change in changes]
    assert len(set(keys)) == len(changes)
    assert all(re.fullmatch(r"[A-Za-z0-9_.=-]+", key) for key in keys)
    assert keys[0] == "vit_tiny_patch16_224-random0-32px-crop-mean0.5-std0.5-depth=1-float32-float32"
    assert keys[5] == "vit_tiny_patch16_224.augreg_in21k_ft_in1k-pretrained-32px-crop-depth=1-float32-float32"


def test_the_key_is_a_valid_folder_name_for_any_name_of_the_backbone(options):
    encoder = Patches("hf-hub:you/a b\\c", details=("layers=[1, 2]",), **options)
    assert re.fullmatch(r"[A-Za-z0-9_.=-]+", encoder.key)
    assert encoder.grid.shape == (4, 4)
    assert encoder.channels == 5


@pytest.mark.parametrize(("key", "value"), [("precision", "bf16"), ("storage", "fp8")])
def test_an_unknown_number_format_is_refused(vit, key, value):
    with pytest.raises(ValueError, match=rf"expected encoder\.{key} to be one of float32, bfloat16, .*, got {value}"):
        vit(**{key: value})


@pytest.mark.parametrize(
    ("clip", "error", "message"),
    [
        (torch.zeros(1, 1, 3, 32, 32), TypeError, "expected uint8 frames"),
        (torch.zeros(1, 1, 3, 32, 16, dtype=torch.uint8), ValueError, r"got \(1, 1, 3, 32, 16\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ValueError, r"got \(1, 3, 32, 32\)"),
    ],
)
def test_other_inputs_are_refused(vit, clip, error, message):
    with pytest.raises(error, match=message):
        vit()(clip)


def test_the_key_of_random_weights_has_the_normalization_instead_of_the_tag(image_encoder):
    keys = [
        image_encoder(f"vit_base_patch16_224.{tag}", image_size=32).key
        for tag in ("augreg_in21k", "augreg_in1k", "dino")
    ]
    assert keys[0] == keys[1]
    assert "-mean0.5-std0.5-" in keys[0]
    assert "-mean0.485_0.456_0.406-std0.229_0.224_0.225-" in keys[2]
    assert not any(word in key for key in keys for word in ("augreg", "dino", "pretrained"))


def test_an_unknown_option_is_an_error_that_lists_the_known_ones(vit):
    known = (
        "checkpoint, cls_in_grid, image_size, merge, model_args, model_name, normalize, precision, pretrained, seed, "
        "squash, storage"
    )
    with pytest.raises(ValueError, match=rf"encoder\.imagesize is unknown; the known ones are {known}"):
        vit(imagesize=48)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_merging_inside_can_be_compared_with_the_encoder_without_it(vit, frames, precision):
    merge = DenseMerge(count=1, shape="constant", proportional=True, reduce=merge_similar)
    clip = frames(1, 3, 3, 32, 32)
    plain, merged = vit(precision=precision), vit(precision=precision, merge=merge)
    before = merged(clip)
    tolerance = {"atol": 1e-5, "rtol": 0} if precision == "float32" else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(merged.unmerged_tokens(clip), plain(clip), **tolerance)
    assert (before - plain(clip)).abs().max() > 0.1
    assert torch.equal(merged(clip), before)
    torch.testing.assert_close(plain.unmerged_tokens(clip), plain(clip), **tolerance)


def test_what_is_not_merging_is_an_error(vit):
    with pytest.raises(TypeError, match=r"expected encoder\.merge to have a key, like .*DenseMerge, got a function"):
        vit(merge=merge_similar)

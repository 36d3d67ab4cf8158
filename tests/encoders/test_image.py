"""Tests of timm encoders: grid, channels and normalization of the model; weights from timm, a file or a seed."""

import hashlib
import urllib.error

import pytest
import safetensors.torch
import timm
import torch


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Return a model in place of a trained one: one block, five classes, and a seed that no test uses."""
    with torch.random.fork_rng():
        torch.manual_seed(123)
        return timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=1).eval()


def expected_tokens(model: torch.nn.Module, clip: torch.Tensor, *, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_features((clip[0].float() / 255 - mean) / std)


@pytest.mark.parametrize(
    ("name", "blocks", "size", "grid", "channels"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, 48, (3, 3), 192),  # one CLS token
        ("vit_small_patch14_reg4_dinov2", {"depth": 1}, 28, (2, 2), 384),  # CLS and registers
        ("resnet10t", {}, 64, (2, 2), 512),  # channels first
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 64, (2, 2), 768),  # channels last
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1)}, 96, (3, 3), 768),  # tokens without a word on their grid
        ("levit_128s", {}, 224, (4, 4), 384),  # 3.5 times its 64 pixels, but the size of its training
    ],
)
def test_grid_and_channels_come_from_the_model(image_encoder, frames, name, blocks, size, grid, channels):
    encoder = image_encoder(name, image_size=size, model_args=blocks)
    assert (encoder.grid.shape, encoder.channels, encoder.frames.frames_per_step) == (grid, channels, 1)
    assert encoder(frames(2, 3, 3, size, size)).shape == (2, 3, *grid, channels)


def test_tokens_are_the_patch_tokens_of_normalized_frames(vit, frames, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, clip = vit(checkpoint=str(tmp_path / "model.pth")), frames(1, 2, 3, 32, 32)
    torch.testing.assert_close(encoder(clip), expected_tokens(model, clip)[:, 1:].reshape(1, 2, 2, 2, 192))


def test_without_normalization_frames_are_in_0_1(vit, frames, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, clip = vit(checkpoint=str(tmp_path / "model.pth"), normalize=False), frames(1, 2, 3, 32, 32)
    expected = expected_tokens(model, clip, mean=0, std=1)[:, 1:].reshape(1, 2, 2, 2, 192)
    torch.testing.assert_close(encoder(clip), expected)


def test_cls_in_the_grid_makes_it_one_row(vit, frames, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder, clip = vit(checkpoint=str(tmp_path / "model.pth"), cls_in_grid=True), frames(1, 2, 3, 32, 32)
    assert encoder.grid.shape == (1, 5)
    torch.testing.assert_close(encoder(clip), expected_tokens(model, clip).reshape(1, 2, 1, 5, 192))


@pytest.mark.parametrize("name", ["resnet10t", "hiera_tiny_224"])
def test_cls_in_the_grid_of_a_model_without_one_is_refused(image_encoder, name):
    with pytest.raises(ValueError, match=f"{name} has no CLS token; set encoder.cls_in_grid=false"):
        image_encoder(name, image_size=64, cls_in_grid=True)


def test_random_weights_are_drawn_by_timm_with_the_seed(vit, frames):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        drawn = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1).eval()
    clip = frames(1, 2, 3, 32, 32)
    expected = expected_tokens(drawn, clip)[:, 1:].reshape(1, 2, 2, 2, 192)
    torch.testing.assert_close(vit(seed=7)(clip), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain.pth", "lightning.bin", "hub.safetensors"])
def test_the_key_of_a_checkpoint_is_a_hash_of_its_content(vit, frames, model, tmp_path, kind):
    path, copy, clip = tmp_path / kind, tmp_path / f"copy.{kind}", frames(1, 2, 3, 32, 32)
    if kind == "hub.safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()} if kind == "lightning.bin" else model.state_dict(), path)
    copy.write_bytes(path.read_bytes())
    encoder = vit(checkpoint=str(path), pretrained=True)
    torch.testing.assert_close(encoder(clip), expected_tokens(model, clip)[:, 1:].reshape(1, 2, 2, 2, 192))
    assert f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}-" in encoder.key
    assert encoder.key == vit(checkpoint=str(copy)).key
    assert not any(random in encoder.key for random in ("random", "pretrained"))


def test_a_checkpoint_of_another_image_size_is_resized_by_timm(vit, frames, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder = vit(checkpoint=str(tmp_path / "model.pth"), image_size=48)
    resized = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, num_classes=5, img_size=48, depth=1,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.pth"), "num_classes": 5, "custom_load": False},
    ).eval()  # fmt: skip
    clip = frames(1, 2, 3, 48, 48)
    torch.testing.assert_close(encoder(clip), expected_tokens(resized, clip)[:, 1:].reshape(1, 2, 3, 3, 192))


def test_a_missing_checkpoint_is_an_error_at_construction(vit, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"encoder\.checkpoint = .*none\.pth is missing; .* of vit_tiny_patch16_224"
    ):
        vit(checkpoint=str(tmp_path / "none.pth"))


def test_a_damaged_checkpoint_is_an_error_at_construction(vit, model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], content[: len(content) // 2] + b"\1" + content[len(content) // 2 + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"encoder\.checkpoint = .*model\.pth is (damaged|cut short).*download"):
            vit(checkpoint=str(path))


@pytest.mark.parametrize("fault", ["deeper", "shallower", "other tensors", "no tensors"])
def test_a_checkpoint_that_does_not_fit_is_refused(vit, frames, model, tmp_path, fault):
    path = tmp_path / "model.pth"
    state = model.state_dict()
    other = {"other tensors": {"weight": torch.zeros(2)}, "no tensors": {}}
    torch.save(other.get(fault, state), path)
    if fault == "shallower":
        torch.save({name: value for name, value in state.items() if not name.startswith("norm.")}, path)
    encoder = vit(checkpoint=str(path), model_args={"depth": 2 if fault == "deeper" else 1})
    with pytest.raises(ValueError, match=r"encoder\.checkpoint = .*model\.pth has no weights of vit_tiny_patch16_224"):
        encoder(frames(1, 1, 3, 32, 32))


def test_pretrained_weights_are_loaded_by_timm_with_the_classifier(vit, frames, model, monkeypatch):
    asked = []
    create = timm.create_model

    def remember(name, *, pretrained, **options):
        asked.append((name, pretrained, "num_classes" in options))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", remember)
    encoder = vit(pretrained=True)
    assert encoder.key.startswith("vit_tiny_patch16_224.augreg_in21k_ft_in1k-pretrained-32px")
    assert not any(pretrained for _, pretrained, _ in asked)
    asked.clear()
    encoder(frames(1, 1, 3, 32, 32))
    assert asked == [
        ("vit_tiny_patch16_224", True, False)
    ]  # with the classifier, timm checks that every tensor matches


def test_a_failed_download_is_an_error_with_a_remedy(vit, frames, monkeypatch):
    create = timm.create_model

    def unreachable(name, *, pretrained, **options):
        if pretrained:
            raise urllib.error.URLError("no route to host\nmore")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", unreachable)
    message = (
        r"the weights vit_tiny_patch16_224\.augreg_in21k_ft_in1k cannot be found on this machine or downloaded "
        r"\(.*no route to host.*\); "
        r"download them elsewhere and give the file with encoder\.checkpoint=<file>"
    )
    with pytest.raises(RuntimeError, match=message):
        vit(pretrained=True)(frames(1, 1, 3, 32, 32))


def test_a_model_without_published_weights_is_refused_at_construction(image_encoder):
    with pytest.raises(ValueError, match="timm has no weights of swinv2_cr_tiny_224; choose another"):
        image_encoder("swinv2_cr_tiny_224", image_size=224, pretrained=True)
    assert image_encoder("swinv2_cr_tiny_224", image_size=224).grid.shape == (7, 7)


@pytest.mark.parametrize(
    ("name", "size", "pixels", "fitting"),
    [
        ("vit_tiny_patch16_224", 40, 16, "32 or 48"),
        ("vit_tiny_patch16_224", 10, 16, "16"),
        ("vit_small_patch14_dinov2", 224 + 2, 14, "224 or 238"),
        ("swin_tiny_patch4_window7_224", 240, 32, "224 or 256"),  # would be padded
        ("convnext_atto", 100, 32, "96 or 128"),  # would lose pixels
        ("hiera_tiny_224", 200, 32, "192 or 224"),  # would fail
        ("xcit_nano_12_p16_224", 100, 16, "96 or 112"),  # cannot be created
    ],
)
def test_an_invalid_image_size_is_an_error_with_valid_sizes(image_encoder, name, size, pixels, fitting):
    message = rf"image_size = {size} is not a multiple of the {pixels} px per token of {name}; use {fitting}$"
    with pytest.raises(ValueError, match=message):
        image_encoder(name, image_size=size)


def test_an_image_size_that_fails_only_in_the_model_is_refused(image_encoder):
    message = r"efficientformer_l1 does not support encoder\.image_size = 192 \(.*\); its default is 224"
    with pytest.raises(ValueError, match=message):
        image_encoder("efficientformer_l1", image_size=192)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_9_240"])
def test_a_model_without_a_grid_is_refused(image_encoder, name):
    with pytest.raises(ValueError, match=rf"{name} returns .*, not a grid of \d+ × \d+ tokens; choose a model with"):
        image_encoder(name, image_size=int(name[-3:]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "vit_tny",
            {},
            r"timm cannot create encoder\.model_name = vit_tny: Unknown model \(vit_tny\); timm\.list_models",
        ),
        ("vit_tiny_patch16_224.none", {}, r"Invalid pretrained tag \(none\)"),
        (
            "vit_tiny_patch16_224",
            {"dpth": 2},
            r"with encoder\.model_args = \{'dpth': 2\}: .*unexpected keyword argument",
        ),
        ("local-dir:models/mine", {}, r"is a folder or not a name; .* with encoder\.checkpoint=<file>"),
        (" Local-Dir:models/mine", {}, r"is a folder or not a name"),
        ("lo\tcal-dir:models/mine", {}, r"is a folder or not a name"),
        ("models/mine", {}, r"is a folder or not a name"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused(image_encoder, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_encoder(name, model_args=arguments)

"""Files of weights are read as timm reads them, but no code in them runs, and failed downloads are named."""

import argparse
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch

from vtm.encoders.weights import is_plain_name, read_weights

WEIGHTS = {"a": torch.arange(3.0), "b.c": torch.zeros(2, 2)}


class Code:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def save(content: object, path: str, kind: str) -> None:
    if kind == "pickle":
        with open(path, "wb") as file:
            pickle.dump(content, file, protocol=2)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_checkpoint_does_not_run(vit, frames, tmp_path, kind, nested):
    ran, path = str(tmp_path / "ran"), str(tmp_path / "vit.pth")
    save({"state_dict": WEIGHTS, "more": Code(ran)} if nested else Code(ran), path, kind)
    encoder = vit(checkpoint=path)
    with pytest.raises(
        ValueError, match=r"vit\.pth contains \S+, which could run code when it is loaded; save only the"
    ):
        encoder(frames(1, 1, 3, 32, 32))
    assert not os.path.exists(ran)


def test_timm_never_opens_a_checkpoint(vit, frames, tmp_path, monkeypatch):
    """Earlier versions of timm unpickle files, so none is handed to it."""
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).state_dict(), tmp_path / "vit.pth")
    encoder, create, given = vit(checkpoint=str(tmp_path / "vit.pth")), timm.create_model, []

    def remember(name, **arguments):
        given.append(arguments)
        return create(name, **arguments)

    monkeypatch.setattr("timm.create_model", remember)
    monkeypatch.setattr("timm.models._builder.load_state_dict", None)
    encoder(frames(1, 1, 3, 32, 32))
    assert given[-1]["pretrained"]
    assert str(tmp_path) not in str([{**one, "pretrained_cfg_overlay": None} for one in given])
    assert "state_dict" not in encoder._loaded.backbone.pretrained_cfg  # it would stay in memory


@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_are_found_in_training_checkpoints(tmp_path, key, prefix):
    state = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
    other = {"state_dict": {"old": torch.ones(1)}} if key.endswith("ema") else {}
    whole = {**other, key: state, "epoch": 3, "args": argparse.Namespace(lr=1.0)} if key else state
    torch.save(whole, tmp_path / "model.pth")
    read = read_weights(str(tmp_path / "model.pth"))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in read)


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert read_weights(str(tmp_path / "a.safetensors")).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00\x01\x02 and so on" * 20)
    with pytest.raises(
        ValueError, match=rf"encoder\.checkpoint = .*{name} is damaged, or was not written by torch.save"
    ):
        read_weights(str(tmp_path / name))


def test_a_failed_download_is_refused_at_construction(vit, tmp_path):
    (tmp_path / "vit.pth").write_text("<!DOCTYPE html>\n<html><body>404</body></html>")
    with pytest.raises(ValueError, match=r"checkpoint = .*vit\.pth looks like an HTML page; download the file again$"):
        vit(checkpoint=str(tmp_path / "vit.pth"))


@pytest.mark.parametrize(
    "name",
    ["hf-hub:a/b", "HF_HUB:a/b", " local-dir:x", "local-dir:/x", "a/b", "../x", "x\n", "\x00x", "https://a/b", ""],
)
def test_an_address_is_not_a_plain_name(name):
    assert not is_plain_name(name)


def test_all_names_of_timm_are_plain():
    assert all(map(is_plain_name, [*timm.list_models(), *timm.list_pretrained()]))

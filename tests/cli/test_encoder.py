"""The encoder of a configuration, with the precision that the machine calls for."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from vtm.cli.encoder import build_encoder

ENCODER = {
    "_target_": "vtm.encoders.ImageEncoder", "model_name": "vit_tiny_patch16_224", "image_size": 32, "squash": False,
    "normalize": True, "cls_in_grid": False, "pretrained": False, "checkpoint": None, "seed": 0, "storage": "float32",
    "model_args": {"depth": 1},
}  # fmt: skip


def config(precision: str, accelerator: str) -> Any:
    return OmegaConf.create({"encoder": {**ENCODER, "precision": precision}, "trainer": {"accelerator": accelerator}})


@pytest.mark.parametrize(
    ("accelerator", "gpu", "units", "expected"),
    [
        ("auto", False, {"cpu"}, "bfloat16"),
        ("auto", False, {"cuda"}, "float32"),
        ("auto", True, {"cuda"}, "bfloat16"),
        ("gpu", True, {"cpu"}, "float32"),
        ("cpu", True, {"cpu"}, "bfloat16"),
        ("cpu", True, {"cuda"}, "float32"),
    ],
)
def test_auto_is_replaced_by_the_precision_for_the_device(monkeypatch, capsys, accelerator, gpu, units, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("vtm.cli.encoder.has_bfloat16", lambda device: device in units)
    cfg = config("auto", accelerator)
    encoder = build_encoder(cfg)
    assert cfg.encoder.precision == encoder.precision == expected
    assert f"-{expected}-" in encoder.key
    assert capsys.readouterr().out == f"encoder.precision=auto is {expected} on this machine\n"


def test_another_precision_stays(capsys):
    cfg = config("float16", "auto")
    assert build_encoder(cfg).precision == cfg.encoder.precision == "float16"
    assert not capsys.readouterr().out

"""A device has units for bfloat16 or it has not."""

import pytest
import torch

from vtm.system.bfloat16 import has_bfloat16


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_the_units_of_the_processor_are_read(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert has_bfloat16("cpu") is expected


@pytest.mark.parametrize("supported", [False, True])
def test_emulation_on_a_gpu_does_not_count(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)
    assert has_bfloat16("cuda") is supported
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_bfloat16("cuda") is False

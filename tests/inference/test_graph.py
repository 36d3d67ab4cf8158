"""A graph describes its inputs, and is refused or left out where it would not be the model; see also test_export.py."""

import logging

import pytest

import vtm
from vtm.inference.graph import check_traceable, inputs_of, write_graph
from vtm.inference.model_file import ModelFileError

WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")


@pytest.fixture
def load(tmp_path, make_model):
    return lambda *overrides: vtm.load(make_model(tmp_path / "model.safetensors", *overrides))


def test_the_inputs_are_those_that_the_model_takes(load):
    assert inputs_of(load()).keys() == {"features", "frames"}
    inputs = inputs_of(load(*WINDOWS, "merging=motion"))
    assert inputs.keys() == {"features", "motion", "mask", "frames"}
    assert [inputs[name]["shape"] for name in ("features", "motion", "mask")] == [
        ["batch", 4, 2, 2, 192],
        ["batch", 4, 2, 2],
        ["batch", 4],
    ]
    assert inputs_of(load("experiment=needle")).keys() == {"features"}


def test_sampling_is_refused(load):
    check_traceable(load(), "onnx")
    with pytest.raises(ModelFileError, match=r"format onnx cannot hold merging\.sample_in_eval=true"):
        check_traceable(load("merging.sample_in_eval=true"), "onnx")


@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_graph_that_disagrees_is_not_written(load, tmp_path, monkeypatch, difference):
    def wrong(model, example, about):
        return b"graph", lambda given: model(**given) + difference

    monkeypatch.setattr("vtm.inference.graph._to_onnx", wrong)
    with pytest.raises(ModelFileError, match=r"m\.onnx is not written: its scores differ from the model's by up to"):
        write_graph(load(), tmp_path / "m.onnx", "onnx")
    assert not (tmp_path / "m.onnx").exists()
    difference = 1e-6
    level = logging.getLogger("torch.onnx").level
    assert write_graph(load(), tmp_path / "m.onnx", "onnx").startswith("agrees with the model to 1e-06 at batch 1 and")
    assert (tmp_path / "m.onnx").read_bytes() == b"graph"
    assert logging.getLogger("torch.onnx").level == level

"""A graph describes its inputs, and is not written if it would differ from the model; see also test_export.py."""

import logging
import re

import pytest
import torch
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import vtm
from vtm.inference.graph import check_traceable, inputs_of, trace, write_graph
from vtm.inference.model_file import ModelFileError
from vtm.inference.predictor import Predictor

WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")
ONE_BLOCK = ("merging=none", "model.window_frames=[4]", "model.channels=[8]")


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
    forward = Predictor.forward

    def traced_wrong(self, features, motion=None, mask=None):
        scores = forward(self, features, motion, mask)
        return scores + difference if torch.compiler.is_compiling() else scores

    monkeypatch.setattr(Predictor, "forward", traced_wrong)
    model = load(*ONE_BLOCK)
    with pytest.raises(ModelFileError, match=r"m\.pt2 was not written: its scores differ from the model's by up to"):
        write_graph(model, trace(model), tmp_path / "m.pt2", "pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_a_graph_is_written_without_a_change_of_the_log(load, tmp_path):
    level = logging.getLogger("torch.onnx").level
    model = load(*ONE_BLOCK)
    note = write_graph(model, trace(model), tmp_path / "m.onnx", "onnx")
    assert re.fullmatch(r"agrees with the model to \de[-+]\d\d at batch sizes 1 and 3", note)
    assert (tmp_path / "m.onnx").is_file()
    assert logging.getLogger("torch.onnx").level == level


def test_graphs_take_an_empty_batch_and_refuse_integers(load, tmp_path):
    model = load(*ONE_BLOCK)
    traced = trace(model)
    for name in ("pt2", "onnx"):
        write_graph(model, traced, tmp_path / f"m.{name}", name)
    graph, session = torch.export.load(tmp_path / "m.pt2").module(), InferenceSession(tmp_path / "m.onnx")
    empty = torch.zeros(0, 4, 2, 2, 192)
    assert graph(empty, None, None).shape == model(empty).shape == (0, 3)
    assert session.run(["scores"], {"features": empty.numpy()})[0].shape == (0, 3)
    integers = torch.ones(2, 4, 2, 2, 192, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="dtype mismatch! Expected: Float, Got: long"), torch.enable_grad():
        graph(integers, None, None)  # which leaves gradients disabled when it raises
    with pytest.raises(InvalidArgument, match="Unexpected input data type"):
        session.run(["scores"], {"features": integers.numpy()})

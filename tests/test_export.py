"""The command `python -m vtm.export`: every format agrees with the network of the checkpoint and describes it."""

import json
import re
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

import vtm
from vtm.export import from_checkpoint, main
from vtm.inference.model_file import ModelFileError, read_model

WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")
ONE_BLOCK = ("merging=none", "model.window_frames=[4]", "model.channels=[8]")  # small graph, exported in a second
STRATEGIES = ["learnable", "learnable_paper", "uniform", "center", "boundary", "motion", "none"]


@pytest.fixture
def export(monkeypatch, capsys):
    """Call the command; return its output, or the message with which it exited."""

    def export(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vtm.export", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return export


def inputs(model, batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(batch)
    steps, grid = model.protocol.num_frames, model.encoder.grid.shape
    found = {"features": torch.randn(batch, steps, *grid, model.encoder.channels)}
    if model.description["motion"]:
        found["motion"] = torch.rand(batch, steps, *grid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "protocol"), [("learnable", ()), *((name, WINDOWS) for name in STRATEGIES)])
def test_onnx_and_pt2_agree_with_the_model_at_every_batch_size(tmp_path, make_checkpoint, export, strategy, protocol):
    checkpoint = make_checkpoint(tmp_path / "best.ckpt", f"merging={strategy}", *protocol)
    printed = export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm'}", "format=safetensors,onnx,pt2")
    assert printed.count("agrees with the model to") == 2
    model = vtm.load(tmp_path / "m.safetensors")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    graph = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (1, 2, 5):
        given = inputs(model, batch)
        if protocol:
            given["mask"] = torch.arange(4).expand(batch, 4) < 1 + torch.arange(batch)[:, None] % 4
        expected = model(**given)
        (scores,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        np.testing.assert_allclose(scores, expected.numpy(), atol=2e-6)
        torch.testing.assert_close(
            graph(given["features"], given.get("motion"), given.get("mask")), expected, atol=2e-6, rtol=0
        )


def test_the_files_describe_themselves(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "best.ckpt", *WINDOWS, *ONE_BLOCK)
    export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm'}", "format=onnx,pt2,safetensors")
    proto = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(proto)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "vtm")
    extra = {"vtm.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    about = json.loads(entry.value)
    assert about == json.loads(extra["vtm.json"])
    assert about["classes"] == ["dark", "light", "red"]
    assert about["encoder_key"].startswith("vit_tiny")
    assert about["inputs"]["features"]["shape"] == ["batch", 4, 2, 2, 192]
    assert about["inputs"]["frames"]["image_size"] == 32
    assert about["inputs"]["mask"]["shape"] == ["batch", 4]
    assert {key: value for key, value in about.items() if key != "inputs"} == read_model(tmp_path / "m.safetensors")[1]


def test_nothing_of_training_is_in_a_model(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "best.ckpt")
    export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm.safetensors'}")
    weights, _ = read_model(tmp_path / "m.safetensors")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(".auxiliary." in name for name in state)
    assert {f"model.{name}" for name in weights} == {name for name in state if ".auxiliary." not in name}
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in weights.items())


def test_the_result_of_the_run_goes_along(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    score = {"metric": "accuracy", "value": 0.75, "interval": [0.5, 0.9], "n": 8, "epoch": 3, "missing_ids": ["x"]}
    run = {"commit": "abc", "versions": {"torch": "2"}, "val": score | {"epoch": 2}, "test": score | {"epoch": 2}}
    run |= {"test_last": score | {"value": 0.5}, "val_last": score, "published": {"figures": {}}, "config": {}}
    run |= {"experiment": "demo", "task": "classification", "seed": 0}
    (tmp_path / "run" / "results.json").write_text(json.dumps(run))
    printed = export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm.safetensors'}")
    assert "demo, seed 0, epoch 3, test accuracy 0.500 (0.500 to 0.900, n = 8)" in printed
    training = vtm.load(tmp_path / "m.safetensors").description["training"]
    assert (training["commit"], training["epoch"], training["test"]["value"]) == ("abc", 3, 0.5)
    assert "missing_ids" not in training["test"]


def test_half_a_result_is_named(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    (tmp_path / "run" / "results.json").write_text('{"commit": "ab')
    said = export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm.safetensors'}")
    assert re.search(
        r"run/results\.json: expected the results of a run, but it is not JSON \(Untermi.*\); delete it or test again",
        said,
    )


def test_without_results_the_command_says_so(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "best.ckpt")
    assert "without a test score" in export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm.safetensors'}")


def test_sampling_is_refused_where_a_graph_cannot_hold_it(tmp_path, make_checkpoint, export):
    checkpoint = make_checkpoint(tmp_path / "best.ckpt", "merging.sample_in_eval=true")
    for name in ("onnx", "pt2"):
        said = export(f"ckpt_path={checkpoint}", f"out={tmp_path / 'm'}", f"format=safetensors,{name}")
        assert said.startswith(f"format {name} cannot hold merging.sample_in_eval=true")
        assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "vtm.export needs ckpt_path=… and out=…"),
        (["ckpt_path=a.ckpt"], "vtm.export needs out=…"),
        (["ckptpath=a.ckpt", "out=m.onnx"], "did you mean ckpt_path=…?"),
        (["ckpt_path=a.ckpt", "OUT=m.onnx"], "did you mean out=…? 'O' in the command line is 'o' in the settings"),
        (["a.ckpt", "out=m.onnx"], "'a.ckpt' is not a setting of vtm.export"),
        (["ckpt_path=", "out=m.onnx"], "'ckpt_path=' is not a setting"),
        (
            ["ckpt_path=absent.ckpt", "out=m.onnx"],
            "ckpt_path=absent.ckpt is not a file; checkpoints are in <run",
        ),
        (["ckpt_path=text.ckpt", "out=m.onnx"], "ckpt_path=text.ckpt is not a checkpoint of vtm, or is damaged"),
        (["ckpt_path=other.ckpt", "out=m.onnx"], "ckpt_path=other.ckpt is not a checkpoint of vtm, or is damaged"),
        (
            ["ckpt_path=text.ckpt", "out=m.pth"],
            "expected the ending of out to be one of safetensors, onnx, pt2, got 'pth'",
        ),
        (["ckpt_path=text.ckpt", "out=m"], "expected the ending of out to be one of safetensors, onnx, pt2, got ''"),
        (
            ["ckpt_path=text.ckpt", "out=m", "format=onnx,tflite"],
            "expected format to be one of safetensors, onnx, pt2, got",
        ),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence(tmp_path, export, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert reason in export(*arguments)
    assert not list(tmp_path.glob("m*"))


def test_weights_of_the_encoder_may_have_moved(tmp_path, make_checkpoint, export):
    backbone = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "vit.pth")
    checkpoint = make_checkpoint(tmp_path / "a.ckpt", f"encoder.checkpoint={tmp_path / 'vit.pth'}")
    (tmp_path / "vit.pth").rename(tmp_path / "moved.pth")
    arguments = [f"ckpt_path={checkpoint}", f"out={tmp_path / 'm.safetensors'}"]
    assert "or encoder_checkpoint=… of vtm.export" in export(*arguments)
    assert "demo, seed 0" in export(*arguments, f"encoder_checkpoint={tmp_path / 'moved.pth'}")
    moved = tmp_path / "moved.pth"
    assert vtm.load(tmp_path / "m.safetensors", encoder_checkpoint=moved).encoder.checkpoint == str(moved)


def test_a_task_outside_vtm_is_refused(tmp_path, make_checkpoint):
    checkpoint = torch.load(make_checkpoint(tmp_path / "a.ckpt"), weights_only=True)
    checkpoint["vtm"]["config"]["task"]["_target_"] = "mine.Ranking"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ModelFileError, match=r"expected a task of vtm\.tasks, got mine\.Ranking"):
        from_checkpoint(tmp_path / "a.ckpt")


def test_classes_outside_vtm_are_refused(tmp_path, make_checkpoint, export):
    checkpoint = torch.load(make_checkpoint(tmp_path / "a.ckpt"), weights_only=True)
    checkpoint["vtm"]["config"]["model"]["merge_layer"]["partition"]["_target_"] = "mine.partition"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert "mine.partition is not a class or function of" in export(
        f"ckpt_path={tmp_path / 'a.ckpt'}", f"out={tmp_path}/m.onnx"
    )

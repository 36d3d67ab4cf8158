"""The command `python -m vtm.predict`: files, folders and patterns; failures; tables that go on where they were."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtm
from vtm.predict import as_dict, list_videos, main
from vtm.prediction import Prediction, Window
from vtm.predictor import Predictor

ROOT = Path(__file__).parents[1]
WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video, make_model):
    """A model, two videos and a file that is none."""
    folder = tmp_path_factory.mktemp("predict")
    make_model(folder / "model.safetensors", *WINDOWS)
    make_video(folder / "videos" / "a.mp4", 5.5)
    make_video(folder / "videos" / "deep" / "b.MP4", 2)
    (folder / "videos" / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_bytes(b"no video" * 50)
    return folder


@pytest.fixture
def predict(folder, monkeypatch, capsys):
    """Call the command in the folder; return its exit status and what it printed."""

    def predict(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["vtm.predict", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return predict


def test_a_video_is_answered_in_a_line(predict):
    status, out, _ = predict("model.safetensors", "videos/a.mp4", "--top", "2")
    model = vtm.load("model.safetensors")
    (best, p), (second, q) = model.predict("videos/a.mp4").top(2)
    assert status == 0
    assert out == f"videos/a.mp4  {best} {p:.3f}, {second} {q:.3f}  (5.5 s, 2 windows)\n"


def test_folders_and_patterns_name_videos_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert list_videos(["videos"]) == [Path("videos/a.mp4"), Path("videos/deep/b.MP4")]
    assert list_videos(["videos/*.mp4", "videos", "./videos/a.mp4"]) == [
        Path("videos/a.mp4"),
        Path("videos/deep/b.MP4"),
    ]
    assert list_videos(["videos/**/*.MP4"]) == [Path("videos/deep/b.MP4")]
    assert list_videos(["videos/*"]) == [Path("videos/a.mp4")]  # not the text beside it, nor what is in the folder
    (folder / "empty").mkdir(exist_ok=True)
    for name, reason in (
        ("empty", "no video in or below the folder"),
        ("absent*.mp4", "no such file or folder, and no video matches"),
    ):
        with pytest.raises(ValueError, match=reason):
            list_videos(["videos", name])


def test_json_is_a_line_for_each_video(predict):
    status, out, _ = predict("model.safetensors", "videos", "--json", "--timeline", "--top", "3")
    first, second = map(json.loads, out.splitlines())
    assert status == 0
    assert [first["video"], second["video"]] == ["videos/a.mp4", "videos/deep/b.MP4"]
    assert first["label"] == first["top"][0]["label"]
    assert sum(item["probability"] for item in first["top"]) == pytest.approx(1)
    assert [(item["start"], item["end"]) for item in first["timeline"]] == [(0, 4), (1, 5)]
    assert first["probability"] == pytest.approx(
        sum(
            next(item["probability"] for item in window["top"] if item["label"] == first["label"])
            for window in first["timeline"]
        )
        / 2
    )


def test_the_timeline_has_a_line_for_each_window(predict):
    _, out, _ = predict("model.safetensors", "videos/a.mp4", "--timeline")
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [["0.0", "to", "4.0", "s"], ["1.0", "to", "5.0", "s"]]


def test_a_failure_does_not_stop_the_rest_and_is_listed_at_the_end(predict):
    status, out, err = predict("model.safetensors", "broken.mp4", "videos/a.mp4")
    assert status == 1
    assert out.startswith("videos/a.mp4")
    assert err.splitlines()[-1] == "1 of 2 videos could not be predicted"
    assert err.splitlines()[-2].startswith("failed: broken.mp4")


def test_a_table_is_written_and_goes_on_where_it_was(predict, folder, tmp_path):
    table = tmp_path / "new" / "table.csv"
    predict("model.safetensors", "videos/a.mp4", "--csv", str(table))
    first = table.read_text(encoding="utf-8")
    (row,) = csv.DictReader(first.splitlines())
    assert (row["video"], row["windows"], row["damaged"]) == ("videos/a.mp4", "2", "0")
    assert row["model"] == vtm.load("model.safetensors").identity
    table.write_text(first + "videos/deep/b.MP4,dar", encoding="utf-8")  # killed in the middle of a row
    status, out, err = predict("model.safetensors", "videos", "broken.mp4", "--csv", str(table))
    assert status == 1
    assert "videos/a.mp4" not in out
    assert f"1 of 3 are in {table} already" in err
    assert table.read_text(encoding="utf-8").startswith(first)
    assert [row["video"] for row in csv.DictReader(table.open(encoding="utf-8"))] == [
        "videos/a.mp4",
        "videos/deep/b.MP4",
    ]


def test_a_table_of_something_else_is_left_alone(predict, tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2")
    status, _, _ = predict("model.safetensors", "videos/a.mp4", "--csv", str(tmp_path / "notes.csv"))
    assert "expected a table with the columns" in str(status)
    assert (tmp_path / "notes.csv").read_text() == "a,b\n1,2"


def test_answers_of_a_stream_are_not_mixed_with_others(predict, tmp_path):
    table = ["--csv", str(tmp_path / "table.csv")]
    assert predict("model.safetensors", "videos/a.mp4", "--stream", *table)[0] == 0
    status, _, _ = predict("model.safetensors", "videos/a.mp4", *table)
    assert "+stream, but this one is" in str(status)


def test_out_of_memory_costs_one_video(predict, monkeypatch):
    right = Predictor.predict

    def wrong(self, path, **arguments):
        if path.name == "a.mp4":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, path, **arguments)

    monkeypatch.setattr(Predictor, "predict", wrong)
    status, out, err = predict("model.safetensors", "videos")
    assert status == 1
    assert out.startswith("videos/deep/b.MP4")
    assert "failed: videos/a.mp4: out of memory on cpu" in err


def test_a_class_may_have_any_name(capsys):
    prediction = Prediction("a.mp4", 1.0, ["value", "b"], [0.9, 0.1], [Window(0.0, 1.0, [0.9, 0.1])], damaged=False)
    assert as_dict(prediction, top=1, timeline=False)["label"] == "value"


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_the_number_of_classes_is_checked(predict, number):
    status, _, err = predict("model.safetensors", "videos", "--top", number)
    assert status == 2
    assert f"expected a number from 1 on, got {number}" in err


def test_nobody_has_to_read_on(folder):
    command = [sys.executable, "-m", "vtm.predict", "model.safetensors", "videos", "--timeline"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in error


def test_a_name_that_is_no_text_is_predicted(folder, make_video, tmp_path):
    model = folder / "model.safetensors"
    make_video(tmp_path / "a.mp4", 1).rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    command = [sys.executable, "-m", "vtm.predict", str(model), str(tmp_path), "--json", "--csv", tmp_path / "t.csv"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"].endswith("\udcff.mp4")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent.safetensors", "videos"], "absent.safetensors is no file; `python -m vtm.export"),
        (["broken.mp4", "videos"], "broken.mp4 is no model of vtm"),
        (["model.safetensors", "absent.mp4"], "absent.mp4: no such file or folder, and no video"),
        (["model.safetensors", "videos", "--device", "cuda:99"], "--device cuda:99 is not to be had here"),
    ],
)
def test_wrong_arguments_are_answered_in_a_sentence(predict, arguments, reason):
    status, out, _ = predict(*arguments)
    assert str(status).startswith(reason)
    assert not out


def test_help_and_wrong_files_are_answered_without_loading_torch():
    code = (
        "import sys, runpy\n"
        "try: runpy.run_module('vtm.predict', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'av', 'lightning', 'hydra'} & sys.modules.keys()), file=sys.stderr)"
    )
    for arguments in (["--help"], ["model.safetensors", "absent.mp4"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_predicting_imports_no_framework_of_training(folder):
    code = (
        "import sys, vtm; vtm.load('model.safetensors').predict('videos/a.mp4')\n"
        "print(sorted({'lightning', 'hydra', 'omegaconf', 'torchmetrics', 'matplotlib'} & sys.modules.keys()))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.stdout.strip() == "[]", done.stderr

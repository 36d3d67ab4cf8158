"""The command `python -m vtm.predict`: files, folders and patterns; failures; tables that are continued."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtm
from vtm.encoders import Encoder
from vtm.inference.model_file import write_model
from vtm.inference.prediction import Prediction, Segment, as_dict
from vtm.inference.predictor import Predictor
from vtm.inference.table import COLUMNS
from vtm.predict import main
from vtm.system.progress import Progress
from vtm.video.listing import list_videos

ROOT = Path(__file__).parents[1]
WINDOWS = ("data/protocol=windows", "data.protocol.num_frames=4", "data.protocol.stride=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video, make_model):
    """A folder with a model, two videos and a file that is not a video."""
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
    assert list_videos(["videos/*"]) == [Path("videos/a.mp4")]  # no text file, no subfolder
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


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_an_error_of_its_video(predict, folder, tmp_path, weight):
    model = vtm.load(folder / "model.safetensors")
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    weights["head.bias"][1] = weight
    write_model(tmp_path / "m.safetensors", weights, model.description)
    table = tmp_path / "table.csv"
    for arguments in (["--json"], ["--timeline"], ["--stream"], ["--csv", str(table)]):
        status, out, err = predict(str(tmp_path / "m.safetensors"), "videos", *arguments)
        assert (status, out) == (1, "")
        assert "failed: videos/a.mp4: expected finite scores, got NaN or infinity, because the model has weights" in err
        assert "2 of 2 videos could not be predicted" in err
    for row in csv.DictReader(table.open(encoding="utf-8")):
        assert row["error"].startswith("expected finite scores")
        assert not row["prediction"] + row["probability"]


@pytest.mark.parametrize("arguments", [["--json", "--timeline"], ["--stream"], []])
def test_features_that_are_not_finite_fail_only_their_video(predict, monkeypatch, arguments):
    right = Encoder.tokens

    def tokens(self, frames):
        found = right(self, frames)
        return found.masked_fill(found == found.max(), torch.nan) if frames.shape[1] > 2 else found  # not of b.MP4

    monkeypatch.setattr(Encoder, "tokens", tokens)
    status, out, err = predict("model.safetensors", "videos", *arguments)
    assert status == 1
    assert "b.MP4" in out
    assert "failed: videos/a.mp4: some tokens are not finite in float32, because the encoder returned NaN" in err


def test_lines_of_errors_are_written_in_one_piece(predict, monkeypatch):
    written, right = [], sys.stderr.write
    monkeypatch.setattr(sys.stderr, "write", lambda text: written.append(text) or right(text))
    _, _, err = predict("model.safetensors", "broken.mp4")
    assert written == err.splitlines(keepends=True)
    assert len(written) == 3


def test_a_table_is_written_and_goes_on_where_it_was(predict, folder, tmp_path):
    table = tmp_path / "new" / "table.csv"
    assert predict("model.safetensors", "videos/a.mp4", "--csv", str(table))[1] == ""  # it is in the table
    first = table.read_text(encoding="utf-8")
    (row,) = csv.DictReader(first.splitlines())
    assert (row["video"], row["windows"], row["short"], row["damaged"]) == ("videos/a.mp4", "2", "0", "0")
    best = vtm.load("model.safetensors").predict("videos/a.mp4").top(3)
    names = [row["prediction"], row["prediction_2"], row["prediction_3"]]
    values = [row["probability"], row["probability_2"], row["probability_3"]]
    assert list(zip(names, values, strict=True)) == [(name, f"{value:.6f}") for name, value in best]
    assert row["model"] == vtm.load("model.safetensors").identity
    table.write_text(first + "videos/deep/b.MP4,dar", encoding="utf-8")  # killed in the middle of a row
    status, out, err = predict("model.safetensors", "videos", "broken.mp4", "--csv", str(table))
    assert status == 1
    assert "videos/a.mp4" not in out
    assert f"1 of 3 videos are already in {table}" in err
    assert table.read_text(encoding="utf-8").startswith(first)
    *found, failed = csv.DictReader(table.open(encoding="utf-8"))
    assert [row["video"] for row in found] == ["videos/a.mp4", "videos/deep/b.MP4"]
    assert (failed["video"], failed["prediction"], failed["damaged"]) == ("broken.mp4", "", "")
    assert failed["error"].startswith("cannot be read as a video")


def test_what_failed_is_tried_again(predict, folder, tmp_path):
    table = tmp_path / "table.csv"
    arguments = ["model.safetensors", "videos/a.mp4", str(tmp_path / "late.mp4"), "--csv", str(table)]
    (tmp_path / "late.mp4").write_bytes(b"")
    assert predict(*arguments)[0] == 1
    shutil.copy(folder / "videos" / "deep" / "b.MP4", tmp_path / "late.mp4")
    assert predict(*arguments)[0] == 0
    assert [(Path(row["video"]).name, row["error"]) for row in csv.DictReader(table.open(encoding="utf-8"))] == [
        ("a.mp4", ""),
        ("late.mp4", ""),
    ]


@pytest.mark.slow
def test_processes_write_one_table(folder, make_video, tmp_path):
    model, table = folder / "model.safetensors", tmp_path / "table.csv"
    videos = [make_video(tmp_path / "videos" / f"{number}.mp4", 1) for number in range(8)]
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    command = [sys.executable, "-m", "vtm.predict", str(model), str(tmp_path / "videos"), "--csv", str(table)]
    command.append("--json")
    environments = [
        os.environ | {"OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"} for rank in "01"
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for environment in environments]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers  # else torchrun stops the other
    printed = [json.loads(line)["video"] for out, _ in answers for line in out.splitlines()]
    assert sorted(printed) == sorted(map(str, videos))
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert sorted(row["video"] for row in rows) == sorted([*map(str, videos), str(tmp_path / "videos" / "broken.mp4")])
    assert sum(bool(row["error"]) for row in rows) == 1


def test_processes_without_a_table_are_refused(predict, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, _ = predict("model.safetensors", "videos")
    assert status == "2 processes can only share the videos by writing one table; add --csv FILE"
    assert not out


def test_an_interruption_says_what_is_done(predict, monkeypatch, tmp_path):
    right = Predictor.predict

    def interrupted(self, path, **arguments):
        if path.name == "b.MP4":
            raise KeyboardInterrupt
        return right(self, path, **arguments)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    table = tmp_path / "table.csv"
    status, _, err = predict("model.safetensors", "videos", "--csv", str(table))
    assert status == 130
    assert f"interrupted with 1 of 2 videos in {table}; run the same command to continue" in err
    monkeypatch.undo()
    before = table.read_text(encoding="utf-8")
    predict("model.safetensors", "videos", "--csv", str(table))
    assert table.read_text(encoding="utf-8").removeprefix(before).startswith("videos/deep/b.MP4,")


def test_a_termination_says_what_is_done(predict, monkeypatch, tmp_path):
    def terminated(self, path, **arguments):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Predictor, "predict", terminated)
    table = tmp_path / "table.csv"
    status, _, err = predict("model.safetensors", "videos", "--csv", str(table))
    assert status == 143
    assert err.splitlines()[-1] == f"interrupted with 0 of 2 videos in {table}; run the same command to continue"
    status, _, err = predict("model.safetensors", "videos")
    assert status == 143
    assert err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_failures_are_listed_however_it_ends(predict, monkeypatch, capsys, stop):
    def failing(self, path, **arguments):
        raise stop if path.name == "b.MP4" else ValueError("odd")

    monkeypatch.setattr(Predictor, "predict", failing)
    if stop is KeyboardInterrupt:
        err = predict("model.safetensors", "videos")[2].splitlines()
        assert err.pop() == "interrupted"
    else:
        with pytest.raises(stop):
            predict("model.safetensors", "videos")
        err = capsys.readouterr().err.splitlines()
    assert err[-2:] == ["failed: videos/a.mp4: odd", "1 of 2 videos could not be predicted"]


def test_progress_counts_the_videos_of_the_command(predict, folder, monkeypatch, tmp_path):
    table, counts = tmp_path / "table.csv", []
    identity = vtm.load(folder / "model.safetensors").identity
    right = Progress.advance

    def failing(self, path, **arguments):
        with table.open("a") as file:  # as another command with other videos does
            file.write(f"other {path.name},,,,,,,broken,{identity},,,,\n")
        raise ValueError("odd")

    def advance(self, note="", *, to=None):
        right(self, note, to=to)
        counts.append((self.done, self.total))

    monkeypatch.setattr(Predictor, "predict", failing)
    monkeypatch.setattr(Progress, "advance", advance)
    predict("model.safetensors", "videos", "--csv", str(table))
    assert counts == [(1, 2), (2, 2)]


def test_a_failure_of_another_command_stays_in_the_table(predict, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    table = tmp_path / "table.csv"
    assert predict("model.safetensors", str(tmp_path), "--csv", str(table))[0] == 1
    assert predict("model.safetensors", "videos/a.mp4", "--csv", str(table))[0] == 0
    assert [Path(row["video"]).name for row in csv.DictReader(table.open(encoding="utf-8"))] == ["broken.mp4", "a.mp4"]


def test_failures_in_a_table_are_not_all_printed_too(predict, tmp_path):
    for number in range(25):
        (tmp_path / f"{number}.mp4").write_bytes(b"no video")
    table = tmp_path / "table.csv"
    _, _, err = predict("model.safetensors", str(tmp_path), "--csv", str(table))
    assert len([line for line in err.splitlines() if line.startswith("failed: ")]) == 10
    assert f"25 of 25 videos could not be predicted; the column error of {table} has the reasons" in err
    assert len([row for row in csv.DictReader(table.open(encoding="utf-8")) if row["error"]]) == 25
    _, _, err = predict("model.safetensors", str(tmp_path))
    assert len([line for line in err.splitlines() if line.startswith("failed: ")]) == 25


@pytest.mark.parametrize(
    ("overrides", "arguments", "reason"),
    [
        (
            (*WINDOWS, "merging.sample_in_eval=true"),
            ["--stream"],
            "cannot be used with --stream: a stream cannot sample",
        ),
        (("experiment=needle",), [], "was trained on features (needle"),
    ],
)
def test_what_would_fail_for_every_video_is_refused_once(predict, make_model, tmp_path, overrides, arguments, reason):
    model, table = make_model(tmp_path / "model.safetensors", *overrides), tmp_path / "table.csv"
    status, out, err = predict(str(model), "videos", "--csv", str(table), *arguments)
    assert str(status).startswith(f"{model} {reason}")
    assert not out + err
    assert not table.exists()


@pytest.mark.parametrize(
    ("rank", "arguments", "device"),
    [
        ("0", [], "cuda:0"),
        ("1", [], "cuda:1"),
        ("2", ["--device", "cuda"], "cuda:0"),
        ("1", ["--device", "cuda:0"], "cuda:0"),
        ("1", ["--device", "cpu"], "cpu"),
    ],
)
def test_every_process_has_a_gpu(predict, monkeypatch, rank, arguments, device):
    def load(path, *, encoder_checkpoint, device):
        raise FileNotFoundError(device)

    monkeypatch.setattr("torch.empty", lambda *_, device: None)  # as if the device existed
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("vtm.inference.predictor.load", load)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert predict("model.safetensors", "videos", *arguments)[0] == device


def test_a_short_video_is_called_so(predict, make_video, tmp_path):
    make_video(tmp_path / "one\nframe.mp4", 1 / 8)
    _, out, _ = predict("model.safetensors", str(tmp_path), "--top", "1")
    assert out.endswith("(0.1 s, 1 window, short)\n")
    assert out.startswith(f"{tmp_path}/one\\nframe.mp4  ")
    assert json.loads(predict("model.safetensors", str(tmp_path), "--json")[1])["short"] is True
    assert json.loads(predict("model.safetensors", "videos/a.mp4", "--json")[1])["short"] is False


def test_help_names_every_column_of_a_table(predict):
    _, out, _ = predict("--help")
    described = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()[0] in COLUMNS]
    assert described == list(COLUMNS)


def test_a_table_of_something_else_is_left_alone(predict, tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2")
    status, _, _ = predict("model.safetensors", "videos/a.mp4", "--csv", str(tmp_path / "notes.csv"))
    assert "expected a table with the columns" in str(status)
    assert (tmp_path / "notes.csv").read_text() == "a,b\n1,2"


def test_answers_of_a_stream_are_not_mixed_with_others(predict, tmp_path):
    table = ["--csv", str(tmp_path / "table.csv")]
    assert predict("model.safetensors", "videos/a.mp4", "--stream", *table)[0] == 0
    status, _, _ = predict("model.safetensors", "videos/a.mp4", *table)
    assert "+stream, but this model is" in str(status)


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
    prediction = Prediction(
        "a.mp4", 1.0, ["value", "b"], [0.9, 0.1], [Segment(0.0, 1.0, [0.9, 0.1])], short=False, damaged=False
    )
    assert as_dict(prediction, top=1, timeline=False)["label"] == "value"


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_the_number_of_classes_is_checked(predict, number):
    status, _, err = predict("model.safetensors", "videos", "--top", number)
    assert status == 2
    assert f"expected a whole number above 0, got {number}" in err


def test_a_name_that_is_no_text_is_predicted(predict, make_video, tmp_path):
    make_video(tmp_path / "a.mp4", 1).rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    status, out, err = predict("model.safetensors", str(tmp_path), "--json", "--csv", str(tmp_path / "t.csv"))
    assert status == 0, err
    assert json.loads(out)["video"].endswith("\udcff.mp4")
    assert "\\udcff.mp4" in out  # escaped


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent.safetensors", "videos"], "absent.safetensors is not a file; `python -m vtm.export"),
        (["broken.mp4", "videos"], "broken.mp4 is not a model of vtm"),
        (["model.safetensors", "absent.mp4"], "absent.mp4: no such file or folder, and no video"),
        (["model.safetensors", "videos", "--device", "cuda:99"], "--device cuda:99 cannot be used ("),
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


@pytest.mark.slow
def test_predicting_imports_no_framework_of_training(folder):
    code = (
        "import sys, vtm; vtm.load('model.safetensors').predict('videos/a.mp4')\n"
        "print(sorted({'lightning', 'hydra', 'omegaconf', 'torchmetrics', 'matplotlib'} & sys.modules.keys()))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.stdout.strip() == "[]", done.stderr

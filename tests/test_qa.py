import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.video_llm.questions.lists import NEXTQA_HEADER, write, write_egoschema
from tests.video_llm.tiny import build
from vtm.qa import main
from vtm.video_llm import evaluation

TYPES = ("CW", "CH", "TN", "TC", "DC")
SETTINGS = ("questions.root=nextqa", "frames=4")
pytestmark = pytest.mark.filterwarnings("ignore:0 of")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_video) -> Path:
    """A folder with ten questions about four videos, and a tiny model."""
    folder = tmp_path_factory.mktemp("qa")
    tiny = build("llava_onevision")
    tiny.model.save_pretrained(folder / "tiny")
    tiny.processor.save_pretrained(folder / "tiny")
    rows = [
        f"v{number % 4},9,64,48,what is number {number}?,{number % 5},{number},{TYPES[number % 5]},a {number},b,c,d,e"
        for number in range(10)
    ]
    write(folder / "nextqa" / "annotations" / "val.csv", "\n".join([NEXTQA_HEADER, *rows]) + "\n")
    for number in range(4):
        make_video(folder / "nextqa" / "videos" / f"v{number}.mp4", 1 + number)
    return folder


@pytest.fixture
def cwd(prepared, tmp_path) -> Path:
    """A working folder with links to what is prepared."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.fixture
def qa(call, cwd) -> Callable[..., dict[str, Any]]:
    """Run the command and return its results."""

    def qa(*overrides: str) -> dict[str, Any]:
        call(main, cwd, "llm=tiny", *SETTINGS, *overrides)
        return json.loads(run_folder(cwd).joinpath("results.json").read_text())

    return qa


def run_folder(cwd: Path) -> Path:
    (path,) = cwd.glob("runs/qa/nextqa/*")
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_ten_questions_end_to_end(qa, cwd, capsys):
    results = qa("compressor=dyntok", "compressor.threshold=0.9")
    folder = run_folder(cwd)
    assert folder.name.startswith("tiny_dyntok_")
    answers = lines(folder)
    assert list(answers[0]) == [
        "id", "video", "order", "choice", "answer", "correct", "tokens_before", "tokens_after", "frames", "seconds",
        "hash",
    ]  # fmt: skip
    assert sorted(answer["id"] for answer in answers) == sorted(f"v{number % 4}_{number}" for number in range(10))
    assert [answer["video"] for answer in answers] == ["v0"] * 3 + ["v1"] * 3 + ["v2"] * 2 + ["v3"] * 2
    assert {(answer["order"], answer["frames"], answer["tokens_before"]) for answer in answers} == {(0, 4, 64)}
    assert all(answer["correct"] == (answer["choice"] == answer["answer"]) for answer in answers)
    assert {answer["hash"] for answer in answers} == {results["hash"]}
    assert results["level"] == "question"
    assert (results["n"], results["videos"], results["missing"], results["errors"]) == (10, 4, 0, {})
    assert results["value"] == sum(answer["correct"] for answer in answers) / 10
    assert results["floor"] == {"chance": pytest.approx(0.2), "majority": 0.2, "majority_letter": "A"}
    assert {name: group["n"] for name, group in results["groups"]["type"].items()} == dict.fromkeys(sorted(TYPES), 2)
    assert 0 < results["tokens"]["after"] < results["tokens"]["before"] == 64
    assert results["frames"] == 4
    assert results["compressor"]["threshold"] == 0.9
    assert results["published"]["figures"]["DYTO 7B"]["value"] == 0.657
    assert {"torch", "transformers", "vtm"} <= results["versions"].keys()
    assert results["command"].startswith("python -m vtm.qa llm=tiny questions.root=nextqa")
    assert (folder / ".hydra" / "config.yaml").is_file()
    text = capsys.readouterr().out
    assert "published: DYTO 8B 0.814 (InternVL2)" in text
    assert "nothing was merged" not in text


def test_a_run_that_was_stopped_continues_with_the_same_command(qa, cwd, monkeypatch, capsys):
    asked = []
    choose = evaluation.choose_option

    def stop_after_four(llm, clip, question, *rest, **options):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(question)
        return choose(llm, clip, question, *rest, **options)

    monkeypatch.setattr(evaluation, "choose_option", stop_after_four)
    with pytest.raises(SystemExit) as stop:
        qa("compressor=dyntok")
    assert stop.value.code == 130
    assert re.search(
        r"interrupted with 4 answers in .*answers\.jsonl; run the same command again", capsys.readouterr().err
    )
    path = run_folder(cwd) / "answers.jsonl"
    with path.open("a") as file:
        file.write('{"id": "v1_5", "video": "v1", "ord')  # the line of a process that was killed
    monkeypatch.setattr(evaluation, "choose_option", choose)
    read = evaluation.read_clip
    decoded = []
    monkeypatch.setattr(evaluation, "read_clip", lambda path, frames: decoded.append(path.stem) or read(path, frames))
    results = qa("compressor=dyntok")
    assert results["n"] == 10
    assert len(lines(run_folder(cwd))) == 10
    assert decoded == ["v1", "v2", "v3"]  # each once, v0 was done
    before = path.read_bytes()
    assert qa("compressor=dyntok")["value"] == results["value"]
    assert path.read_bytes() == before


def test_the_answers_do_not_depend_on_where_a_run_was_stopped_or_the_rotation_was_added(qa, cwd, capsys):
    folder = "hydra.run.dir=runs/qa/nextqa/mine"  # limit=3 has a folder of its own without it
    results = qa("limit=3", folder)
    assert results["n"] == 3
    assert results["tokens"]["nothing_merged"]
    assert "nothing was merged: all 64 tokens" in capsys.readouterr().out
    some = {answer["id"]: answer["choice"] for answer in lines(run_folder(cwd))}
    assert some.keys() == {"v0_0", "v3_3", "v2_6"}
    results = qa("cyclic=true", folder)
    answers = {(answer["id"], answer["order"]): answer for answer in lines(run_folder(cwd))}
    assert len(answers) == len(lines(run_folder(cwd))) == 50
    assert {id: answers[id, 0]["choice"] for id in some} == some
    cyclic = results["cyclic"]
    assert (cyclic["n"], cyclic["orders"]) == (10, 5)
    for order, value in enumerate(cyclic["values"]):
        assert value == sum(answer["correct"] for (_, number), answer in answers.items() if number == order) / 10
    assert cyclic["values"][0] == results["value"]
    assert cyclic["min"] <= cyclic["mean"] <= cyclic["max"]
    right = {id for id, _ in answers} - {id for (id, _), answer in answers.items() if not answer["correct"]}
    assert cyclic["all_correct"] == len(right) / 10


def test_each_setting_has_a_folder_that_all_its_rotations_share(qa, call, cwd):
    qa("limit=1", "cyclic=true")
    path = run_folder(cwd) / "answers.jsonl"
    before = path.read_bytes()
    assert "cyclic" not in qa("limit=1", "attention=eager")
    assert path.read_bytes() == before
    others = (["limit=2"], ["limit=1", "frames=3"], ["limit=1", "compressor=pool"], ["limit=1", "dtype=bfloat16"])
    for other in others:
        call(main, cwd, "llm=tiny", *SETTINGS, *other)
    assert len(list(cwd.glob("runs/qa/nextqa/*/results.json"))) == 1 + len(others)


def test_a_rotation_is_mapped_back_to_the_official_order(qa, cwd, monkeypatch):
    choose = evaluation.choose_option
    shown = []

    def always_the_second(llm, clip, question, options, *rest, **more):
        shown.append(options[1])
        choice = choose(llm, clip, question, options, *rest, **more)
        return type(choice)(1, choice.logits, choice.probabilities, choice.compression, choice.cost)

    monkeypatch.setattr(evaluation, "choose_option", always_the_second)
    qa("cyclic=true", "limit=1")
    assert shown == ["b", "c", "d", "e", "a 0"]
    assert [answer["choice"] for answer in lines(run_folder(cwd))] == [1, 2, 3, 4, 0]


def test_another_setting_is_refused_in_the_folder_of_a_run(qa, cwd):
    folder = "hydra.run.dir=runs/qa/nextqa/mine"
    qa(folder, "limit=2")
    before = (cwd / "runs/qa/nextqa/mine/answers.jsonl").read_bytes()
    for override, part in (("compressor=pool", "compressor"), ("frames=3", "frames"), ('prefill="("', "prompt")):
        with pytest.raises(
            SystemExit, match=rf"mine has answers with another {part} than this command; choose another"
        ):
            qa(folder, "limit=2", override)
    shutil.copytree(cwd / "tiny", cwd / "other")
    weights = load_file(cwd / "other" / "model.safetensors")
    name = next(name for name in weights if weights[name].ndim > 1)
    save_file(weights | {name: weights[name] + 1}, cwd / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match="mine has answers with another weights than this command"):
        qa(folder, "limit=2", "llm=other")
    assert (cwd / "runs/qa/nextqa/mine/answers.jsonl").read_bytes() == before
    shutil.rmtree(cwd / "other")
    shutil.copytree(cwd / "tiny", cwd / "other")
    assert qa(folder, "limit=2", "llm=other")["n"] == 2  # the same model from elsewhere


def test_a_list_with_other_right_options_is_refused_in_the_folder_of_a_run(qa, cwd, prepared):
    qa("hydra.run.dir=runs/qa/nextqa/same")
    before = (cwd / "runs/qa/nextqa/same/answers.jsonl").read_bytes()
    shutil.copytree(prepared / "nextqa", cwd / "corrected")
    path = cwd / "corrected" / "annotations" / "val.csv"
    path.write_text(path.read_text().replace("what is number 3?,3,", "what is number 3?,4,"))
    with pytest.raises(SystemExit, match=r"answers\.jsonl has 3 as the right option of v3_3, but the list has 4"):
        qa("hydra.run.dir=runs/qa/nextqa/same", "questions.root=corrected")
    assert (cwd / "runs/qa/nextqa/same/answers.jsonl").read_bytes() == before


def test_a_video_with_errors_does_not_stop_the_others_and_is_tried_again(qa, cwd, prepared):
    (cwd / "nextqa").unlink()
    shutil.copytree(prepared / "nextqa", cwd / "nextqa")
    (cwd / "nextqa" / "videos" / "v1.mp4").write_bytes(b"no video")
    (cwd / "nextqa" / "videos" / "v2.mp4").unlink()
    with pytest.raises(SystemExit, match="1 of the 4 videos are missing"):
        qa()
    with pytest.raises(SystemExit, match=r"1 of 3 videos have errors, see runs/qa/nextqa/.*/results\.json"):
        qa("questions.allow_missing=true")
    results = json.loads((run_folder(cwd) / "results.json").read_text())
    assert results["errors"].keys() == {"v1"}
    assert "cannot be read as a video" in results["errors"]["v1"]
    assert (results["n"], results["missing"], results["missing_videos"]) == (5, 2, ["v2"])
    for number in (1, 2):
        shutil.copy(prepared / "nextqa" / "videos" / f"v{number}.mp4", cwd / "nextqa" / "videos")
    results = qa()
    assert (results["n"], results["missing"], results["errors"]) == (10, 0, {})


def test_a_compressor_that_does_not_fit_the_model_stops_the_run_early(qa, cwd, monkeypatch):
    read, decoded = evaluation.read_clip, []
    monkeypatch.setattr(evaluation, "read_clip", lambda path, frames: decoded.append(path.stem) or read(path, frames))
    with pytest.raises(SystemExit, match=r"the first 3 videos fail for the same reason: .*CLS"):
        qa("compressor=dyto_released")
    assert decoded == ["v0", "v1", "v2"]
    with pytest.raises(
        SystemExit, match=r"no question was answered; the first error is: v0_0: expected one of threshold"
    ):
        qa("compressor=dyntok", "compressor.target_ratio=0.5", "limit=2")
    assert not list(cwd.glob("runs/qa/nextqa/*/results.json"))


def test_questions_that_cannot_be_answered_do_not_stop_the_others(qa, cwd, monkeypatch):
    choose = evaluation.choose_option

    def refuse_some(llm, clip, question, *rest, **options):
        choice = choose(llm, clip, question, *rest, **options)
        if clip.path.stem == "v0":
            raise ValueError("the context is too short")
        if clip.path.stem == "v2":
            choice.logits[1] = float("nan")
        return choice

    monkeypatch.setattr(evaluation, "choose_option", refuse_some)
    with pytest.raises(SystemExit, match="2 of 4 videos have errors"):
        qa()
    results = json.loads((run_folder(cwd) / "results.json").read_text())
    assert results["errors"] == {
        "v0": "v0_0: the context is too short",
        "v2": "v2_2: the logits of the letters are not finite; try dtype=float32 or dtype=bfloat16",
    }
    assert results["n"] == 5


def test_secret_answers_are_exported_for_the_server(call, cwd, make_video):
    write_egoschema(cwd / "egoschema")
    for number in range(4):
        make_video(cwd / "egoschema" / "videos" / f"uid{number}.mp4", 1)
    call(main, cwd, "questions=egoschema", "llm=tiny", "questions.root=egoschema", "frames=2")
    (folder,) = (cwd / "runs" / "qa" / "egoschema").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert (results["n"], results["unscored"]) == (2, 2)
    submission = json.loads((folder / "submission.json").read_text())
    assert submission == {answer["id"]: answer["choice"] for answer in lines(folder)}
    assert len(submission) == 4
    assert {answer["id"]: answer["correct"] for answer in lines(folder)}["uid0"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frame=4", "'frame' is unknown; did you mean 'frames'"),
        ("compresor=dyntok", "'compresor' is unknown"),
        ("compressor=dyntoc", "did you mean 'compressor=dyntok'"),
        ("frames=many", "frames=many: expected a whole number"),
        ("frames=0", "expected frames of at least 1, got frames=0"),
        ("limit=0", "expected limit to be a whole number of at least 1"),
        ("cyclic=maybe", "cyclic=maybe: expected true or false"),
        ("dtype=half", "expected a dtype of auto"),
        ("prefill=5", "expected a text as prefill, got prefill=5; quote it twice"),
        ("device_map=gpu", "device_map 'gpu' needs accelerate"),
        ("attention=best", "attn_implementation=.?best"),
        ("compressor.budget=7", "'compressor.budget' is unknown"),
        ("questions.split=train", r"expected questions\.split=val or test, got train"),
        ("questions.root=elsewhere", "The folder elsewhere is missing"),
        ("llm=nowhere", "nowhere: no such folder"),
    ],
)
def test_a_wrong_override_is_named(qa, cwd, override, message):
    with pytest.raises(SystemExit, match=message):
        qa(override)
    assert not (cwd / "runs").exists()


def test_a_command_without_a_model_says_so(call, cwd):
    with pytest.raises(SystemExit, match="llm has no value: add llm="):
        call(main, cwd, *SETTINGS)


def start(cwd: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vtm.qa", "llm=tiny", *SETTINGS, *overrides]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_killed_run_is_continued_by_two_processes(cwd):
    first = start(cwd, "cyclic=true")
    while not (path := next(cwd.glob("runs/qa/nextqa/*/answers.jsonl"), None)) or path.read_bytes().count(b"\n") < 4:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = path.read_bytes().count(b"\n")
    assert 4 <= done < 50
    both = [start(cwd, "cyclic=true") for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    answers = lines(path.parent)
    assert len(answers) == len({(answer["id"], answer["order"]) for answer in answers}) == 50
    assert any("right in all orders" in output for output in outputs)
    results = json.loads((path.parent / "results.json").read_text())
    assert (results["n"], results["cyclic"]["n"]) == (10, 10)
    assert not list(path.parent.glob(".*tmp"))
    assert torch.tensor(results["interval"]).diff() > 0

"""The command `python -m vtm.ask`: answers, choices, calibration, pictures, and mistakes in one sentence."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.video_llm.tiny import build
from vtm.ask import main
from vtm.compressors import Clip, dyntok, keep_all
from vtm.inference.prediction import printable
from vtm.video_llm.answering import choose_option, encode_clip, generate_answer
from vtm.video_llm.frames import read_clip
from vtm.video_llm.loading import load_llm

QUESTION = ("--question", "Why?", "--frames", "8", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_video) -> Path:
    """A folder with models, two videos, a video of one frame and a file that is not a video."""
    folder = tmp_path_factory.mktemp("ask")
    for family in ("llava_onevision", "qwen3_vl"):
        tiny = build(family)
        tiny.model.save_pretrained(folder / family)
        tiny.processor.save_pretrained(folder / family)
    make_video(folder / "videos" / "a.mp4", 5.5)
    make_video(folder / "videos" / "deep" / "b.mp4", 2)
    make_video(folder / "one.mp4", 1, fps=1)
    (folder / "broken.mp4").write_bytes(b"no video" * 50)
    return folder


@pytest.fixture
def ask(folder, monkeypatch, capsys):
    """Call the command in the folder; return its exit status and what it printed."""

    def ask(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["vtm.ask", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return ask


def fact(out: str, name: str) -> str:
    found = re.search(rf"^  {name} +(.*)$", out, flags=re.MULTILINE)
    assert found, f"{name} is missing in {out}"
    return found[1]


def test_the_answer_is_that_of_the_model_with_its_cost(ask, folder):
    status, out, err = ask("qwen3_vl", "videos/a.mp4", *QUESTION, "--compressor", "dyntok", "threshold=0.9")
    llm, clip = load_llm(str(folder / "qwen3_vl")), read_clip(folder / "videos" / "a.mp4", 8)
    answer = generate_answer(llm, clip, "Why?", lambda clip: dyntok(clip, threshold=0.9), max_new_tokens=4)
    cost = answer.cost
    assert (status, err) == (0, "")
    assert out.startswith("videos/a.mp4\n")
    written = answer.text.splitlines() or ["(the model wrote nothing)"]
    assert fact(out, "answer").strip() == printable(written[0]).strip()
    share = f"{cost.tokens_after / cost.tokens_before:.1%}"
    expected = f"{cost.tokens_before} → {cost.tokens_after} visual ({share}) by dyntok threshold=0.9"
    assert fact(out, "tokens") == expected
    assert fact(out, "context") == (
        f"{cost.context} tokens: {cost.tokens_after} visual tokens, {cost.context - cost.tokens_after} of text"
    )
    assert fact(out, "frames") == "8 of 5.5 s, grid of tokens 4 × 6 × 8"
    for phase in ("encoding", "prefill", "generation"):
        assert re.match(r"\d+\.\d\d s(, peak memory \d+\.\d\d GB)?", fact(out, phase))


def test_a_choice_has_its_probabilities(ask, folder):
    arguments = ("--choices", "a dog", "a <video>", "nothing", "--prefill", "(")
    status, out, _ = ask("llava_onevision", "videos/a.mp4", *QUESTION, *arguments)
    llm, clip = load_llm(str(folder / "llava_onevision")), read_clip(folder / "videos" / "a.mp4", 8)
    options = ["a dog", "a <video>", "nothing"]
    with pytest.warns(UserWarning, match="0 of"):
        choice = choose_option(llm, clip, "Why?", options, keep_all, prefill="(")
    best = float(choice.probabilities[choice.index])
    assert status == 0
    assert fact(out, "answer") == f"{'ABC'[choice.index]}. {options[choice.index]} ({best:.2f})"
    a, b, c = choice.probabilities.tolist()
    assert fact(out, "letters") == f"A {a:.3f}, B {b:.3f}, C {c:.3f}"
    assert fact(out, "tokens") == "128 visual"
    assert "1 newline token," in fact(out, "context")
    assert "generation" not in out
    assert "merged" not in out  # without a compressor, that nothing is merged goes without saying


def test_a_compressor_with_nothing_to_do_is_named_once(ask):
    status, out, err = ask("llava_onevision", "videos/a.mp4", *QUESTION, "--compressor", "dyto", "budget=100.0")
    assert (status, err) == (0, "")
    assert (out + err).count("merged") == 1
    assert fact(out, "tokens") == "0 of 128 tokens merged: dyto budget=100.0 changed nothing"


def test_failures_do_not_stop_the_rest(ask):
    status, out, err = ask("qwen3_vl", "broken.mp4", "videos", "one.mp4", *QUESTION)
    assert status == 1
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "videos/a.mp4", "videos/deep/b.mp4", "one.mp4",
    ]  # fmt: skip
    assert err.startswith("failed: broken.mp4: cannot be read as a video (Invalid data")
    assert "1 of 4 videos failed" in err.splitlines()
    assert "ask: 4 of 4" in err


def test_frames_and_tokens_are_drawn(ask, folder, tmp_path):
    arguments = (*QUESTION, "--compressor", "uniform", "budget=2.0", "--picture", str(tmp_path / "out"))
    status, out, _ = ask("llava_onevision", "videos", *arguments)
    assert status == 0
    assert fact(out, "frames").endswith("2 of 8 kept")
    assert fact(out, "picture") == str(tmp_path / "out" / "a.mp4_uniform.png")
    names = [f"{name}.mp4_uniform.png" for name in ("a", "b")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    with Image.open(tmp_path / "out" / names[0]) as picture:
        assert picture.size[0] == 1920


def test_calibration_finds_thresholds_that_keep_the_share(ask, folder):
    status, out, err = ask("qwen3_vl", "videos", "broken.mp4", "--calibrate", "0.5", "--frames", "8")
    assert status == 1  # one video is broken
    assert "failed: broken.mp4" in err
    llm = load_llm(str(folder / "qwen3_vl"))
    clips: list[Clip] = [
        encode_clip(llm, read_clip(folder / name, 8)) for name in ("videos/a.mp4", "videos/deep/b.mp4")
    ]
    rows = re.findall(r"^  (-?[\d.]+)  (\S+) alone; the common threshold keeps ([\d.]+)% of it$", out, re.MULTILINE)
    assert [row[1] for row in rows] == ["videos/a.mp4", "videos/deep/b.mp4"]
    for (threshold, _, _), clip in zip(rows, clips, strict=True):
        kept = len(dyntok(clip, threshold=float(threshold)).tokens)
        assert kept / clip.num_tokens == pytest.approx(0.5, abs=0.02)
    pooled = re.search(r"common to all: --compressor dyntok threshold=(-?[\d.]+)$", out, re.MULTILINE)
    assert pooled
    shares = [len(dyntok(clip, threshold=float(pooled[1])).tokens) for clip in clips]
    assert sum(shares) / sum(clip.num_tokens for clip in clips) == pytest.approx(0.5, abs=0.02)
    assert [float(row[2]) for row in rows] == pytest.approx(
        [100 * kept / clip.num_tokens for kept, clip in zip(shares, clips, strict=True)], abs=2
    )


def test_calibration_prints_the_other_settings_that_it_is_for(ask):
    compressor = ("--compressor", "dyntok", "axis=time", "threshold=0.3")
    status, out, _ = ask("qwen3_vl", "videos/a.mp4", "--calibrate", "0.5", "--frames", "8", *compressor)
    assert status == 0
    assert re.search(r"--compressor dyntok threshold=-?[\d.]+ axis=time$", out, re.MULTILINE)


def test_calibration_needs_no_room_in_the_context(ask):
    status, out, _ = ask("qwen3_vl", "videos/a.mp4", "--calibrate", "0.5", "--frames", "44", "--dtype", "float32")
    assert status == 0
    assert "common to all" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone", "videos/a.mp4", *QUESTION), r"^gone: no such folder; give a folder, or a name such as owner/model"),
        (("a/b", "videos/a.mp4", *QUESTION), r"^a/b: no such folder, and the hub cannot be reached"),
        (("videos", "videos/a.mp4", *QUESTION), r"^videos: has no config\.json"),
        (("qwen3_vl", "gone.mp4", *QUESTION), r"^gone\.mp4: no such file or folder"),
        (
            ("qwen3_vl", "videos/a.mp4", *QUESTION, "--compressor", "tom"),
            r"^'tom' is not a compressor; expected one of",
        ),
        (("qwen3_vl", "videos/a.mp4", *QUESTION, "--compressor", "tome", "a=1"), r"^'a=1' cannot be set for .* tome"),
        (("qwen3_vl", "videos/a.mp4", *QUESTION, "--picture", "one.mp4"), r"^one\.mp4: File exists"),
        (
            ("qwen3_vl", "videos/a.mp4", *QUESTION, "--choices", "a", "b", "--prefill", " "),
            r"expected the letter A to be one token",
        ),
    ],
)
def test_mistakes_are_one_sentence(ask, arguments, message):
    status, out, err = ask(*arguments)
    assert out == err == ""
    assert isinstance(status, str)
    assert re.search(message, status)
    assert "\n" not in status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a question: --question TEXT (or --calibrate SHARE)"),
        (("--question", " "), "expected a question: --question TEXT (or --calibrate SHARE)"),
        (("--question", "Why?", "--choices", "a"), "expected 2 to 26 --choices, got 1"),
        (("--question", "Why?", "--choices", "a", " "), "expected a text as each of the --choices, got an empty one"),
        (("--question", "Why?", "--frames", "0"), "expected a whole number above 0, got 0"),
        (("--calibrate", "0.5", "--compressor", "dyto"), "--calibrate is for --compressor dyntok, got dyto"),
    ],
)
def test_wrong_arguments_are_explained(ask, arguments, message):
    status, _, err = ask("qwen3_vl", "videos/a.mp4", *arguments)
    assert status == 2
    assert err.splitlines()[-1].endswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--question", "Why? " * 3000), r"\d+ tokens are left, \d+ of them visual, but the context of the model"),
        (("--question", "Why?", "--max-new-tokens", "5000"), r"\d+ tokens of the prompt and 5000 new ones do not fit"),
        (("--question", "Why?", "--compressor", "dyto", "descriptor=cls"), r"descriptor"),
        (("--question", "Why?", "--compressor", "dyntok", "target_ratio=0.5"), r"set the other to None, or null on a"),
    ],
)
def test_what_a_video_is_refused_for_is_one_sentence(ask, arguments, message):
    status, out, err = ask("qwen3_vl", "videos/a.mp4", *arguments, "--frames", "8")
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"failed: videos/a\.mp4: .*{message}.*\n", err)


def test_special_tokens_in_a_question_are_text(ask):
    question = ("--question", "Is <video> or <|vision_end|> <eos> seen?", "--frames", "8", "--max-new-tokens", "2")
    assert ask("qwen3_vl", "videos/a.mp4", *question)[0] == 0


def test_an_interruption_says_how_far_it_came(ask, monkeypatch):
    from vtm.video_llm import frames

    read, seen = frames.read_clip, []

    def interrupted(path: Path, count: int) -> frames.VideoClip:
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(path, count)

    monkeypatch.setattr(frames, "read_clip", interrupted)
    status, out, err = ask("qwen3_vl", "videos", *QUESTION)
    assert status == 130
    assert out.startswith("videos/a.mp4")
    assert err.splitlines()[-1] == "interrupted after 1 of 2 videos"


def test_the_device_and_dtype_are_passed_on(ask):
    torch.manual_seed(0)
    options = ("--dtype", "bfloat16", "--device-map", "cpu", "--attention", "eager")
    assert ask("llava_onevision", "videos/a.mp4", *QUESTION, *options)[0] == 0
    status, _, _ = ask("llava_onevision", "videos/a.mp4", *QUESTION, "--attention", "magic")
    assert "the model cannot be loaded" in str(status)

"""The command measures each row once, writes the tables after each, and reports errors in one sentence."""

import re
import subprocess
import sys

import pytest

from vtm.benchmark.__main__ import main
from vtm.benchmark.measuring import Result
from vtm.benchmark.rows import Row

SIZE = (
    "--device cpu --frames 4 --height 2 --width 2 --channels 16 --batch 1 --precision 32-true model.window_frames=[2,4]"
)
SIZE += " model.channels=[16,8]"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command with fake results, and return the measured rows."""

    def command(*arguments: str, stop_after: int | None = None) -> list:
        measured = []

        def fake(measure, row, setting, rate):
            if len(measured) == stop_after:
                raise KeyboardInterrupt
            measured.append((row, setting, rate))
            return Result(1.0 + len(measured), 10**9, 10**9, 10**6, 10**9, rate=5e9)

        monkeypatch.setattr("vtm.benchmark.processes.measured_apart", fake)
        monkeypatch.setattr("sys.argv", ["benchmark", "--out", str(tmp_path / "out"), *SIZE.split(), *arguments])
        command.measured = measured
        main()
        return measured

    return command


def names_in(markdown: str) -> list[str]:
    return [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("|")]


def test_rows_that_are_the_same_are_measured_once_and_shown_in_every_table(run, tmp_path, capsys):
    measured = run("--threads", "1", "--repeats", "2")
    names = [row.name for row, _, _ in measured]
    assert len(names) == len(set(names))
    assert {setting.threads for _, setting, _ in measured} == {1}
    assert {setting.repeats for _, setting, _ in measured} == {2}
    assert [rate for _, _, rate in measured[:2]] == [None, 5e9]
    table = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert names_in(table).count("none, plain attention") == 4  # strategies, γ, L and R
    assert "learnable, γ = 6" in names_in(table)
    assert "learnable, γ = 6" not in names  # the same as the default row
    out, err = capsys.readouterr()
    assert re.search(rf"\n{len(measured)} rows, which take at least 0:\d\d:\d\d on this machine\n", out)
    assert err.splitlines()[-1] == f"row {len(measured)} of {len(measured)}: {names[-1]}"
    printed, written = (
        [[cell.strip(" :-") for cell in line.split("|")[:3]] for line in text.splitlines() if line[:1] in ("|", "#")]
        for text in (out, table)
    )
    assert printed == written[1:]  # the title of the page is not printed
    assert (tmp_path / "out" / "benchmark.csv").is_file()


def test_a_single_table_can_be_chosen(run, tmp_path):
    names = {row.name for row, _, _ in run("--only", "merge count")}
    assert names >= {"none, plain attention", "learnable, R/|S| = 0.5"}
    table = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert [line for line in table.splitlines() if line.startswith("## ")] == ["## Merge count R"]
    with pytest.raises(SystemExit, match=r"--only long matches no title of Strategies, .*--long"):
        run("--only", "long")


def test_an_interruption_keeps_the_measured_rows(run, tmp_path):
    with pytest.raises(SystemExit, match=r"interrupted; 2 rows are in .*out"):
        run("--threads", "1", stop_after=2)
    table = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert "none, fused attention" in names_in(table)
    assert "uniform" not in names_in(table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merging.partition_facto=4"], "did you mean 'merging.partition_factor'"),
        (["model.num_heads=3"], "num_heads"),
        (["--frames", "3"], "clips of 3 frames do not fit"),
    ],
)
def test_arguments_that_no_row_accepts_stop_the_command_at_its_start(run, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run("--only", "merge count", *arguments)
    assert run.measured == []
    assert not (tmp_path / "out").exists()


def test_an_unknown_precision_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--precision", "16-true")
    assert "expected one or more of 32-true, bf16-mixed, got 16-true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "gpu", "argument --device: expected cpu, cuda or cuda:1, got gpu"),
        ("--repeats", "0", "argument --repeats: expected a whole number above 0, got 0"),
        ("--threads", "0", "argument --threads: expected a whole number above 0, got 0"),
        ("--frames", "-6", "argument --frames: expected a whole number above 0, got -6"),
        ("--batch", "1,x", "argument --batch: expected a whole number above 0, got x"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(run, capsys, option, value, message):
    with pytest.raises(SystemExit):
        run(option, value)
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_here_is_refused_in_one_sentence(run):
    with pytest.raises(SystemExit, match=r"--device cuda:99 does not exist: torch finds \d+ GPUs; choose another"):
        run("--device", "cuda:99")


def test_the_full_product_has_the_encoder_where_asked(run, monkeypatch):
    asked = []

    def few(**kinds):
        asked.append(kinds["encoder"])
        return {"All combinations": [Row("learnable")]}

    monkeypatch.setattr("vtm.benchmark.__main__.full_tables", few)
    run("--full")
    run("--full", "--encoder")
    assert asked == [False, True]


def test_help_is_quick():
    code = """
import runpy, sys
sys.argv = ["benchmark", "--help"]
try:
    runpy.run_module("vtm.benchmark", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, "lightning" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--full" in found
    assert "torch.compile, With the encoder, Long" in " ".join(found.split())
    assert found.strip().endswith("False False")

"""The benchmark of compressors as a command: tables, trained models that are used again, errors in one sentence."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vtm.benchmark.__main__ import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command, and return the folder of its tables."""

    def command(*arguments: str) -> Path:
        options = ["compressors", "--quick", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", ["benchmark", *options])
        main()
        return tmp_path / "out"

    return command


@pytest.fixture
def few(monkeypatch):
    """Measure fewer compressors and budgets, and compare all kinds of question."""
    pytest.importorskip("transformers", reason="transformers is not installed (pip install vtm[hf])")
    from vtm.benchmark.compressors import accuracy

    names = ("dyto_released", "dyntok", "random tokens")
    monkeypatch.setattr(accuracy, "COMPRESSORS", {name: accuracy.COMPRESSORS[name] for name in names})
    monkeypatch.setattr(accuracy, "RATIOS", (0.25, 0.05))
    monkeypatch.setattr(accuracy, "LEARNED", 0.0)
    return accuracy


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_another_run_with_the_same_models(few, run, monkeypatch, capsys):
    out = run("--seeds", "2")
    assert sorted(path.name for path in out.iterdir()) == [
        "compressors.csv", "compressors.md", "seed-0.safetensors", "seed-1.safetensors",
    ]  # fmt: skip
    found = rows(out / "compressors.csv")
    titles = list(dict.fromkeys(row["table"] for row in found))
    assert titles == [
        "Without compression",
        *(
            f"{kind}, right answers of 2 models in %"
            for kind in ("Which code", "Which half", "Which first", "How many")
        ),
        "Tokens kept in %",
        "Frames that keep tokens, of 14",
    ]
    assert "--quick" in found[0]["command"]
    kept = {row["compressor"]: row for row in found if row["table"] == "Tokens kept in %"}
    assert list(kept) == ["dyto_released", "dyntok", "random tokens"]
    assert float(kept["random tokens"]["25 %"]) == 25
    assert float(kept["dyntok"]["25 %"]) == pytest.approx(25, abs=0.1)
    assert kept["dyntok"]["5 %"] == ""
    assert "0.0833" in kept["dyntok"]["remarks"]
    printed, errors = capsys.readouterr()
    written = (out / "compressors.md").read_text(encoding="utf-8")
    assert all(f"## {title}" in printed and f"## {title}" in written for title in titles)
    assert re.search(r"compressors, frames: (\d+) of \1,", errors)

    monkeypatch.setattr("vtm.benchmark.compressors.training.train", None)  # which would raise if it was called
    again = rows(run("--seeds", "2") / "compressors.csv")
    assert again == found
    monkeypatch.setattr("sys.argv", ["benchmark", "compressors", "--out", str(out)])
    with pytest.raises(SystemExit, match=r"seed-0.safetensors holds a model of another recipe, .*choose another --out"):
        main()


def test_an_interruption_says_how_to_go_on(few, run, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(few.Answers, "add", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted; to go on, give --out .*out"):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seed-0.safetensors"]


def test_without_transformers_one_sentence_says_so(run, monkeypatch):
    monkeypatch.setattr("vtm.benchmark.compressors.command.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"the benchmark of compressors needs transformers: pip install -e '\.\[hf\]'"):
        run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "argument --seeds: expected a whole number above 0, got 0"),
        (["--repeats", "3"], "unrecognized arguments: --repeats 3"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_compressors_must_come_first(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--threads", "1", "compressors"])
    with pytest.raises(SystemExit):
        main()
    assert "compressors must come first: python -m vtm.benchmark compressors" in capsys.readouterr().err


def test_help_is_quick():
    code = """
import runpy, sys
sys.argv = ["benchmark", "compressors", "--help"]
try:
    runpy.run_module("vtm.benchmark", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--quick" in found
    assert found.strip().endswith("False False")

"""The command of the benchmark of merging: its arguments, with errors in one sentence."""

import subprocess
import sys

import pytest

from vtm.benchmark.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "time"], "argument --only: invalid choice: 'time'"),
        (["--batch", "1,2,3"], "argument --batch: expected one number, or two for images and clips, got 1,2,3"),
        (["--seeds", "0"], "argument --seeds: expected a whole number above 0, got 0"),
        (["merging.partition_factor=2"], "unrecognized arguments: merging.partition_factor=2"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_merging_must_come_first(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--threads", "1", "merging"])
    with pytest.raises(SystemExit):
        main()
    assert "merging must come first: python -m vtm.benchmark merging" in capsys.readouterr().err


def test_help_is_quick():
    code = """
import runpy, sys
sys.argv = ["benchmark", "merging", "--help"]
try:
    runpy.run_module("vtm.benchmark", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--quick" in found
    assert found.strip().endswith("False False")

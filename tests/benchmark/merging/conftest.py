"""The benchmark of merging, run in this process."""

from pathlib import Path

import pytest

from vtm.benchmark.__main__ import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command, and return the folder of its tables."""

    def command(*arguments: str) -> Path:
        options = ["merging", "--quick", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", ["benchmark", *options])
        main()
        return tmp_path / "out"

    return command

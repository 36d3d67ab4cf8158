"""What all tests share: one thread each, because the machine may be small and busy, and commands without a shell."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the `main` of a command as from a shell in a folder, without the seconds that a new process takes."""

    def call(main: Callable[[], Any], folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["command", *overrides])
        GlobalHydra.instance().clear()
        main()

    return call

"""Fixtures for all tests, and one thread each, because the machine may be small and busy."""

import gc
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.runs import write_run
from tests.videos import loading, stamps
from vtm.export import export
from vtm.video.writing import write_video

__all__ = ["loading", "stamps", "write_run"]  # fixtures of other files
CONF = Path(__file__).parents[1] / "conf"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Put the value into test ids where pytest shows a number (`dtype0`) or a value without its name (`False`)."""
    if (isinstance(val, str | bytes) and val) or hasattr(val, "__name__"):
        return None  # pytest's own id is clear
    text = _text(val)[:80]
    nameless = val is None or isinstance(val, int | float | list | tuple) or not text
    return f"{argname}={text}" if nameless else text


def _text(item: object) -> str:
    """Format a parameter without its memory address, so that test ids agree between processes."""
    if isinstance(item, dict):
        return ",".join(f"{key}={_text(value)}" for key, value in item.items())
    if isinstance(item, list | tuple):
        return ",".join(map(_text, item))
    if isinstance(item, torch.Tensor | np.ndarray):
        return _text([item.dtype, *item.shape])
    if item is None or isinstance(item, str | int | float | torch.dtype | np.dtype):
        return str(item).removeprefix("torch.")
    return getattr(item.func if isinstance(item, partial) else item, "__name__", type(item).__name__)


def pytest_collection_finish() -> None:
    """Exempt what is imported from garbage collection, whose every full pass over it would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which commands use too
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def let_go(error: BaseException | None) -> None:
    """Clear the frames of an error: a DataLoader worker that is collected as garbage costs a wait of 5 s."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call the `main` of a command as from a shell in a folder, without the cost of a new process."""
    handlers, level = logging.root.handlers[:], logging.root.level

    def call(main: Callable[[], Any], folder: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["command", *overrides])
        GlobalHydra.instance().clear()
        try:
            main()
        except BaseException as stop:
            let_go(stop)
            raise

    yield call
    # undo what a process would leave only until its end: Hydra's log handlers and the settings of W&B
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Write a checkpoint of a tiny network with random weights, as train.py would for the demo with overrides."""

    @cache  # a third of a second, and many tests ask for the same
    def content(overrides: tuple[str, ...], classes: tuple[str, ...] | None) -> dict[str, Any]:
        tiny = ["encoder.image_size=32", "encoder.model_args.depth=1", "model.window_frames=[2,4]"]
        tiny += ["experiment=demo", "model.channels=[8,8]", "model.num_heads=2", "data.protocol.num_frames=4"]
        chosen = [] if "experiment=needle" in overrides else tiny
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=["run_dir=runs/x", *chosen, *overrides])
        encoder = instantiate(config.encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = instantiate(config.model, encoder.channels, len(classes or "1"))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        plain = OmegaConf.to_container(config, resolve=True)
        facts = {"format": 2, "encoder": encoder.key, "classes": classes and list(classes), "config": plain}
        return {"vtm": facts, "state_dict": state, "epoch": 2, "global_step": 30}

    def make(path: Path, *overrides: str, classes: tuple[str, ...] | None = ("dark", "light", "red")) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content(overrides, classes), path)
        return path

    return make


@pytest.fixture(scope="session")
def make_model(make_checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    """Write the model file of a tiny network with random weights."""

    def make(path: Path, *overrides: str, classes: tuple[str, ...] | None = ("dark", "light", "red")) -> Path:
        checkpoint = make_checkpoint(path.parent / "run" / "checkpoints" / "best.ckpt", *overrides, classes=classes)
        list(export(checkpoint, path, "safetensors"))
        checkpoint.unlink()
        return path.with_name(f"{path.name}.safetensors") if path.suffix != ".safetensors" else path

    return make


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """Write a video of drifting noise, in which no two frames and no two patches are alike."""

    def make(path: Path, seconds: float, *, fps: int = 8, **options: str) -> Path:
        picture = np.random.default_rng(len(path.name)).integers(0, 256, (6, 8, 3), np.uint8)
        picture = picture.repeat(8, 0).repeat(8, 1)  # 48 x 64
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = (np.roll(picture, (number, 2 * number), (0, 1)) for number in range(round(seconds * fps)))
        write_video(path, frames, fps=fps, codec="libx264", options={"g": "12", **options})
        return path

    return make

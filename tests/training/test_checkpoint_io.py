"""Checkpoints are replaced in one step, also on another file system than that of temporary files."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

import train
from vtm.training.checkpoint_io import AtomicCheckpointIO

NEEDLE = [
    "experiment=needle", "trainer=cpu", "trainer.max_epochs=2", "data.num_train=8", "data.num_val=4", "data.num_test=4",
    "data.batch_size=4", "data.clips.frames=4", "data.clips.channels=16", "data.protocol.num_frames=4",
    "model.window_frames=[2,4]", "model.channels=[8,8]", "scheduler.warmup_epochs=0", "logger=csv",
]  # fmt: skip


@pytest.fixture(params=["same", "other"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the file system of temporary files, and one on another."""
    if request.param == "same":
        yield tmp_path
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("needs /dev/shm as another file system")
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


def values(path: Path) -> list[float]:
    found: list[float] = torch.load(path, weights_only=True)["x"].unique().tolist()
    return found


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_inside_the_write_leaves_the_old_checkpoint(folder: Path, moment: str) -> None:
    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, path)
    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        AtomicCheckpointIO().save_checkpoint({"x": torch.ones(100_000)}, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert values(path) == [0.0]
    assert len([*folder.iterdir()]) == 2  # the unfinished file, too
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(100_000)}, path)
    assert values(path) == [1.0]
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_an_interrupted_write_leaves_the_old_checkpoint_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = folder / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(9)}, path)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"x": torch.ones(9)}, path)
    assert values(path) == [0.0]
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("damage", ["flip", "cut", "extended"])
def test_a_damaged_checkpoint_is_refused_where_lightning_reads_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(999)}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["x"], torch.arange(999))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-1], "extended": content + b"\0"}[damage])
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint of vtm, or is damaged; give"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


def test_train_writes_no_checkpoint_in_another_way(call, tmp_path, monkeypatch):
    def lightning(*_: object) -> None:
        raise AssertionError("Lightning copies over the old file")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lightning)
    call(train.main, tmp_path, *NEEDLE, "hydra.run.dir=run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

"""The owner of a run folder: one run writes into a folder, since nobody could tell the files of two runs apart."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback as HydraCallback
from omegaconf import DictConfig

from vtm.system.atomic import write_atomically
from vtm.system.locks import locked_folder
from vtm.system.processes import job_id, job_restarts, process_namespace, process_rank, start_time

LAUNCHER = "VTM_LAUNCHER"  # variable with the process id of the torchrun that `start_processes` has started
_FILE = "owner.json"


class Owner(NamedTuple):
    """The process that writes a run folder.

    Attributes:
        host: machine on which the process id is valid.
        pid: process id.
        started: start time of the process, because a later process may get the same id.
        job: SLURM or torchrun job of the process; None without one.
        overrides: overrides on its command line.
        ended: whether the process itself has ended the run; False if it runs or was killed.
    """

    host: str
    pid: int
    started: str | None
    job: str | None
    overrides: list[str]
    ended: bool

    def is_alive(self) -> bool | None:
        """Return whether another process still writes the folder; None if it runs where it cannot be checked."""
        if self.ended:
            return False
        if self.host != process_namespace():
            return None
        return self.pid != os.getpid() and self.started is not None and self.started == start_time(self.pid)

    def write(self, folder: Path) -> None:
        """Write the owner file of a run folder."""
        write_atomically(folder / _FILE, json.dumps(self._asdict(), indent=1, ensure_ascii=False))


class WritableFolder(HydraCallback):
    """A callback of Hydra that checks the folder of a command or of a sweep, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check the folder of the command."""
        _check_writable(Path(config.hydra.run.dir), key="hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the folder of the sweep."""
        _check_writable(Path(config.hydra.sweep.dir), key="hydra.sweep.dir")


@contextmanager
def claimed(folder: Path, overrides: Sequence[str], *, trains: bool, ckpt_path: str | None) -> Iterator[None]:
    """Take possession of a run folder while a run starts; if the start fails, leave the folder as it was, or remove it.

    Of the processes of a job, the first one owns the folder.

    Args:
        folder: run folder.
        overrides: overrides on the command line.
        trains: whether the run trains; results of an earlier test only hinder training.
        ckpt_path: checkpoint to resume or test, or None.

    Raises:
        ValueError: if another run owns the folder, or it holds a checkpoint other than the given one.
    """
    if LAUNCHER in os.environ:  # the process that has started this one owns the folder
        yield
        return
    is_first = process_rank().rank == 0
    owner = Owner(process_namespace(), os.getpid(), start_time(os.getpid()), job_id(), list(overrides), ended=False)
    file, earlier = folder / _FILE, None
    folder.mkdir(parents=True, exist_ok=True)
    is_new = not any(folder.iterdir())
    try:
        with locked_folder(folder):
            earlier = _read(file)
            if is_first or owner.job is not None:
                _check(folder, earlier, owner, is_first=is_first, trains=trains, ckpt_path=ckpt_path)
            if is_first:
                owner.write(folder)
    except BaseException:
        _remove_empty(folder)
        raise
    try:
        yield
    except BaseException:
        if is_first and is_new:
            shutil.rmtree(folder, ignore_errors=True)
        elif is_first and earlier is not None:
            earlier.write(folder)
        elif is_first:
            file.unlink(missing_ok=True)
        _remove_empty(folder)
        raise


def release(folder: Path) -> None:
    """Note in the owner file that this process has ended its run."""
    if (owner := _read(folder / _FILE)) is not None and (owner.host, owner.pid) == (process_namespace(), os.getpid()):
        owner._replace(ended=True).write(folder)


def _check_writable(folder: Path, *, key: str) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    reason = None
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{existing} cannot be written"
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a file system that only looks writable
            reason = f"it cannot be created ({error.strerror})"
    if reason is not None:
        sys.exit(f"{key}={folder}: {reason}; give another folder")


def _read(file: Path) -> Owner | None:
    if not file.is_file():
        return None
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged; delete it if no run writes into its folder") from error


def _check(
    folder: Path, earlier: Owner | None, owner: Owner, *, is_first: bool, trains: bool, ckpt_path: str | None
) -> None:
    elsewhere = "choose another folder with hydra.run.dir=… (in a sweep hydra.sweep.dir=…)"
    same_job = earlier is not None and owner.job is not None and owner.job == earlier.job
    if same_job and not is_first:
        return
    alive = earlier is not None and earlier.is_alive()
    if earlier is not None and alive:
        raise ValueError(
            f"{folder} belongs to a run that has not ended (process {earlier.pid}); wait until it ends, or {elsewhere}"
        )
    if ckpt_path is not None and Path(ckpt_path).resolve().is_relative_to(folder.resolve()):
        return
    if same_job and earlier is not None and earlier.overrides == owner.overrides and job_restarts():
        return
    if earlier is not None and alive is None:
        raise ValueError(
            f"{folder} belongs to a run of process {earlier.pid} on {earlier.host}, which cannot be checked from this "
            f"machine; delete {folder / _FILE} if that run has ended, or {elsewhere}"
        )
    if any(folder.glob("*.ckpt")) or any(folder.glob("checkpoints/*.ckpt")):
        raise ValueError(
            f"{folder} holds the checkpoints of another run; {elsewhere}, or resume that run with ckpt_path=<file>"
        )
    if trains and (folder / "results.json").exists():
        raise ValueError(f"{folder} holds the results of another run; {elsewhere}")


def _remove_empty(folder: Path) -> None:
    """Remove a folder, and those of its parents below the working directory, as far as they are empty."""
    here, first = Path.cwd(), folder.absolute()
    for path in (first, *(parent for parent in first.parents if here in parent.parents)):
        if path == here or path in here.parents:
            return
        try:
            if path.is_dir() and [entry.name for entry in path.iterdir()] == ["multirun.yaml"]:
                (path / "multirun.yaml").unlink()  # Hydra's, of a sweep of which no job has started
            if path.is_dir():
                path.rmdir()
        except OSError:
            return

"""A run folder has one owner, and a start that fails leaves the folder as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from vtm import check_data
from vtm.cli.ownership import LAUNCHER, Owner, claimed, release
from vtm.system.processes import job_id, process_namespace, start_time

NAMES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", LAUNCHER)
SLURM = ("LOCALID", "PROCID", "NTASKS", "JOB_NAME", "JOB_ID", "STEP_ID")
FREE = "choose another folder with hydra.run.dir=…"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *(f"SLURM_{name}" for name in SLURM)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "demo" / "same"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def start(folder: Path, *overrides: str, ckpt_path: Path | None = None, trains: bool = True) -> None:
    """Start a run whose files are its checkpoint and its configuration."""
    with claimed(folder, overrides, trains=trains, ckpt_path=None if ckpt_path is None else str(ckpt_path)):
        (folder / ".hydra").mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()


def own(folder: Path, **changes: object) -> None:
    """Write the owner file of another process."""
    pid = int(str(changes.get("pid", 1)))
    owner = Owner(process_namespace(), pid, start_time(pid), None, [], ended=False)
    folder.mkdir(parents=True, exist_ok=True)
    owner._replace(**changes).write(folder)


def owner_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
    return found


def test_a_folder_with_a_checkpoint_is_resumed_or_refused(folder: Path) -> None:
    start(folder, "seed=0")
    release(folder)
    assert (owner_of(folder)["pid"], owner_of(folder)["ended"]) == (os.getpid(), True)
    for trains in (True, False):
        with pytest.raises(ValueError, match=rf"same holds the checkpoints of another run; {FREE}.* ckpt_path=<file>"):
            start(folder, "seed=1", trains=trains)
    with pytest.raises(ValueError, match="holds the checkpoints"):
        start(folder, ckpt_path=folder.with_name("other") / "checkpoints" / "last.ckpt")
    assert owner_of(folder)["overrides"] == ["seed=0"]
    start(folder, "seed=0", ckpt_path=Path(os.path.relpath(folder)) / "checkpoints" / "last.ckpt")
    start(folder, "train=false", ckpt_path=folder / "checkpoints" / "last.ckpt", trains=False)


def test_a_checkpoint_of_an_earlier_version_without_an_owner_is_kept(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(ValueError, match="holds the checkpoints of another run"):
        start(folder)
    assert not (folder / "owner.json").exists()


def test_results_without_checkpoints_hinder_training_only(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").touch()
    with pytest.raises(ValueError, match="holds the results of another run"):
        start(folder)
    start(folder, trains=False, ckpt_path=folder.parent / "best.ckpt")


def test_a_process_that_runs_keeps_its_folder_and_its_end_frees_it(
    folder: Path, process: subprocess.Popen[bytes]
) -> None:
    own(folder, pid=process.pid)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for ckpt_path in (None, checkpoint):  # two processes that resume a run at the same time are two runs, too
        with pytest.raises(ValueError, match=rf"run that has not ended \(process {process.pid}\); .*, or {FREE}"):
            start(folder, ckpt_path=ckpt_path)
    process.kill()
    process.wait()
    start(folder)


def test_a_process_that_only_got_the_same_id_is_not_the_owner(folder: Path, process: subprocess.Popen[bytes]) -> None:
    own(folder, pid=process.pid, started="an earlier time")
    start(folder)


def test_a_process_that_has_ended_and_is_not_awaited_is_not_alive(
    folder: Path, process: subprocess.Popen[bytes]
) -> None:
    own(folder, pid=process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    start(folder)


def test_an_owner_on_another_machine_counts_as_running_until_it_has_ended(folder: Path) -> None:
    own(folder, host="node7", pid=12)
    with pytest.raises(ValueError, match=r"process 12 on node7, which cannot be checked .*; delete .*owner\.json if"):
        start(folder)
    own(folder, host="node7", pid=12, ended=True)
    start(folder)
    own(folder, host="node7", pid=12)  # the machine has failed, and the run is resumed on this one
    start(folder, ckpt_path=folder / "checkpoints" / "last.ckpt")


def test_a_requeued_job_starts_again_in_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    start(folder, "seed=0")
    own(folder, host="node7", job=job_id(), overrides=["seed=0"])
    start(folder, "seed=0")
    with pytest.raises(ValueError, match="holds the checkpoints"):
        start(folder, "seed=1")  # another command of the same job
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    with pytest.raises(ValueError, match="holds the checkpoints"):
        start(folder, "seed=0")


def test_the_processes_of_a_job_share_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b")
    own(folder, pid=process.pid, job="torchrun-a_b", overrides=["seed=0"])  # the first process of the job
    monkeypatch.setenv("RANK", "1")
    start(folder, "seed=0")
    assert owner_of(folder)["pid"] == process.pid
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "c")
    with pytest.raises(ValueError, match="has not ended"):
        start(folder, "seed=0")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b")
    own(folder, job="torchrun-a_b", overrides=["seed=0"], ended=True)
    with pytest.raises(ValueError, match="holds the checkpoints"):
        start(folder, "seed=0")  # the id of a run of torchrun may be given again
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start(folder, "seed=0")


def test_processes_that_a_run_has_started_use_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(folder, pid=os.getppid())
    monkeypatch.setenv(LAUNCHER, "7")
    start(folder)
    assert owner_of(folder)["pid"] == os.getppid()


def fail(folder: Path) -> None:
    def start() -> None:
        with claimed(folder, [], trains=True, ckpt_path=None):
            (folder / "wandb").mkdir()
            sys.exit("a mistake")

    with pytest.raises(SystemExit):
        start()


def test_a_start_that_fails_leaves_no_folder(folder: Path) -> None:
    fail(folder)
    assert list(Path.cwd().iterdir()) == []
    sweep = Path("runs/demo/sweep")
    sweep.mkdir(parents=True)
    (sweep / "multirun.yaml").touch()
    fail(sweep / "0")
    assert list(Path.cwd().iterdir()) == []


def test_a_start_that_fails_leaves_what_was_there(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    fail(folder)
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "wandb"}
    (folder / "wandb").rmdir()
    own(folder, host="node7", ended=True)
    before = owner_of(folder)
    fail(folder)
    assert owner_of(folder) == before


def test_a_damaged_owner_file_is_named(folder: Path) -> None:
    folder.mkdir(parents=True)
    for text in ("{", "[]", '{"pid": 3}'):
        (folder / "owner.json").write_text(text)
        with pytest.raises(ValueError, match=r"owner\.json is damaged; delete it if no run writes into its folder"):
            start(folder)


def test_the_folder_of_a_run_is_released_when_it_ends(folder: Path, process: subprocess.Popen[bytes]) -> None:
    own(folder, pid=process.pid)
    release(folder)  # it belongs to another process
    assert owner_of(folder)["ended"] is False


def test_a_refused_command_leaves_nothing(tmp_path: Path, call) -> None:
    for mode in ([], ["-m", "seed=0,1"]):
        with pytest.raises(SystemExit, match="The folder data/lvu is missing"):
            call(train.main, tmp_path, *mode, "experiment=lvu_scene", "trainer=cpu")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.run.dir=file"], "hydra.run.dir=file: .*file is not a folder; give another folder"),
        (["hydra.run.dir=file/below"], "hydra.run.dir=file/below: .*file is not a folder"),
        (["-m", "hydra.sweep.dir=file", "seed=0,1"], "hydra.sweep.dir=file: .*file is not a folder"),
        (["hydra.run.dir=/proc/vtm"], r"hydra.run.dir=/proc/vtm: (it cannot be created \(|/proc cannot be written)"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, call, overrides, message) -> None:
    (tmp_path / "file").touch()
    for main in (train.main, check_data.main):
        with pytest.raises(SystemExit, match=message):
            call(main, tmp_path, "experiment=needle", *overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_on_a_read_only_disk_is_refused(tmp_path: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(SystemExit, match=f"hydra.run.dir={tmp_path}/run: {tmp_path} cannot be written; give another"):
        call(train.main, tmp_path, "experiment=needle", f"hydra.run.dir={tmp_path}/run")

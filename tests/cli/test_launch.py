"""The folder and the processes of a job, and how an interrupted one resumes."""

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from vtm.cli.errors import concise_errors
from vtm.cli.launch import filter_warnings, processes_to_start, resumable, run_folder, start_processes
from vtm.system.processes import start_time


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME")
    for name in (*names, "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def trainer(**options):
    return OmegaConf.create({"strategy": "ddp", "devices": 2, **options})


def test_one_device_runs_in_this_process():
    assert processes_to_start(OmegaConf.create({"devices": 1})) == 1


@pytest.mark.parametrize(("devices", "count"), [(2, 2), ("3", 3), ([0, 2, 5], 3)])
def test_ddp_needs_a_process_per_device(devices, count):
    assert processes_to_start(trainer(devices=devices)) == count


@pytest.mark.parametrize(("found", "count"), [(0, 1), (8, 8)])
def test_auto_counts_the_gpus(monkeypatch, found, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    assert processes_to_start(trainer(devices="auto")) == count


def test_under_torchrun_or_slurm_nothing_is_started(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes_to_start(trainer()) == 1
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert processes_to_start(trainer()) == 1


def test_several_nodes_need_a_launcher():
    with pytest.raises(ValueError, match=r"trainer\.num_nodes = 2 needs torchrun or srun"):
        processes_to_start(trainer(num_nodes=2))


@pytest.mark.parametrize("options", [{"accelerator": "cpu", "devices": 3}, {"devices": [0, 1]}, {"devices": "2"}])
def test_several_devices_need_a_process_each(options):
    with pytest.raises(ValueError, match=r"trainer\.devices = .* needs a process per device: add trainer=ddp"):
        processes_to_start(OmegaConf.create(options))


def test_the_processes_of_a_job_find_one_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b c")
    assert run_folder("demo", train=True, ckpt_path=None).startswith("runs/demo/2")  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_folder("demo", train=True, ckpt_path=None) == "runs/demo/torchrun-a_b_c"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert run_folder("demo", train=True, ckpt_path=None) == "runs/demo/slurm-17"


def test_a_resumed_run_goes_on_in_its_folder_and_others_get_a_new_one(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"vtm": {}}, checkpoint)
    assert run_folder("demo", train=True, ckpt_path=str(checkpoint)).startswith("runs/demo/2")  # not in a run folder
    (tmp_path / ".hydra").mkdir()
    assert run_folder("demo", train=True, ckpt_path=str(checkpoint)) == str(tmp_path)
    assert run_folder("demo", train=False, ckpt_path=str(checkpoint)).startswith("runs/demo/2")
    assert run_folder("demo", train=True, ckpt_path=None).startswith("runs/demo/2")


def test_nothing_to_train_and_nothing_to_test_is_a_mistake():
    with pytest.raises(ValueError, match="train=false needs ckpt_path"):
        run_folder("demo", train=False, ckpt_path=None)


@pytest.mark.parametrize("found", [False, True])
def test_a_gpu_that_is_not_there_is_refused_at_once(monkeypatch, found):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: found)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2 * found)
    if found:
        assert processes_to_start(trainer(accelerator="gpu", devices="auto")) == 2
    else:
        with pytest.raises(ValueError, match=r"torch finds no GPU here; use trainer=cpu, or trainer=ddp_cpu"):
            processes_to_start(trainer(accelerator="gpu", devices="auto"))


def by_a_key():
    raise KeyboardInterrupt


def by_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("expected to be terminated")


def by_sigterm_in_lightning():
    raise SIGTERMException


def by_sigterm_to_a_loading_process():
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")


def by_lightning():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def interrupted(folder, overrides, interrupt=by_a_key):
    with pytest.raises(SystemExit) as status, concise_errors(), resumable("demo", overrides, folder):
        interrupt()
    return status.value.code


def test_what_goes_wrong_in_an_interruption_is_said_too(tmp_path, capsys):
    def by_a_key_on_a_full_disk():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise OSError(28, "No space left on device", "last.ckpt")  # noqa: B904

    assert interrupted(tmp_path, [], by_a_key_on_a_full_disk) == 130
    first, last = capsys.readouterr().err.splitlines()
    assert "No space left on device" in first
    assert last.startswith("interrupted before the first epoch finished")


def test_the_first_process_under_slurm_speaks_for_all(tmp_path, monkeypatch, capsys):
    for rank, lines in (("0", 2), ("1", 0)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        assert interrupted(tmp_path, []) == 130
        said = capsys.readouterr()
        assert len((said.out + said.err).splitlines()) == lines


@pytest.mark.parametrize(
    ("interrupt", "status"),
    [
        (by_a_key, 130),
        (by_lightning, 130),
        (by_sigterm, 143),
        (by_sigterm_in_lightning, 143),
        (by_sigterm_to_a_loading_process, 143),
    ],
)
def test_an_interrupted_run_says_how_it_goes_on(tmp_path, monkeypatch, capsys, interrupt, status):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    folder = tmp_path / "a run"
    (folder / "checkpoints").mkdir(parents=True)
    assert interrupted(folder, ["seed=1"], interrupt) == status
    said = capsys.readouterr()
    assert said.out == "experiment demo, in the folder a run\n"
    assert said.err.startswith("interrupted before the first epoch finished, so nothing was saved")
    (folder / "checkpoints" / "last.ckpt").touch()
    overrides = ["model.channels=[8,8]", "ckpt_path=old.ckpt", "seed=1"]
    assert interrupted(folder, overrides, interrupt) == status
    assert capsys.readouterr().err == (
        "interrupted; to continue after the last finished epoch: "
        "python train.py 'model.channels=[8,8]' seed=1 'ckpt_path=a run/checkpoints/last.ckpt'\n"
    )


def test_processes_that_another_one_started_leave_that_to_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert interrupted(tmp_path, []) == 130
    assert capsys.readouterr() == ("", "")


def test_other_ends_of_a_run_stay_as_they_are(tmp_path):
    with pytest.raises(SystemExit, match="why"), resumable("demo", [], tmp_path):
        sys.exit("why")
    with pytest.raises(ZeroDivisionError), resumable("demo", [], tmp_path):
        _ = 1 / 0


def test_without_overrides_it_is_said_where_the_other_experiments_are_listed(tmp_path, capsys):
    with resumable("demo", [], tmp_path):
        pass
    assert capsys.readouterr().out.startswith("experiment demo (--help lists the other experiments), in the folder ")


def test_useless_advice_of_libraries_is_hidden():
    with warnings.catch_warnings(record=True) as shown, filter_warnings(resumes=False):
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
        warnings.warn("This DataLoader will create 4 worker processes in total. Our suggested max", stacklevel=1)
        assert not shown
        with warnings.catch_warnings(record=True) as kept:
            warnings.warn("a video is damaged", stacklevel=1)
        assert len(kept) == 1


@pytest.mark.parametrize("resumes", [False, True])
def test_checkpoints_that_are_there_are_news_but_to_a_run_that_is_resumed(resumes):
    with warnings.catch_warnings(record=True) as shown, filter_warnings(resumes=resumes):
        warnings.warn("Checkpoint directory /runs/x/checkpoints exists and is not empty.", stacklevel=1)
    assert len(shown) == (not resumes)


TELLS = """
import os, pathlib, sys
folder, rank = pathlib.Path(sys.argv[2]).parent, os.environ["RANK"]
(folder / rank).write_text(" ".join(sys.argv[1:]))
while rank == "1" and not ((folder / "0").exists() and (folder / "0").read_text()):
    pass  # until the other one has told, too
sys.exit(3 if rank == "1" else 0)
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A run of two processes that write down what they are told, of which one fails: its folder, and the error."""
    folder = tmp_path_factory.mktemp("run") / 'a "quoted", folder=1'
    folder.mkdir()
    script = folder.with_name("tells.py")
    script.write_text(TELLS)
    with pytest.raises(RuntimeError) as error:
        start_processes(2, script, folder)
    return folder, str(error.value)


def test_a_failing_process_fails_the_run(failed):
    folder, error = failed
    assert error.startswith(f"one of the 2 processes of the run in {folder} failed")


def test_every_process_is_told_the_configuration_and_the_folder(failed):
    told = [(failed[0] / rank).read_text() for rank in "01"]
    assert told[0] == told[1]
    assert "--config-name config" in told[0]
    assert r'hydra.run.dir="' in told[0]


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_an_interruption_ends_all_processes_without_a_traceback(tmp_path, sent):
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background\n"
    (tmp_path / "waits.py").write_text(
        f"import os, signal, sys\n{heard}try:\n"
        "    os.write(1, b'ready\\n')  # in one call, unlike print\n    signal.pause()\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    (tmp_path / "starts.py").write_text(
        f"import pathlib, signal, sys, vtm.cli.errors, vtm.cli.launch\n{heard}folder = pathlib.Path(sys.argv[1])\n"
        "with vtm.cli.errors.concise_errors():\n"
        "    try: vtm.cli.launch.start_processes(2, folder / 'waits.py', folder)\n"
        "    except (KeyboardInterrupt, SystemExit): print('interrupted')"
    )
    command = [sys.executable, str(tmp_path / "starts.py"), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    try:
        ready = [process.stdout.readline() for _ in range(2)]
        if sent == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            process.terminate()  # and not its children
        said, complained = process.communicate(timeout=600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (ready, said) == (["ready\n", "ready\n"], "interrupted\n"), complained
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert "Traceback" not in complained


def test_sigkill_of_a_run_ends_all_its_processes(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import os, signal\nfrom vtm.cli.launch import end_with_launcher\nend_with_launcher()\n"
        "os.write(1, b'%d\\n%d\\n' % (os.getpid(), os.getppid()))\nsignal.pause()"
    )
    (tmp_path / "starts.py").write_text(
        "import pathlib, sys, vtm.cli.launch\nfolder = pathlib.Path(sys.argv[1])\n"
        "vtm.cli.launch.start_processes(2, folder / 'waits.py', folder)"
    )
    command = [sys.executable, str(tmp_path / "starts.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        pids = {int(process.stdout.readline()) for _ in range(4)}  # of the two processes and torchrun
        assert len(pids) == 3
        process.kill()
    deadline = time.monotonic() + 120
    while (alive := [pid for pid in pids if start_time(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def test_a_failing_process_prints_no_table_of_torchrun(tmp_path):
    (tmp_path / "fails.py").write_text("import sys\nsys.exit('why')")
    (tmp_path / "starts.py").write_text(
        "import pathlib, sys, vtm.cli.errors, vtm.cli.launch\nfolder = pathlib.Path(sys.argv[1])\n"
        "with vtm.cli.errors.concise_errors(): vtm.cli.launch.start_processes(1, folder / 'fails.py', folder)"
    )
    command = [sys.executable, str(tmp_path / "starts.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "why", f"one of the 1 processes of the run in {tmp_path} failed; its error is printed above"
    ]  # fmt: skip

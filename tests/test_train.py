"""The command `train.py`, as a user calls it: one run, resuming, sweeps, several processes, mistakes.

A new process imports for seconds, so a test starts one only where it needs one: for kills, signals, ranks, launchers.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import train

ROOT = Path(__file__).parents[1]
TINY = [
    "experiment=demo", "data.num_train=8", "data.num_val=5", "data.num_test=7", "data.scene.seconds=4",
    "data.scene.height=48", "data.scene.width=48", "data.scene.object_size=16", "data.protocol.num_frames=4",
    "data.num_workers=0", "data.batch_size=4", "encoder.image_size=32", "encoder.model_args.depth=1",
    "model.window_frames=[2,4]", "model.channels=[8,8]", "trainer.max_epochs=2", "trainer.log_every_n_steps=1",
    "scheduler.warmup_epochs=0",
]  # fmt: skip
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"OMP_NUM_THREADS": "1"}
ENVIRONMENT["PYTHONFAULTHANDLER"] = "1"  # for `output_of`

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    """The tiny demonstration set, written by the first run that needs it."""
    return f"data.root={tmp_path_factory.mktemp('data') / 'demo'}"


def start(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """Run train.py in a temporary folder, which its runs/ go to."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    # this process ignores SIGINT if an earlier test interrupted Lightning, or if a shell started it in the background
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, cwd=cwd, text=True, env=ENVIRONMENT, start_new_session=True, preexec_fn=heard, **pipes
    )


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process; if it hangs, fail with its output and the stack of its threads."""
    try:
        return process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"does not end: {process.communicate()[0]}")


def run(cwd: Path, *overrides: str, succeeds: bool = True) -> str:
    process = start(cwd, *overrides)
    output = output_of(process)
    assert (process.returncode == 0) == succeeds, output
    return output


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, root) -> tuple[Path, str]:
    """The folder of one run of two epochs, and its output."""
    cwd = tmp_path_factory.mktemp("whole")
    output = run(cwd, *TINY, root)
    (folder,) = (cwd / "runs" / "demo").iterdir()
    return folder, output


def test_a_run_leaves_its_config_checkpoints_metrics_and_results(whole):
    folder, _ = whole
    assert {"results.json", "metrics.csv", "checkpoints", ".hydra", "wandb"} <= {path.name for path in folder.iterdir()}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    found = results(folder)
    assert (found["test"]["n"], found["val"]["n"], found["test"]["missing"]) == (7, 5, 0)
    assert (found["test"]["checkpoint"], found["test_last"]["checkpoint"]) == ("best", "last")
    assert found["config"]["data"]["num_train"] == 8
    assert {path.name for path in folder.glob("confusion*")} == {"confusion.csv", "confusion.pdf", "confusion.png"}
    for name, stage in (("predictions.csv", "test"), ("predictions_last.csv", "test_last")):
        rows = list(csv.DictReader((folder / name).open(encoding="utf-8")))
        right = [row["target"] == row["prediction"] for row in rows]
        assert sum(right) / 7 == pytest.approx(found[stage]["value"])
        assert sum(score["n"] for score in found[stage]["per_class"].values()) == len(rows) == 7
    rows = list(csv.DictReader((folder / "metrics.csv").open(encoding="utf-8")))
    assert {"train/loss", "train/aux", "val/accuracy"} <= set(rows[0])
    assert "test/accuracy" not in rows[0]
    assert [row["epoch"] for row in rows if row["val/accuracy"]] == ["0", "1"]
    tests = list(csv.DictReader((folder / "tests.csv").open(encoding="utf-8")))
    assert {"val/accuracy", "test/accuracy"} <= set(tests[0])
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["vtm"]["config"]["name"] == "demo"


def test_without_an_account_wandb_goes_offline_and_says_so_once(whole):
    folder, output = whole
    assert output.count("is logged offline in") == 1
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_progress_is_shown_in_a_log_file(whole):
    folder, output = whole
    assert f"experiment demo, in the folder runs/demo/{folder.name}" in output
    assert "epoch 2" in output
    assert "val/accuracy" in output
    assert "INFO" not in output
    assert "Warning" not in output
    assert "epoch 2" in (folder / "train.log").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(call, tmp_path, root, workers):
    overrides = [*TINY, root, f"data.num_workers={workers}", "trainer.max_epochs=4", "logger=csv", "model.dropout=0.3"]
    call(train.main, tmp_path, *overrides, f"hydra.run.dir={tmp_path / 'whole'}")
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    process = start(tmp_path, *overrides, f"hydra.run.dir={folder}", "+trainer.limit_val_batches=1.0")
    deadline = time.monotonic() + 300
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert torch.load(last, weights_only=True)["epoch"] < 3, "the run ended before it was killed"
    call(train.main, tmp_path, *overrides, f"ckpt_path={last}")
    expected, found = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "killed")
    )
    assert found["epoch"] == expected["epoch"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    ours, theirs = results(folder)["test_last"], results(tmp_path / "whole")["test_last"]
    del ours["cost"], theirs["cost"]
    assert ours == theirs
    assert (folder / "metrics.1.csv").exists()
    with (folder / "metrics.csv").open(newline="") as file:
        validated = [row["epoch"] for row in csv.DictReader(file) if row["val/loss"]]
    assert validated == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_prints_how_to_resume(tmp_path, root, sent, status):
    folder = tmp_path / "stopped"
    process = start(tmp_path, *TINY, root, "logger=csv", "trainer.max_epochs=9999", f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    output = output_of(process)
    assert process.returncode == status, output
    *_, last = output.splitlines()
    assert last.startswith("interrupted; to continue after the last finished epoch: python ")
    assert last.endswith(f"{root} logger=csv trainer.max_epochs=9999 ckpt_path=stopped/checkpoints/last.ckpt")
    assert "Traceback" not in output


def test_two_processes_give_the_metrics_of_one(whole, call, tmp_path, root):
    folder, _ = whole
    tested = [*TINY, root, "train=false", f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'}", "logger=csv"]
    for name in ("cpu", "ddp_cpu"):
        call(train.main, tmp_path, *tested, f"trainer={name}", f"hydra.run.dir={tmp_path / name}")
    one, two = results(tmp_path / "cpu"), results(tmp_path / "ddp_cpu")
    assert two["test"]["n"] == 7
    for stage in ("val", "test"):
        del one[stage]["cost"], two[stage]["cost"]
        assert two[stage].pop("clip_level") == pytest.approx(one[stage].pop("clip_level"))
        assert two[stage] == one[stage]
    rows = [list(csv.reader((tmp_path / name / "predictions.csv").open())) for name in ("cpu", "ddp_cpu")]
    for alone, together in zip(*rows, strict=True):
        assert together[:3] == alone[:3]
        if alone[0] != "id":
            assert list(map(float, together[3:])) == pytest.approx(list(map(float, alone[3:])), abs=1e-5)


def test_a_sweep_on_two_processes_trains_all_jobs_in_one_folder(call, tmp_path, root):
    sweep = ["merging.partition_factor=2,6", "trainer=ddp_cpu", "logger=csv", "trainer.max_epochs=1"]
    call(train.main, tmp_path, "-m", *TINY, root, *sweep)
    (tree,) = (tmp_path / "runs" / "demo").iterdir()
    assert sorted(path.name for path in tree.iterdir() if path.is_dir()) == ["0", "1"]
    for job, factor in (("0", 2), ("1", 6)):
        found = results(tree / job)
        assert found["config"]["merging"]["partition_factor"] == factor
        assert found["test"]["n"] == 7
        assert torch.load(tree / job / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_launcher_runs_the_jobs_of_a_sweep_in_separate_processes(tmp_path, root):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "logger=csv", "trainer.max_epochs=1"]
    run(tmp_path, "-m", *TINY, root, "merging.partition_factor=2,6", *launcher)
    (tree,) = (tmp_path / "runs" / "demo").iterdir()
    assert [results(tree / job)["config"]["merging"]["partition_factor"] for job in ("0", "1")] == [2, 6]


def test_fine_tuning_starts_from_a_checkpoint(whole, call, tmp_path, root):
    folder, _ = whole
    call(train.main, tmp_path, *TINY, root, "logger=csv", f"finetune_from={folder / 'checkpoints' / 'best.ckpt'}")


def test_early_stopping_by_override(call, tmp_path, root):
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=30", "logger=csv"]
    call(train.main, tmp_path, *TINY, root, *stop, "optimizer.lr=0.0")
    (folder,) = (tmp_path / "runs" / "demo").iterdir()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] < 29


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=lvu_like"], "The folder data/lvu is missing; data/README.md"),
        (["experiment=lvu_scene", "trainer=ddp_cpu"], "The folder data/lvu is missing"),
        (["experiment=coin"], "The folder data/coin is missing"),
        (["experiment=breakfast"], "The folder data/breakfast is missing"),
    ],
)
def test_missing_data_gets_one_sentence_that_helps(call, tmp_path, capfd, overrides, message):
    """See test_first_contact.py for other mistakes."""
    with pytest.raises(SystemExit) as stop:
        call(train.main, tmp_path, *overrides)
    assert isinstance(stop.value.code, str)  # which Python prints, and the status is 1
    assert message in stop.value.code
    assert "Traceback" not in "".join(capfd.readouterr()) + stop.value.code


def test_a_process_that_was_given_a_mistake_prints_the_sentence_and_fails(tmp_path):
    output = run(tmp_path, "experiment=demo", "merging.partition_facto=4", succeeds=False)
    assert "did you mean 'merging.partition_factor'?" in output
    assert "Traceback" not in output


def test_a_checkpoint_of_other_settings_is_refused(whole, call, tmp_path, root):
    other = [f"ckpt_path={whole[0] / 'checkpoints' / 'best.ckpt'}", "train=false", "merging.partition_factor=2"]
    with pytest.raises(
        SystemExit, match=r"the checkpoint was trained with merging\.partition_factor = 6, but this run has 2"
    ):
        call(train.main, tmp_path, *TINY, root, *other, "logger=csv")


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path, whole, root, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    monkeypatch.delitem(ENVIRONMENT, "OMP_NUM_THREADS")
    output = run(tmp_path, *TINY, root, f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    assert output.count("threads: 1 (as in the run so far)") == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("merging.partition_factor=2", "a run is resumed with the settings it had"),
        ("callbacks.pictures.every_epochs=0", "expected every_epochs of at least 1, got 0"),
        ("trainer.precision=foo", "Precision 'foo' is invalid"),
    ],
)
def test_a_refused_resume_leaves_the_measurements_of_the_run(call, tmp_path, whole, root, setting, said):
    shutil.copytree(whole[0], tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    given = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    with pytest.raises(SystemExit, match=said):
        call(train.main, tmp_path, *TINY, root, f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", setting)
    assert {path.name for path in (tmp_path / "run").iterdir()} == before  # no further metrics.csv
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text() == given
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1

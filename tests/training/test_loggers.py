"""The CSV file of a run, TensorBoard, and W&B with and without an account and a network."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.utilities import rank_zero_only

from vtm.training.loggers import (
    closing_wandb,
    csv_logger,
    finish_wandb,
    log_configuration,
    log_tests_apart,
    tensorboard_logger,
    wandb_logger,
)


def save_checkpoint(path: Path, steps: int) -> None:
    facts = {"format": 2, "encoder": "none", "classes": None, "config": {}}
    torch.save({"vtm": facts, "epoch": 0, "global_step": steps, "state_dict": {}}, path)


def test_the_csv_of_a_resumed_run_keeps_earlier_rows(tmp_path: Path) -> None:
    for loss in (1.0, 2.0, 3.0):
        logger = csv_logger(save_dir=tmp_path)
        logger.log_metrics({"loss": loss}, step=0)
        logger.save()
    names = ("metrics.1.csv", "metrics.2.csv", "metrics.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [(tmp_path / name).read_text().split() for name in names] == [
        ["loss,step", f"{loss},0"] for loss in (1.0, 2.0, 3.0)
    ]


def test_the_csv_of_a_resumed_run_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    before = "epoch,step,test/loss,val/loss\r\n0,0,,4.0\r\n,1,,\r\n0,1,,3.0\r\n"
    after = "1,2,,2.5\r\n1,3,,2.0\r\n1,2,9.0,\r\n2"  # the test is of an earlier epoch; then the run was killed
    checkpoints = {"first.ckpt": 2, "second.ckpt": 4}
    for name, steps in checkpoints.items():
        save_checkpoint(tmp_path / name, steps)
    path.write_text(before + after, newline="")
    csv_logger(save_dir=tmp_path, ckpt_path=tmp_path / "first.ckpt")  # interrupted immediately
    logger = csv_logger(save_dir=tmp_path, ckpt_path=tmp_path / "first.ckpt")
    logger.log_metrics({"val/loss": 1.0, "new": 5.0}, step=2)
    logger.save()
    assert [row.split(",") for row in path.read_text().split()] == [
        ["epoch", "new", "step", "test/loss", "val/loss"],
        ["0", "", "0", "", "4.0"],
        ["", "", "1", "", ""],
        ["0", "", "1", "", "3.0"],
        ["", "5.0", "2", "", "1.0"],
    ]
    assert (tmp_path / "metrics.1.csv").read_text() == (before + after).replace("\r", "")  # nothing is lost
    path.write_text(before + after, newline="")
    csv_logger(save_dir=tmp_path, ckpt_path=tmp_path / "second.ckpt")
    assert path.read_text() == (before + "1,2,,2.5\r\n1,3,,2.0\r\n").replace("\r", "")


def test_tests_are_logged_apart_from_epochs(tmp_path: Path) -> None:
    for number in range(2):
        logger = csv_logger(save_dir=tmp_path)
        logger.log_metrics({"val/loss": 1.0}, step=0)
        log_tests_apart([logger])
        for metrics in ({"val/loss": 2.0}, {"test/loss": 3.0}):
            logger.log_metrics(metrics, step=1)
            logger.save()
        assert (tmp_path / "metrics.csv").read_text().split() == ["step,val/loss", "0,1.0"]
        assert (tmp_path / "tests.csv").read_text().split() == ["step,test/loss,val/loss", "1,,2.0", "1,3.0,"]
        assert (tmp_path / "tests.1.csv").exists() == bool(number)


def test_tensorboard_shows_a_resumed_run_without_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    save_checkpoint(tmp_path / "last.ckpt", 2)
    for ckpt_path, losses in ((None, {0: 4.0, 1: 3.0, 2: 9.0, 3: 9.0}), (tmp_path / "last.ckpt", {2: 2.0})):
        logger = tensorboard_logger(save_dir=tmp_path / "run", ckpt_path=ckpt_path)
        for step, loss in losses.items():
            logger.log_metrics({"loss": loss}, step=step)
        logger.finalize("success")
    logger.log_metrics({"loss": 1.0}, step=4)  # the validation that follows the training starts another file
    logger.finalize("success")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(0, 4.0), (1, 3.0), (2, 2.0), (4, 1.0)]


def test_without_tensorboard_the_message_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"logger=tensorboard needs .*; run pip install tensorboard, or use l"
    ):
        tensorboard_logger(save_dir=tmp_path)
    assert not list(tmp_path.iterdir())


CONFIG = {"name": "needle", "optimizer": {"lr": 0.1}, "model": {"channels": [8, 8]}, "ckpt_path": None, "train": True}


def test_tensorboard_gets_the_configuration_beside_the_score(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    logger = tensorboard_logger(save_dir=tmp_path)
    log_configuration([logger, csv_logger(save_dir=tmp_path)], CONFIG)
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    data = plugin_data_pb2.HParamsPluginData()
    data.ParseFromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    found = dict(data.session_start_info.hparams)
    assert set(found) == {"name", "optimizer.lr", "model.channels", "ckpt_path", "train"}
    assert (found["optimizer.lr"].number_value, found["model.channels"].string_value) == (0.1, "[8, 8]")
    assert found["train"].number_value == 1
    assert events.Tags()["scalars"] == []
    assert not (tmp_path / "hparams.yaml").exists()


@pytest.fixture
def no_wandb_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # an address where no server answers
    wandb.teardown()  # it keeps the settings of the runs before, if there were any
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_wandb_account")
def test_without_a_key_every_job_is_an_offline_run_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    versions = []
    for job in ("a", "b"):
        logger = wandb_logger(project="p", save_dir=tmp_path / job)
        log_configuration([logger], CONFIG)
        assert logger.experiment.config.as_dict() == CONFIG  # nested
        logger.log_metrics({"loss": 1.0}, step=3)
        versions.append(logger.version)
    finish_wandb()
    assert wandb.run is None
    said, complained = capfd.readouterr()
    for job, sentence, version in zip(("a", "b"), said.splitlines(), versions, strict=True):
        (folder,) = (tmp_path / job / "wandb").glob("offline-run-*")
        assert folder.name.endswith(version)
        assert sentence == (
            f"W&B: no API key was found, so this run is logged offline in {folder}; "
            f"to upload it, run `wandb login` and then `wandb sync {folder}`."
        )
    assert "wandb" not in complained


class Run:
    """A stand-in for the run that `wandb.init` returns."""

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder / "files")

    def define_metric(self, *_: object, **__: object) -> None: ...


@pytest.mark.usefixtures("no_wandb_account")
def test_a_server_that_does_not_answer_means_offline_unless_online_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        if arguments.get("mode") != "offline":
            raise wandb.errors.CommError("timed out\nmore")
        return Run(tmp_path)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb_logger(project="p", save_dir=tmp_path / "new", name="n", tags=["t"])
    assert [call.get("mode") for call in calls] == [None, "offline"]
    assert all((call["name"], call["tags"], call["dir"]) == ("n", ["t"], str(tmp_path / "new")) for call in calls)
    assert calls[0]["settings"].init_timeout == 10
    assert capsys.readouterr().out.startswith("W&B: the server did not accept the run (timed out), so this run is ")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(
        RuntimeError, match=r"WANDB_MODE=online asks for \(timed out\); run `wandb login`, .*logger=csv"
    ):
        wandb_logger(project="p", save_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb_account")
def test_a_key_without_a_network_falls_back_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    script = (
        "import sys; from vtm.training import loggers as l; "
        "l.wandb_logger(project='p', save_dir=sys.argv[1], init_timeout=1); l.finish_wandb()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, timeout=80)
    assert "so this run is logged offline in" in done.stdout


def test_other_ranks_start_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = wandb_logger(project="p", save_dir=tmp_path / "run")
    assert logger.version is None
    assert not (tmp_path / "run").exists()


def test_the_run_of_a_command_that_fails_is_marked_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []
    monkeypatch.setattr("vtm.training.loggers.finish_wandb", lambda *, exit_code=0: codes.append(exit_code))
    with closing_wandb():
        pass
    with pytest.raises(SystemExit), closing_wandb():
        sys.exit("why")
    assert codes == [0, 1]

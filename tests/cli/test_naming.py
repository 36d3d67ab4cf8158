"""A run of a sweep is named by what the sweep varies."""

import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vtm.cli.naming import name_run


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Set the state of Hydra in a job with overrides, and return the configuration of its loggers after naming."""

    def configured(job: list[str], *, mode: str, params: dict[str, str] | None = None, **wandb: str) -> DictConfig:
        sweep = {"dir": str(tmp_path / "2026-01-01")}
        hydra = {"mode": RunMode[mode], "overrides": {"task": job}, "sweep": sweep, "sweeper": {"params": params}}
        monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
        loggers = {"csv": {"save_dir": "x"}, "wandb": {"name": "${name}", "group": None, **wandb}}
        config = OmegaConf.create({"name": "needle", "logger": loggers})
        OmegaConf.set_struct(config, True)
        name_run(config)
        assert config.logger.csv == {"save_dir": "x"}
        return config.logger.wandb

    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "experiment=needle", "merging=none,center", "seed=range(2)"])
    return configured


JOB = ["experiment=needle", "merging=center", "seed=1"]


def test_a_job_of_a_sweep_is_named_and_grouped(configured) -> None:
    assert configured(JOB, mode="MULTIRUN") == {"name": "needle merging=center seed=1", "group": "needle 2026-01-01"}


def test_parameters_in_the_configuration_of_the_sweeper_count(configured, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m"])
    assert configured(JOB, mode="MULTIRUN", params={"seed": "range(2)"}).name == "needle seed=1"


def test_a_job_in_a_process_of_a_launcher_reads_the_file_of_the_sweep(configured, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["worker"])
    (tmp_path / "2026-01-01").mkdir()
    sweep = OmegaConf.create({"hydra": {"overrides": {"task": ["experiment=needle", "seed=0,1"]}}})
    OmegaConf.save(sweep, tmp_path / "2026-01-01" / "multirun.yaml")
    assert configured(JOB, mode="MULTIRUN").name == "needle seed=1"


def test_a_single_run_is_named_by_its_experiment(configured) -> None:
    assert configured(JOB, mode="RUN") == {"name": "needle", "group": None}


def test_a_run_of_a_sweep_of_wandb_is_named_by_its_overrides(configured, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    assert configured(["experiment=needle", "optimizer.lr=0.002"], mode="RUN").name == "needle optimizer.lr=0.002"


def test_a_name_of_ones_own_stays_and_a_long_one_is_cut(configured) -> None:
    kept = {"name": "mine", "group": "ours"}
    assert configured(JOB, mode="MULTIRUN", **kept) == kept
    assert len(configured([*JOB[:2], f"seed={'1' * 200}"], mode="MULTIRUN").name) == 128

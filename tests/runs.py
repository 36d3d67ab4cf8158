"""Handwritten run folders for the tests of reports."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIGS: dict[str, dict[str, Any]] = {
    "none": {"_target_": "vtm.merging.NoMerger"},
    "uniform": {
        "_target_": "vtm.merging.TokenMerger",
        "partition": {"_target_": "vtm.merging.uniform_partition"},
        "partition_factor": 6,
    },
    "center": {
        "_target_": "vtm.merging.TokenMerger",
        "partition": {"_target_": "vtm.merging.center_partition"},
        "partition_factor": 6,
    },
}


def evaluation(value: float, **changes: Any) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "value": value,
        "interval": [value - 0.1, value + 0.1],
        "n": 40,
        "floor": 0.125,
        "missing": 0,
        "ids_sha256": "0123456789abcdef" * 4,
        "selection": "val",
        "checkpoint": "best",
        "epoch": 3,
        "cost": {
            "device": "a card", "inputs": "features", "batch_size": 16, "clips_per_second": 200.0, "peak_gb": 0.5,
            "tokens": [400, 200, 100],
        },
        **changes,
    }  # fmt: skip


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a run, below `tmp_path / "runs"`, and return it."""

    def write_run(
        name: str,
        value: float,
        *,
        merging: str = "uniform",
        seed: int = 0,
        overrides: list[str] | None = None,
        composed: bool = True,
        config: dict[str, Any] | None = None,
        test: dict[str, Any] | None = None,
        val: dict[str, Any] | None = None,
        **facts: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
        merger = CONFIGS[merging]
        found = {
            "experiment": "needle",
            "task": "classification",
            "seed": seed,
            "commit": "0123456",
            "config": {
                "seed": seed, "train": True, "ckpt_path": None, "run_dir": str(folder), "motion": False,
                "data": {"root": "data", "seed": seed}, "merging": merger, "model": {"merge_layer": merger},
                "callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}}, "optimizer": {"lr": 0.001},
                **(config or {}),
            },
            "published": {"figures": {}},
            "val": evaluation(value + 0.05, **{"ids_sha256": "f" * 64, **(val or {})}),
            "test": evaluation(value, **(test or {})),
            **facts,
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
        if composed:
            given = overrides if overrides is not None else ["experiment=needle", f"merging={merging}", f"seed={seed}"]
            hydra = {
                "overrides": {"task": given},
                "job": {"name": "train"},
                "runtime": {"choices": {"merging": merging, "experiment": "needle"}},
            }
            (folder / ".hydra" / "hydra.yaml").write_text(as_yaml({"hydra": hydra}), encoding="utf-8")
        return folder

    return write_run


def as_yaml(node: dict[str, Any], indent: str = "") -> str:
    """Write nested dictionaries as YAML, as Hydra does."""
    lines = []
    for key, value in node.items():
        if isinstance(value, dict):
            lines.append(f"{indent}{key}:\n{as_yaml(value, indent + '  ')}")
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:\n" + "".join(f"{indent}- {json.dumps(item)}\n" for item in value))
        else:
            lines.append(f"{indent}{key}: {value}\n")
    return "".join(lines)

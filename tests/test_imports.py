"""Imports point down, third-party packages appear where they belong, and `import vtm` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "vtm.files": 0,
    "vtm.measure": 0,
    "vtm.merging": 0,
    "vtm.packing": 0,
    "vtm.progress": 0,
    "vtm.encoders": 1,
    "vtm.models": 1,
    "vtm.data": 1,
    "vtm.metrics": 2,
    "vtm.pictures": 2,
    "vtm.tasks": 2,
    "vtm.encoded_video": 2,
    "vtm.model_card": 2,
    "vtm.model_file": 2,
    "vtm.prediction": 2,
    "vtm.predictor": 3,
    "vtm.lit_module": 3,
    "vtm.callbacks": 3,
    "vtm.loggers": 3,
    "vtm.picture_logger": 3,
    "vtm.results": 3,
}  # whatever else there is, is a command: layer 4
SAME_LAYER = {("vtm.tasks", "vtm.metrics")}  # a task makes its metric
ALLOWED_IN = {
    "av": ("vtm/data/video/",),
    "timm": ("vtm/encoders/image.py",),
    "torchvision": ("vtm/encoders/video.py",),
    "wandb": ("vtm/loggers.py",),
    "matplotlib": ("vtm/report/plots.py", "vtm/pictures/"),
    "fsspec": ("vtm/data/ranges.py",),
    "hydra": (
        "train.py",
        "vtm/check_data.py",
        "vtm/extract.py",
        "vtm/overrides.py",
        "vtm/benchmark/rows.py",
        "vtm/benchmark/network.py",
        "vtm/benchmark/measuring.py",
    ),
    "omegaconf": (
        "train.py",
        "vtm/check_data.py",
        "vtm/extract.py",
        "vtm/overrides.py",
        "vtm/report/runs.py",
        "vtm/benchmark/rows.py",
        "vtm/benchmark/network.py",
    ),
}
FILES = [*sorted((ROOT / "vtm").rglob("*.py")), ROOT / "train.py"]


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.append(str(node.module))
    return names


def part(module: str) -> str:
    """Name the layered part that a module belongs to."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    here = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imported(path):
        if name.split(".")[0] != "vtm":
            continue
        there = part(name)
        below = LAYERS.get(there, 4) < LAYERS.get(here, 4) or there == here or (here, there) in SAME_LAYER
        command = LAYERS.get(here, 4) == LAYERS.get(there, 4) == 4
        assert below or command, f"{path.relative_to(ROOT)} (layer of {here}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_third_party_packages_appear_where_they_belong(path):
    relative = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        places = ALLOWED_IN.get(name.split(".")[0])
        assert places is None or relative.startswith(places), f"{relative} imports {name}, which belongs in {places}"


def test_merging_needs_torch_only():
    standard = sys.stdlib_module_names | {"torch", "vtm"}
    for path in sorted((ROOT / "vtm" / "merging").glob("*.py")):
        assert {name.split(".")[0] for name in imported(path)} <= standard


@pytest.mark.parametrize("module", ["vtm", "vtm.merging", "vtm.models"])
def test_importing_is_light(module):
    heavy = ["lightning", "av", "timm", "hydra", "wandb", "torchvision"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"

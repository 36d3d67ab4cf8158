"""Imports point only to lower layers, third-party packages stay in their rooms, and `import vtm` is light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"system", "merging", "video", "tasks", "results"},
    {"encoders", "compressors", "patching", "models", "pictures", "data", "cli"},
    {"features", "training", "inference", "video_llm", "benchmark"},
]  # the folders of vtm; a file directly in vtm/ is a command, above them all
ON_ONE_FLOOR = {
    *((room, "system") for room in FLOORS[0]),
    *(("benchmark", room) for room in FLOORS[2]),
    ("results", "tasks"),
    ("pictures", "models"),
    ("patching", "models"),
}  # exceptions: rooms of the same layer that a room may import
COMMANDS = (*(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "vtm").glob("*.py"))), "train.py")
ALLOWED_IN = {
    "av": ("vtm/video/",),
    "fcntl": ("vtm/system/locks.py",),
    "fsspec": ("vtm/features/remote.py",),
    "hydra": (*COMMANDS, "vtm/cli/", "vtm/benchmark/", "vtm/results/runs.py"),
    "lightning": ("vtm/data/datamodule.py", "vtm/training/"),
    "matplotlib": ("vtm/pictures/", "vtm/results/plots.py"),
    "omegaconf": (*COMMANDS, "vtm/cli/", "vtm/benchmark/", "vtm/results/runs.py"),
    "timm": ("vtm/encoders/", "vtm/patching/timm.py", "vtm/patching/video_hosts.py"),
    "torchvision": ("vtm/encoders/",),
    "transformers": (
        "vtm/encoders/",
        "vtm/patching/",
        "vtm/video_llm/",
        "vtm/benchmark/merging/",
        "vtm/benchmark/compressors/",
    ),
    "wandb": ("vtm/training/loggers.py",),
}
FILES = [*sorted((ROOT / "vtm").rglob("*.py")), ROOT / "train.py"]


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            package = ROOT.joinpath(*str(node.module).split("."))
            modules = [alias.name for alias in node.names if (package / f"{alias.name}.py").is_file()]
            names += [f"{node.module}.{name}" for name in modules] or [str(node.module)]
    return names


def room(module: str) -> str | None:
    """Return the folder of a module of vtm; None for a command."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "vtm" / parts[1]).is_dir() else None


def floor(room: str | None) -> int:
    return len(FLOORS) if room is None else next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_folder_of_vtm_is_a_room_of_the_plan():
    folders = {path.name for path in (ROOT / "vtm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_to_a_lower_floor(path):
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imported(path):
        if name.split(".")[0] == "vtm":
            there = room(name)
            allowed = here == there or floor(there) < floor(here) or (here, there) in ON_ONE_FLOOR
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_third_party_packages_appear_where_they_belong(path):
    relative = path.relative_to(ROOT).as_posix()
    for name in imported(path):
        places = ALLOWED_IN.get(name.split(".")[0])
        assert places is None or relative.startswith(places), f"{relative} imports {name}, which belongs in {places}"


@pytest.mark.parametrize(("folder", "packages"), [("merging", {"torch"}), ("compressors", {"torch", "numpy"})])
def test_rooms_of_pure_functions_need_little(folder, packages):
    for path in sorted((ROOT / "vtm" / folder).glob("*.py")):
        assert {name.split(".")[0] for name in imported(path)} <= sys.stdlib_module_names | {"vtm"} | packages


def test_wandb_is_not_imported_before_a_run_is_logged_there():
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "wandb" not in {name.split(".")[0] for name in names}, f"{path} imports wandb at module level"


LIGHT = {
    "import vtm": "torch lightning wandb av timm hydra torchvision matplotlib",
    "import vtm.export": "torch lightning wandb hydra",
    "import vtm.report": "torch lightning wandb hydra matplotlib",
    "import vtm.predict": "torch lightning wandb hydra av",
    "import vtm.ask": "torch lightning wandb hydra av transformers",
    "import vtm.visualize": "torch lightning wandb hydra av matplotlib",
    "import vtm.merging": "lightning wandb av timm hydra torchvision matplotlib torchmetrics",
    "import vtm.compressors": "lightning wandb av timm hydra torchvision matplotlib torchmetrics transformers",
    "import vtm.video_llm": "lightning wandb av timm hydra torchvision matplotlib torchmetrics transformers",
    "import vtm.models": "lightning wandb av timm hydra torchvision matplotlib torchmetrics",
    "from vtm import load": "lightning wandb hydra timm",
    "from vtm import Predictor": "lightning wandb hydra timm",
}  # what is not to be imported by each, or by those above it


@pytest.fixture(scope="module")
def imported_so_far() -> dict[str, list[str]]:
    """What one interpreter has imported after each line."""
    lines = "".join(f"{code}\nfound[{code!r}] = list(sys.modules)\n" for code in LIGHT)
    script = f"import json, sys\nfound = {{}}\n{lines}print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("code", LIGHT)
def test_importing_is_light(imported_so_far, code):
    assert set(LIGHT[code].split()).isdisjoint(imported_so_far[code])

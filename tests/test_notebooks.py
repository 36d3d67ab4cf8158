"""The notebooks run from top to bottom at small size, and are stored clean, without outputs."""

import ast
import gc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL_NETWORK = ["model.channels=[8,8,8]", "model.num_heads=2", "trainer.max_epochs=1", "scheduler.warmup_epochs=0"]
SMALL = ["logger=csv", "trainer.log_every_n_steps=1", "data.num_workers=0", "data.batch_size=4"]
SMALL_DEMO = [
    "experiment=demo", "data.num_train=8", "data.num_val=4", "data.num_test=4", "data.scene.seconds=4",
    "data.scene.fps=4", "data.protocol.num_frames=4", "encoder.image_size=48", "encoder.model_args.depth=1",
    "model.window_frames=[1,2,4]", *SMALL_NETWORK, *SMALL,
]  # fmt: skip
SMALL_NEEDLE = [
    "experiment=needle", "data.num_train=16", "data.num_val=8", "data.num_test=8", "data.clips.frames=4",
    "model.window_frames=[1,2,4]", *SMALL_NETWORK, *SMALL,
]  # fmt: skip
SMALL_FOLDER = {
    "ENCODER": ["encoder=vit_tiny_random", "encoder.image_size=32", "encoder.model_args.depth=1"],
    "TRAINING": ["data.protocol.num_frames=4", "model.window_frames=[1,2,4]", *SMALL_NETWORK],
    "SETTINGS": [*SMALL, "data.protocol.num_frames=4"],
    "VIDEOS_PER_CLASS": 3,
    "SECONDS": 4,
}
STRATEGIES = ["learnable", "uniform", "center", "boundary", "motion", "none"]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, str]]:
    """Run a notebook with other parameters in a clone made of links; return its folder and all its output.

    The kernel runs this Python, even if other kernels are installed. Data and runs go to the folder.
    """

    def execute(name: str, **parameters: object) -> tuple[Path, str]:
        for entry in ("vtm", "conf", "train.py"):
            (tmp_path / entry).symlink_to(ROOT / entry)
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        (index,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
        assert assigned(notebook.cells[index].source) == list(parameters), "one value for each parameter"
        notebook.cells[index].source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        (tmp_path / "notebooks").mkdir()
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        folder = {"metadata": {"path": str(tmp_path / "notebooks")}}
        NotebookClient(notebook, km=manager, timeout=300, resources=folder).execute()
        gc.collect()  # jupyter's clients log when they are collected, which could otherwise disturb a later test
        return tmp_path, printed(notebook)

    return execute


def assigned(source: str) -> list[str]:
    """List the names that a cell assigns."""
    return [node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)]


def printed(notebook: NotebookNode) -> str:
    """Gather the output of all cells, with the type of each picture."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or "\n".join(map(str, output.get("data", {}).items())) for output in outputs]
    return "\n".join(texts)


@pytest.mark.slow
def test_the_quickstart_trains_exports_and_predicts(execute):
    folder, text = execute("01_quickstart.ipynb", SETTINGS=SMALL_DEMO)
    (model,) = folder.glob("runs/demo/*/model.safetensors")
    assert f"{model.relative_to(folder)}: " in text
    assert len(re.findall(r"videos/test/[a-z-]+/\d+\.mp4: [a-z-]+, probability 0\.\d{3}\n", text)) == 4
    assert text.count("image/png") == 2


@pytest.mark.slow
def test_what_was_merged_ends_in_pictures_of_all_strategies(execute):
    folder, text = execute(
        "02_what_was_merged.ipynb", VIDEO="data/demo/videos/test/cyan-blue/0002.mp4", SETTINGS=SMALL_DEMO
    )
    assert re.findall(r"^(\w+) +tokens after each block \[\d", text, flags=re.MULTILINE) == STRATEGIES
    assert {path.suffix for path in folder.glob("runs/demo/*/pictures/*")} == {".png", ".pdf", ".mp4", ".html"}
    assert text.count("image/png") == 4
    assert "video/mp4" in text


@pytest.mark.slow
def test_the_ablations_end_in_a_table_and_plots(execute):
    sweep = ["merging.partition_factor=2,6", "seed=0,1"]
    folder, text = execute("03_ablations.ipynb", SWEEP=sweep, SETTINGS=SMALL_NEEDLE)
    assert re.search(r"\| +merging.partition_factor +\| +seeds +\| +accuracy +\|", text)
    assert len(list(folder.glob("runs/needle/*/*/results.json"))) == 4
    assert {path.name for path in folder.glob("runs/needle/*/report/*.png")} == {"needle_seeds.png", "needle_cost.png"}
    assert text.count("image/png") == 3


@pytest.mark.slow
def test_own_videos_end_in_predictions_and_pictures(execute):
    folder, text = execute("04_your_own_videos.ipynb", FOLDER="data/mine", **SMALL_FOLDER)
    assert len(list(folder.glob("data/mine/features/*/*/*.safetensors"))) == 12
    assert len(re.findall(r"^[a-z-]+\.mp4: [a-z-]+, probability 0\.\d{3}$", text, flags=re.MULTILINE)) == 4
    assert {path.suffix for path in folder.glob("runs/folder/*/pictures/*")} == {".png", ".pdf", ".mp4", ".html"}
    assert "image/png" in text
    assert "video/mp4" in text


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_other_traces_of_a_run(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata == ({"tags": ["parameters"]} if cell.id == "parameters" else {})
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.source


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing(path):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not any(isinstance(node, definitions) for node in ast.walk(ast.parse(cell.source))), cell.source


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_notebooks_pass_ruff(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", *map(str, PATHS)]
    ruff = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


def test_every_notebook_is_run():
    source = Path(__file__).read_text(encoding="utf-8")
    assert PATHS
    assert [path.name for path in PATHS if f'"{path.name}"' not in source] == []

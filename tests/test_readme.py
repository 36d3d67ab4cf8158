"""The README's Python runs and gives what its comments say; its links and commands exist."""

import re
from pathlib import Path

import pytest
import torch

from vtm.export import export

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(
    set(
        re.findall(
            r"(?:experiment|ablation|trainer|merging|callbacks|logger|encoder|data/source|data/protocol)=[a-z0-9_]+",
            README,
        )
    )
)


@pytest.fixture(scope="module")
def names(tmp_path_factory, make_checkpoint, make_video) -> dict:
    """What the README's Python expects to be there: a model in two formats, a video, features."""
    folder = tmp_path_factory.mktemp("readme")
    small = ("merging=none", "model.window_frames=[4]", "model.channels=[8]")  # whose graphs take a second, not ten
    checkpoint = make_checkpoint(folder / "a.ckpt", "data/protocol=windows", "data.protocol.num_frames=4", *small)
    list(export(checkpoint, folder / "scene", "safetensors,onnx,pt2"))
    make_video(folder / "clip.mp4", 5)
    features, mask = torch.randn(2, 4, 2, 2, 192), torch.ones(2, 4, dtype=torch.bool)
    return {"folder": folder, "features": features, "mask": mask}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_the_python_of_the_readme_gives_the_shapes_in_its_comments(block, names, monkeypatch):
    names = dict(names)
    monkeypatch.chdir(names["folder"])
    exec(block, names)
    for expression, shape in re.findall(r"^(?:\w+ = )?(.+?)(?:\.shape)?  # (\([\d, ]+\))", block, flags=re.MULTILINE):
        assert tuple(eval(expression, names).shape) == eval(shape)


def test_the_readme_shows_the_library():
    assert any("TokenMerger" in block for block in BLOCKS)


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([\w-]+)\)", README))))
def test_every_section_that_the_readme_links_to_exists(anchor):
    titles = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("choice", COMMANDS)
def test_every_choice_that_the_readme_names_exists(choice):
    group, option = choice.split("=")
    assert (ROOT / "conf" / group / f"{option}.yaml").is_file()


@pytest.mark.parametrize(
    "path",
    sorted(
        set(re.findall(r"(?:(?:vtm|conf|data|tests|notebooks)/[\w/]+|\.github/\w+)\.(?:py|yaml|md|ipynb|png)", README))
    ),
)
def test_every_file_that_the_readme_names_exists(path):
    assert (ROOT / path).is_file()

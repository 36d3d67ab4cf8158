"""The Python of every README runs and gives what its comments say; links, files, choices and options exist."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.video_llm.tiny import build, video
from vtm.export import export

ROOT = Path(__file__).parents[1]
PAGES = {
    page: page.read_text(encoding="utf-8")
    for pattern in ("README.md", "conf/README.md", "data/README.md", "vtm/*/*.md")
    for page in sorted(ROOT.glob(pattern))
}
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]
GROUPS = "|".join(
    str(folder.relative_to(ROOT / "conf")) for folder in (ROOT / "conf").rglob("*") if any(folder.glob("*.yaml"))
)
CHOICES = {choice for text in PAGES.values() for choice in re.findall(rf"(?<![\w/.])(?:{GROUPS})=[a-z0-9_]+", text)}
LINKS = {(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)}
FILES = {
    name
    for text in PAGES.values()
    for name in re.findall(r"(?:(?:vtm|conf|tests|notebooks)/[\w/]+|\.github/\w+)\.(?:py|yaml|md|ipynb|png)", text)
}


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the sections of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def names(tmp_path_factory, make_checkpoint, make_video) -> dict:
    """What the Python of the pages expects to be there: a model in two formats, a video, features."""
    folder = tmp_path_factory.mktemp("readme")
    small = ("merging=none", "model.window_frames=[4]", "model.channels=[8]")  # whose graphs take a second, not ten
    checkpoint = make_checkpoint(folder / "a.ckpt", "data/protocol=windows", "data.protocol.num_frames=4", *small)
    list(export(checkpoint, folder / "scene", "safetensors,onnx,pt2"))
    shutil.copy(folder / "scene.safetensors", folder / "mine.safetensors")
    make_video(folder / "clip.mp4", 5)
    features, mask = torch.randn(2, 4, 2, 2, 192), torch.ones(2, 4, dtype=torch.bool)
    return {"folder": folder, "features": features, "mask": mask}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_the_python_code_returns_the_shapes_in_its_comments(block, names, monkeypatch):
    names = dict(names)
    if "vtm.video_llm" in block:
        pytest.importorskip("transformers", reason="transformers is not installed (pip install vtm[hf])")
        tiny = build("qwen3_vl")
        names |= {"model": tiny.model, "processor": tiny.processor, "prompt": f"{tiny.video} Why?", "frames": video(8)}
    monkeypatch.chdir(names["folder"])
    exec(block, names)
    for expression, shape in re.findall(r"^(?:\w+ = )?(.+?)(?:\.shape)?  # (\([\d, ]+\))", block, flags=re.MULTILINE):
        assert tuple(eval(expression, names).shape) == eval(shape)


def test_the_pages_are_found_and_show_the_library():
    assert {str(page.parent.relative_to(ROOT)) for page in PAGES} >= {".", "conf", "data", "vtm/merging"}
    assert any("TokenMerger" in block for block in BLOCKS)
    assert {"experiment=demo", "data/source=features"} <= CHOICES


def test_the_first_page_stays_short():
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 200


@pytest.mark.parametrize(("page", "link"), sorted(LINKS), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_every_link_leads_to_a_file_and_a_section(page, link):
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("choice", sorted(CHOICES))
def test_every_choice_exists(choice):
    group, option = choice.split("=")
    assert option in ("null", "true", "false") or (ROOT / "conf" / group / f"{option}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(FILES))
def test_every_file_exists(path):
    assert (ROOT / path).is_file()

"""The README's Python runs and gives what its comments say; its links and commands exist."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("block", BLOCKS)
def test_the_python_of_the_readme_gives_the_shapes_in_its_comments(block):
    names: dict = {}
    exec(block, names)
    for expression, shape in re.findall(r"^(?:\w+ = )?(.+?)(?:\.shape)?  # (\([\d, ]+\))", block, flags=re.MULTILINE):
        assert tuple(eval(expression, names).shape) == eval(shape)


def test_the_readme_shows_the_library():
    assert len(BLOCKS) >= 1


@pytest.mark.parametrize("choice", COMMANDS)
def test_every_choice_that_the_readme_names_exists(choice):
    group, option = choice.split("=")
    assert (ROOT / "conf" / group / f"{option}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:vtm|conf|data|tests)/[\w/]+\.(?:py|yaml|md)", README))))
def test_every_file_that_the_readme_names_exists(path):
    assert (ROOT / path).is_file()

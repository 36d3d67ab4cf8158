"""What is printed can be pasted: the shell and Hydra read the text that was meant."""

import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vtm.cli.launch import resumable
from vtm.cli.overrides import near_misses
from vtm.cli.quoting import quoted_override

CONF = Path(__file__).parents[2] / "conf"
PLAIN = ["runs/demo/2026-01-01_10-00-00-000001", "runs/a b", "runs/x-1.5_%20+@home", "C:/runs"]
NASTY = [
    "~/runs", "runs/my run (2)", "runs/été", "runs/lr=0.001,seed=0", "runs/it's", 'runs/"mine"', "both \" and '",
    "a\\b", "a\\", 'a\\"', "[1,2]", "{a: 1}", "a,b", "$HOME", "${HOME}", "\\${seed}", "\\\\${seed}\\", "$(ls)",
    "`ls`", " before", "after ", "\ttab", "two\nlines", "null", "true", "7", "1e3", "???", "a=b", "=a", "#1", "名前",
    "a;b|c&d", "!x", "*", "choice(1,2)", "''", '""', "e\u0301t\xe9",
]  # fmt: skip


def read(text: str, key: str = "ckpt_path") -> object:
    """Return the value of an override, as the configuration has it."""
    found = OverridesParser.create().parse_override(text)
    assert not found.is_sweep_override()
    assert found.key_or_group == key
    config = OmegaConf.create({key: None})
    OmegaConf.update(config, key, found.value())
    return None if OmegaConf.is_missing(config, key) else config[key]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_needs_no_quotation_marks(text: str) -> None:
    assert quoted_override("ckpt_path", text) == f"ckpt_path={text}"
    assert read(quoted_override("ckpt_path", text)) == text


@pytest.mark.parametrize("text", [text for text in NASTY if text != "???"])
def test_any_text_is_read_as_it_was_meant(text: str) -> None:
    (word,) = shlex.split(shlex.join([quoted_override("ckpt_path", text)]))
    assert read(word) == text
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", overrides=["experiment=needle", word]).ckpt_path == text


@pytest.mark.parametrize("name", [name.strip("/") for name in NASTY])
def test_the_command_to_resume_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--config-dir", "my conf", "hydra.searchpath=[file://x]"]
    monkeypatch.setattr(sys, "argv", ["my scripts/train.py", *flags, "-m"])
    checkpoint = Path(name) / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    given = ["model.channels=[8,8]", 'name="two words"', "++ckpt_path=old.ckpt", "finetune_from=x.ckpt"]
    with pytest.raises(SystemExit), resumable("demo", given, Path(name)):
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    *words, last = shlex.split(said.partition("epoch: ")[2])
    assert words == ["python", "my scripts/train.py", *flags, *given[:2]]
    assert Path(str(read(last))).samefile(checkpoint)


@pytest.mark.parametrize("text", ["[1", "my (videos)", "it's [here", 'a "b" (c)', "été", "a,b=c", "${"])
def test_the_remedy_for_an_override_that_cannot_be_parsed_can_be_pasted(text: str) -> None:
    (line,) = near_misses([f"ckpt_path={text}"], CONF, "train")
    (word,) = shlex.split(line.partition("for the shell: ")[2])
    assert read(word) == text

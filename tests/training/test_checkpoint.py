"""Checkpoints: which files are read, and which are refused with which message."""

import zipfile

import pytest
import torch

from vtm.training.checkpoint import read_checkpoint


def test_a_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=nowhere/last\.ckpt is not a file; checkpoints are in"):
        read_checkpoint("nowhere/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"finetune_from=nowhere/best\.ckpt is not a file; checkpoints are in"):
        read_checkpoint("nowhere/best.ckpt", key="finetune_from")


def test_another_file_than_a_checkpoint_is_named(tmp_path):
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "empty").touch()
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("a", "words")
    torch.save({"state_dict": {}}, tmp_path / "other")
    torch.save(zipfile.ZipInfo(), tmp_path / "pickle")
    for name in ("README.md", "empty", "zip", "other", "pickle"):
        with pytest.raises(ValueError, match=rf"ckpt_path=.*{name} is not a checkpoint of vtm, or is damaged; give"):
            read_checkpoint(tmp_path / name)
        with pytest.raises(ValueError, match=rf"finetune_from=.*{name} is not a checkpoint of vtm, or is damaged; gi"):
            read_checkpoint(tmp_path / name, key="finetune_from")


def test_a_checkpoint_describes_its_run(tmp_path, make_checkpoint):
    path = make_checkpoint(tmp_path / "best.ckpt")
    checkpoint = read_checkpoint(path)
    assert checkpoint.name == f"ckpt_path={path}"
    assert (checkpoint.epochs, checkpoint.class_names) == (3, ["dark", "light", "red"])
    assert checkpoint.config["name"] == "demo"
    assert checkpoint.state["model.head.bias"].shape == (3,)


def test_a_checkpoint_of_another_format_is_refused_with_both_formats(tmp_path, make_checkpoint):
    content = torch.load(make_checkpoint(tmp_path / "best.ckpt"), weights_only=True)
    content["vtm"]["format"] = 1
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old.ckpt is a checkpoint of format 1, but .* reads format 2"):
        read_checkpoint(tmp_path / "old.ckpt")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path, make_checkpoint):
    path = make_checkpoint(tmp_path / "best.ckpt")
    content = path.read_bytes()
    head = torch.load(path, weights_only=True)["state_dict"]["model.head.weight"].numpy().tobytes()
    for position in (0, content.index(head), *range(7, len(content), len(content) // 50)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ckpt_path=.*best\.ckpt is not a checkpoint of vtm, or is damaged; give"):
            read_checkpoint(path)
    path.write_bytes(content)
    read_checkpoint(path)


def test_settings_of_an_earlier_version_have_their_present_names(tmp_path, make_checkpoint):
    path = make_checkpoint(tmp_path / "best.ckpt")
    content = torch.load(path, weights_only=True)
    content["vtm"]["config"]["task"]["_target_"] = "vtm.tasks.Classification"
    torch.save(content, path)
    assert read_checkpoint(path).config["task"]["_target_"] == "vtm.tasks.classification.Classification"

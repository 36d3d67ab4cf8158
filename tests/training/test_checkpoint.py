"""Checkpoints: which files are ours, and what they are refused for."""

import zipfile

import pytest
import torch

from vtm.training.checkpoint import check_checkpoint


def test_a_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=nowhere/last\.ckpt is no file; checkpoints lie in"):
        check_checkpoint("ckpt_path", "nowhere/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"finetune_from=nowhere/best\.ckpt is no file; checkpoints lie in"):
        check_checkpoint("finetune_from", "nowhere/best.ckpt")


def test_another_file_than_a_checkpoint_is_named(tmp_path):
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "empty").touch()
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("a", "words")
    torch.save({"state_dict": {}}, tmp_path / "other")
    torch.save(zipfile.ZipInfo(), tmp_path / "pickle")
    for name in ("README.md", "empty", "zip", "other", "pickle"):
        with pytest.raises(ValueError, match=rf"ckpt_path=.*{name} is no checkpoint of vtm, or a damaged one; give"):
            check_checkpoint("ckpt_path", str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"finetune_from=.*{name} is no checkpoint of vtm, or a damaged one; gi"):
            check_checkpoint("finetune_from", str(tmp_path / name))

"""The rank of a process is read from the variables of its launcher."""

import pytest

from vtm.system.processes import process_rank


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    names = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)


def test_a_process_knows_its_place(monkeypatch):
    assert process_rank() == (0, 0, 1)
    for name, value in (("SLURM_LOCALID", "3"), ("SLURM_PROCID", "11"), ("SLURM_NTASKS", "16")):
        monkeypatch.setenv(name, value)
    assert process_rank() == (3, 11, 16)
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "5"), ("WORLD_SIZE", "8")):  # torchrun inside of a SLURM job
        monkeypatch.setenv(name, value)
    assert process_rank() == (1, 5, 8)

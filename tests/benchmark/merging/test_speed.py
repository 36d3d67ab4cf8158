"""The table of speeds: models of real size, their tokens, and whole files after an interruption."""

import csv
from pathlib import Path

import pytest
import torch

from vtm.benchmark.merging import speed
from vtm.patching import constant, decreasing, patch, recording
from vtm.patching.schedules import token_counts
from vtm.system.progress import Progress


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_speed_without_transformers(run, monkeypatch, capsys):
    monkeypatch.setattr("vtm.benchmark.merging.command.find_spec", lambda name: None)
    out = run("--repeats", "3", "--batch", "1")
    printed, errors = capsys.readouterr()
    reason = "the accuracy and the rows of VideoMAE need transformers: pip install -e '.[hf]'"
    assert f"left out: {reason}" in errors
    assert sorted(path.name for path in out.iterdir()) == ["speed.csv", "speed.md"]
    none, merged = rows(out / "speed.csv")
    assert none["table"] == "vit_tiny_patch16_224, 64 × 64 pixels, 17 tokens"
    assert [none["merging"], merged["merging"]] == ["none", "r = 2"]
    assert float(none["speed-up"]) == 1
    assert float(none["% reached"]) == pytest.approx(100)
    assert none["% matching and merging"] == ""
    assert 0 < float(merged["% matching and merging"]) < 100
    assert float(merged["speed-up allowed"]) > 1
    assert float(merged["% reached"]) == pytest.approx(
        100 * float(merged["speed-up"]) / float(merged["speed-up allowed"])
    )
    assert float(merged["peak MB"]) > 0
    assert [row["rounds"] for row in (none, merged)] == ["3", "3"]
    assert [row["batch"] for row in (none, merged)] == ["1", "1"]
    assert none["table"] in printed
    with pytest.raises(SystemExit, match=r"the accuracy and the rows of VideoMAE need transformers"):
        run("--only", "accuracy")


@pytest.mark.parametrize("index", [0, 1])
def test_the_tokens_of_a_model_are_those_that_are_counted(index):
    if index:
        pytest.importorskip("transformers")
    host = speed.hosts(quick=True, videomae=True)[index]
    (schedule,) = host.schedules.values()
    model = patch(host.make().eval(), schedule, proportional=host.proportional)
    with recording(model) as trace, torch.no_grad():
        model(host.inputs(1))
    counts = token_counts(schedule, host.num_tokens, protected=host.protected)
    assert [size.shape[1] for size in trace.sizes.values()] == counts[1:]
    assert [float(size.sum()) for size in trace.sizes.values()] == [host.num_tokens] * len(schedule)


def test_the_models_of_real_size():
    found = {host.name: host for host in speed.hosts(quick=False, videomae=True)}
    assert {name: host.num_tokens for name, host in found.items()} == {
        "vit_base_patch16_224": 197,
        "vit_large_patch16_224": 197,
        "VideoMAE-B": 1568,
    }
    assert list(found["vit_base_patch16_224"].schedules.values()) == [constant(12, r) for r in (8, 13, 16)]
    assert list(found["vit_large_patch16_224"].schedules.values()) == [constant(24, r) for r in (4, 8)]
    video = found["VideoMAE-B"]
    assert list(video.schedules.values()) == [constant(12, 150), decreasing(12, 150)]
    assert 178 < video.multiply_adds([0] * 12) / 1e9 < 179  # as the paper's model
    assert not video.proportional
    assert "vit_base_patch16_224" in {host.name for host in speed.hosts(quick=False, videomae=False)}
    assert "VideoMAE-B" not in {host.name for host in speed.hosts(quick=False, videomae=False)}


def test_a_measured_model_is_left_as_it_was():
    host = speed.hosts(quick=True, videomae=False)[0]
    model = host.make().eval()
    before = [(type(module), sorted(vars(module))) for module in model.modules()]
    host = speed.Host(**{**vars(host), "make": lambda: model})
    with Progress("", speed.work(host, 1, 1)) as progress:
        (table,) = speed.measure(host, batch=1, repeats=1, device="cpu", progress=progress)
    assert progress.done == progress.total
    assert [row["merging"] for row in table] == ["none", "r = 2"]
    assert [(type(module), sorted(vars(module))) for module in model.modules()] == before


def test_an_interruption_keeps_whole_files(run, monkeypatch, tmp_path):
    timed = speed._merging_share
    calls = []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return timed(*arguments)

    monkeypatch.setattr(speed, "_merging_share", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted; 2 rows are in .*out"):
        run("--only", "speed", "--repeats", "5")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["speed.csv", "speed.md"]
    assert [row["rounds"] for row in rows(out / "speed.csv")] == ["2", "2"]
    table = (out / "speed.md").read_text(encoding="utf-8").splitlines()[-4:]
    assert len({line.count("|") for line in table}) == 1

"""The benchmark of merging: both kinds of table, whole files after an interruption, and errors in one sentence."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vtm.benchmark.__main__ import main
from vtm.benchmark.merging import speed
from vtm.patching import constant, decreasing, patch, recording
from vtm.patching.schedules import token_counts
from vtm.system.progress import Progress


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command, and return the folder of its tables."""

    def command(*arguments: str) -> Path:
        options = ["merging", "--quick", "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", ["benchmark", *options])
        main()
        return tmp_path / "out"

    return command


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_accuracy(run, monkeypatch, capsys):
    accuracy = pytest.importorskip("vtm.benchmark.merging.accuracy", exc_type=ImportError)
    few = {title: table[:: 1 if "40" in title or "first" in title else 5] for title, table in accuracy.tables().items()}
    monkeypatch.setattr(accuracy, "tables", lambda: few)
    state = torch.random.get_rng_state()
    out = run("--only", "accuracy", "--seeds", "2")
    assert torch.equal(state, torch.random.get_rng_state())
    assert sorted(path.name for path in out.iterdir()) == ["accuracy.csv", "accuracy.md"]
    found = rows(out / "accuracy.csv")
    assert len(found) == 2 + sum(map(len, few.values()))
    assert {row["command"] for row in found} == {found[0]["command"]}
    assert "--quick" in found[0]["command"]
    modes = {(row["table"], row["mode"], row["schedule"]): row for row in found}
    for ratio in (80, 60, 40):
        title = f"At most {ratio} % of the multiply-adds"
        measured = [row for row in found if row["table"] == title and row["top-1 %"]]
        assert len({row["schedule"] for row in measured}) == (2 if ratio == 40 else 3)
        for row in measured:
            assert float(row["multiply-adds %"]) <= ratio
            assert row["top-1 %, deviation"]
    unreached = modes["At most 40 % of the multiply-adds", "merge_similar", "increasing"]
    assert unreached["remarks"] == "not reached; the least is 0.547"
    at_once = "Half of the tokens in the first block"
    dropped, at_random = (modes[at_once, mode, "first"] for mode in ("drop_similar", "drop_random"))
    assert dropped["remarks"] == "all sources in block 1"
    assert dropped["logit error"] == at_random["logit error"]
    assert dropped["logit error"] != modes[at_once, "merge_similar", "first"]["logit error"]
    printed, errors = capsys.readouterr()
    written = (out / "accuracy.md").read_text(encoding="utf-8")
    titles = [line for line in written.splitlines() if line.startswith("## ")]
    assert [line for line in printed.splitlines() if line.startswith("## ")] == titles
    total = accuracy.work(accuracy.Recipe(steps=4, batch=8, test_clips=24), 2)
    assert f"accuracy, clips: {total} of {total}" in errors


def test_random_modes_repeat_themselves_and_no_merging_changes_nothing():
    accuracy = pytest.importorskip("vtm.benchmark.merging.accuracy", exc_type=ImportError)
    recipe = accuracy.Recipe(steps=2, batch=8, test_clips=16)
    model = accuracy.train(recipe, seed=0, device="cpu", after_step=lambda: None)
    clips, labels = accuracy.moving_squares(16, generator=torch.Generator().manual_seed(2**32 + 1))
    trained = [accuracy.Trained(1, model, accuracy.predict(model, clips, device="cpu"), labels)]
    row = accuracy.Row("merge_random", "constant", 0.6)
    first, second = (accuracy.evaluate(row, trained, recipe, device="cpu")["logit error"] for _ in range(2))
    assert first == second
    assert first.mean > 0
    idle = accuracy.evaluate(accuracy.Row("merge_similar", "constant", 1.0), trained, recipe, device="cpu")
    assert idle["logit error"].mean == 0
    assert idle["agreement %"].mean == idle["multiply-adds %"] == 100
    assert idle["remarks"] == ""


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


def test_an_interruption_of_the_accuracy_keeps_the_rows(run, monkeypatch, tmp_path):
    accuracy = pytest.importorskip("vtm.benchmark.merging.accuracy", exc_type=ImportError)
    evaluate = accuracy.evaluate

    def interrupted(row, *arguments, **options):
        if row.mode == "drop_similar":
            raise KeyboardInterrupt
        return evaluate(row, *arguments, **options)

    monkeypatch.setattr(accuracy, "evaluate", interrupted)
    with pytest.raises(SystemExit, match=r"interrupted; 4 rows are in .*out"):
        run()
    found = [row["mode"] or row["model"] for row in rows(tmp_path / "out" / "accuracy.csv")]
    assert found[0] == "trained on the clips"
    assert found[2:] == ["merge_similar", "merge_hybrid 0.8"]
    assert "| merge_hybrid 0.8 |" in (tmp_path / "out" / "accuracy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "time"], "argument --only: invalid choice: 'time'"),
        (["--batch", "1,2,3"], "argument --batch: expected one number, or two for images and clips, got 1,2,3"),
        (["--seeds", "0"], "argument --seeds: expected a whole number above 0, got 0"),
        (["merging.partition_factor=2"], "unrecognized arguments: merging.partition_factor=2"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_merging_must_come_first(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--threads", "1", "merging"])
    with pytest.raises(SystemExit):
        main()
    assert "merging must come first: python -m vtm.benchmark merging" in capsys.readouterr().err


def test_help_is_quick():
    code = """
import runpy, sys
sys.argv = ["benchmark", "merging", "--help"]
try:
    runpy.run_module("vtm.benchmark", run_name="__main__")
except SystemExit:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--quick" in found
    assert found.strip().endswith("False False")

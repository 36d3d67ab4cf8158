"""The table of accuracies: trained models, modes at equal cost, and whole rows after an interruption."""

import csv
from pathlib import Path

import pytest
import torch


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

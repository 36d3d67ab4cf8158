"""Files of an earlier version still work, with the same numbers; `old_files/README.md` lists them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
import vtm
from vtm import Predictor, check_data, export, predict, report
from vtm.inference.model_file import read_model

OLD = Path(__file__).parent / "old_files"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
FRAMES = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def settings(run: str) -> list[str]:
    """List the overrides of an old run."""
    lines = (OLD / "runs" / run / ".hydra" / "overrides.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("- ") for line in lines]


def compare(folder: Path, run: str) -> None:
    """Compare the results and the validation losses of a run with those of the earlier version."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for stage, expected in EXPECTED["results"][run].items():
        if stage in found:
            assert found[stage]["value"] == pytest.approx(expected["value"], abs=1e-4)
            assert found[stage]["clip_level"]["value"] == pytest.approx(expected["clip"], abs=1e-4)
            assert found[stage].get("details", {}) == pytest.approx(expected["details"], abs=1e-4)
    losses = []
    for name in ("metrics.csv", "tests.csv"):  # the earlier version had both in one file
        if (folder / name).exists():
            with (folder / name).open(encoding="utf-8", newline="") as file:
                losses += [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert losses == pytest.approx(EXPECTED["val_losses"][run][-len(losses) :], abs=1e-4)


@pytest.fixture
def old(tmp_path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_an_interrupted_run_is_resumed_to_the_end_of_an_uninterrupted_one(call, old):
    run = old / "runs" / "interrupted"
    call(train.main, old, *settings("interrupted"), "ckpt_path=runs/interrupted/checkpoints/last.ckpt")
    compare(run, "whole")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == EXPECTED["last_weights"].keys()
    for name, expected in EXPECTED["last_weights"].items():
        assert state[name].flatten()[:4].tolist() == pytest.approx(expected, abs=1e-4), name


@pytest.mark.parametrize("run", ["values/0", "needle"])
def test_a_checkpoint_is_tested(call, old, run):
    best = f"ckpt_path=runs/{run}/checkpoints/best.ckpt"
    call(train.main, old, *settings(run), "train=false", best, "hydra.run.dir=again")
    found = json.loads((old / "again" / "results.json").read_text(encoding="utf-8"))
    for stage in ("val", "test"):
        assert found[stage]["value"] == pytest.approx(EXPECTED["results"][run][stage]["value"], abs=1e-4)
    written = json.loads((OLD / "runs" / run / "results.json").read_text(encoding="utf-8"))
    assert found["test"]["ids_sha256"] == written["test"]["ids_sha256"]


def test_a_run_is_fine_tuned_from_a_checkpoint(call, old):
    tuned = ["finetune_from=runs/values/0/checkpoints/best.ckpt", "merging=uniform", "merging/weighting=size"]
    call(train.main, old, *settings("interrupted"), *tuned, "hydra.run.dir=tuned")
    compare(old / "tuned", "tuned")


def test_a_checkpoint_is_exported_and_gives_the_scores_of_the_old_export(call, old):
    call(export.main, old, "ckpt_path=runs/values/0/checkpoints/best.ckpt", "out=new.safetensors")
    model = vtm.load(old / "new.safetensors")
    assert model(model.encoder(FRAMES)).tolist() == [pytest.approx(row, abs=1e-4) for row in scores("values_model")]
    _, description = read_model(old / "new.safetensors")
    assert description["training"]["test"]["value"] == pytest.approx(EXPECTED["results"]["values/0"]["test"]["value"])


def scores(name: str) -> list[list[float]]:
    return EXPECTED["scores"][name]


def test_exported_models_give_the_same_scores(old):
    for name in ("classes.safetensors", "values_model"):
        model = vtm.load(old / name)
        assert model(model.encoder(FRAMES)).tolist() == [pytest.approx(row, abs=1e-4) for row in scores(name)]
    model = Predictor.from_pretrained(str(old / "values_model"))
    assert model(model.encoder(FRAMES)).tolist() == [pytest.approx(row, abs=1e-4) for row in scores("values_model")]


def test_a_table_of_predictions_goes_on(call, old, make_video):
    make_video(old / "classes" / "videos" / "12.mp4", 4)
    before = (old / "predictions.csv").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        call(predict.main, old, "classes.safetensors", "classes/videos/12.mp4", "--csv", "predictions.csv")
    after = (old / "predictions.csv").read_text(encoding="utf-8")
    assert after.startswith(before)
    (row,) = csv.reader([after.removeprefix(before)])
    prediction = vtm.load(old / "classes.safetensors").predict(old / "classes" / "videos" / "12.mp4")
    assert row[:3] == ["classes/videos/12.mp4", prediction.label, f"{prediction.score:.6f}"]


def test_stored_features_are_read_and_every_byte_is_sound(call, old, capsys):
    call(check_data.main, old, *settings("interrupted"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "train      6        0           0          0",
        "val        3        0           0          0",
        "test       3        0           0          0",
    ]


def test_old_runs_are_reported_on(call, old):
    call(report.main, old, "runs/values", "runs/needle", "--out", "report")
    found, expected = (
        list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        for path in (old / "report" / "report.csv", OLD / "report.csv")
    )
    for rows in (found, expected):
        for row in rows:
            del row["folder"]
    assert found == expected


def test_old_and_new_runs_of_one_setting_make_one_row(call, old):
    call(train.main, old, *settings("values/0"), "seed=2", "hydra.run.dir=runs/values/2")
    call(report.main, old, "runs/values", "--out", "report")
    with (old / "report" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert not [name for name in rows[0] if "_target_" in name]
    text = (old / "report" / "report.md").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 3  # heading, rule, and the one row

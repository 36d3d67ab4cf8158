"""The tables of results, in Markdown and in CSV."""

import csv
import platform

import pytest
import torch

from vtm.benchmark.measuring import Result
from vtm.benchmark.report import Report, machine
from vtm.benchmark.rows import Row

PLAIN = Row("none", plain=True), Result(8.0, 4 * 10**9, 800 * 10**9, 10**8, 5 * 10**9, 200e9)
FUSED = Row("none"), Result(4.0, 10**9, 800 * 10**9, 10**8, 2 * 10**9, 200e9)
OURS = (
    Row("learnable", overrides=("merging.partition_factor=2",)),
    Result(1.0, 10**9, 100 * 10**9, 10**8, 10**9, 200e9, {"% in merging": 6.0}),
)
UNFIT = (
    Row("none", plain=True, training=True),
    Result(flop=900 * 10**9, needed_bytes=32 * 10**9, problem="needs 32.0 GB, 20.0 GB are free"),
)


@pytest.fixture
def report() -> Report:
    entries = [("First", *PLAIN), ("First", *FUSED), ("Second", *OURS), ("Second", *UNFIT)]
    return Report({"cpu": "A CPU, 2 cores", "torch": "torch 2"}, "Clips of 4 × 2 × 2 × 8 features", entries)


def test_numbers_and_ratios(report):
    assert report.cells(*OURS) == {
        "samples/s": 1.0,
        "ms": 1000.0,
        "peak GB": 1.0,
        "GFLOP": 100.0,
        "GB moved at least": 0.1,
        "% of matrix rate": 50.0,
        "× plain none": 8.0,
        "× fused none": 4.0,
    }


def test_ratios_are_to_the_same_kind_of_row_only(report):
    for other in (Row("learnable", training=True), Row("learnable", batch=2), Row("learnable", precision="bf16-mixed")):
        assert report.cells(other, OURS[1])["× fused none"] is None
    assert report.cells(Row("learnable", compiled=True), OURS[1])["× fused none"] == 4.0


def test_ratios_prefer_the_same_windows(report):
    row = Row("none", overrides=("model.window_frames=[4]",))
    report.entries.append(("Second", row, Result(6.0)))
    windows = ("merging.partition_factor=2", "model.window_frames=[4]")
    assert report.cells(Row("learnable", overrides=windows), OURS[1])["× fused none"] == 6.0


def test_the_markdown(report):
    lines = report.markdown().splitlines()
    assert "A CPU, 2 cores; torch 2." in lines
    assert lines.count("## First") == lines.count("## Second") == 1
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    assert [
        "none, plain attention",
        "0.125",
        "8000",
        "4",
        "800",
        "0.1",
        "50",
        "1",
        "0.5",
        "",
    ] in rows  # of fused
    assert ["learnable, γ = 2", "1", "1000", "1", "100", "0.1", "50", "8", "4", "6 % in merging"] in rows
    problem = "needs 32.0 GB, 20.0 GB are free"
    assert ["none, plain attention, training", "", "", "", "900", "", "", "", "", problem] in rows


def test_a_table_is_aligned(report):
    lines = report.table("Second").splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert [cell[0] + cell[-1] for cell in lines[1].strip("|").split("|")] == [":-", *["-:"] * 8, ":-"]


def test_a_bar_in_a_name_does_not_divide_its_cell(report):
    report.entries.append(("Third", Row("learnable", overrides=("merging.merge_count=0.5",)), Result(1.0)))
    row = report.table("Third").splitlines()[-1]
    assert row.startswith(r"| learnable, R/\|S\| = 0.5 | ")
    assert row.replace(r"\|", "").count("|") == 11


def test_the_legend_lists_numbers_that_are_not_medians(report):
    assert "for long videos the time of a single call after one with a short clip" in report.markdown()


def test_the_files_are_replaced_whole(report, tmp_path):
    report.write(tmp_path / "a")
    report.entries.pop()
    report.write(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["benchmark.csv", "benchmark.md"]
    with (tmp_path / "a" / "benchmark.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["none, plain attention", "none, fused attention", "learnable, γ = 2"]
    assert rows[2]["table"] == "Second"
    assert float(rows[2]["× plain none"]) == 8
    assert float(rows[2]["needed GB"]) == 1
    assert rows[2]["remarks"] == "6 % in merging"
    assert rows[2]["cpu"] == "A CPU, 2 cores"


def test_the_machine_is_named():
    named = machine("cpu", 3, "abc")
    assert named["cpu"].endswith("cores")
    assert named["threads"] == "3 threads"
    assert named["python"] == f"Python {platform.python_version()}"
    assert named["torch"] == f"torch {torch.__version__}"
    assert named["commit"] == "vtm abc"
    assert "gpu" not in named

"""The benchmark measures every row, at a size that takes no time."""

import pytest
import torch

from vtm.benchmark import ROWS, Setting, main, measure, network

SMALL = Setting(
    frames=4, height=4, width=4, channels=16, heads=2, window_frames=(2, 4), batch=2, repeats=1, threads=1, device="cpu"
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_measured(row):
    found = measure(row, SMALL)
    assert found["seconds"] > 0
    assert found["gigabytes"] >= 0
    assert bool(found["details"]) == row.merges
    if row.merges and not row.training:
        assert 0 < found["details"]["% in partition, match and merge"] < 100


def test_the_default_is_the_paper_s_network():
    paper = Setting(60, 16, 16, 1024, 8, (6, 30, 60), 1, 1, 1, "cpu")
    with torch.device("meta"):
        plans = network(paper, merges=True).plan(60, 16, 16)
    assert [plan.out_channels for plan in plans] == [512, 256, 256]
    assert [plan.windows * plan.num_tokens for plan in plans] == [15360, 5120, 1708]


def test_the_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vtm.benchmark._in_a_process", measure)
    size = (
        "--frames 2 --height 2 --width 2 --channels 8 --heads 2 --window-frames 2 --repeats 1 --threads 1 --device cpu"
    )
    monkeypatch.setattr("sys.argv", ["benchmark", *size.split(), "--out", str(tmp_path / "table.md")])
    main()
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"| {row.name} |" in table for row in ROWS)
    assert table.strip() in capsys.readouterr().out

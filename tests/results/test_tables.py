"""Which runs share a row, and the numbers of a row, compared with manual calculations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtm.results.runs import read_runs
from vtm.results.tables import Table, clips_per_second, group_runs, peak_gb, spread, tokens_kept

Write = Callable[..., Path]


@pytest.fixture
def tables(tmp_path: Path) -> Callable[[], list[Table]]:
    return lambda: group_runs(read_runs([tmp_path / "runs"], checkpoint="best")[0])


def shown(table: Table) -> dict[tuple[str, ...], list[int]]:
    """Return the seeds of each row, by its setting."""
    return {row.setting: [run.seed for run in row.runs] for row in table.rows}


def test_two_settings_of_three_seeds(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    values = {"none": (0.3, 0.6, 0.9), "uniform": (0.5, 0.5, 0.8)}
    for job, (merging, seed) in enumerate((m, s) for m in values for s in range(3)):
        write_run(str(job), values[merging][seed], merging=merging, seed=seed)
    (table,) = tables()
    assert (table.experiment, table.metric, table.columns) == ("needle", "accuracy", ("merging",))
    assert shown(table) == {("none",): [0, 1, 2], ("uniform",): [0, 1, 2]}
    none, uniform = table.rows
    assert none.score == pytest.approx((0.6, 0.3))  # √((0.09 + 0 + 0.09) / 2)
    assert uniform.score == pytest.approx((0.6, math.sqrt(0.03)))  # √((0.01 + 0.01 + 0.04) / 2)
    assert (none.worst.seed, none.best.seed) == (0, 2)
    assert (uniform.worst.seed, uniform.best.seed) == (0, 2)
    assert none.mean(lambda run: run.val["value"]) == pytest.approx(0.65)


def test_one_seed_has_no_deviation() -> None:
    assert spread([0.4]) == (0.4, None)


def test_cost_is_the_median_of_the_seeds_that_have_it(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    for seed, (rate, peak) in enumerate([(10.0, None), (30.0, 2.0), (11.0, 4.0)]):
        cost = {"clips_per_second": rate, "peak_gb": peak, "tokens": [400, 90]}
        write_run(f"{seed}", 0.5, seed=seed, test={"cost": cost})
    write_run("3", 0.5, seed=3, test={"cost": {}})
    ((row,),) = (table.rows for table in tables())
    assert [row.median(of) for of in (clips_per_second, peak_gb, tokens_kept)] == [11.0, 3.0, 22.5]


def test_of_errors_the_lowest_is_best_and_what_diverged_is_worst(
    write_run: Write, tables: Callable[[], list[Table]]
) -> None:
    for seed, value in enumerate([2.0, math.nan, 1.0, 7.0]):
        write_run(f"{seed}", value, seed=seed, test={"metric": "mse"})
    (table,) = tables()
    assert table.lower_is_better
    assert (table.rows[0].best.seed, table.rows[0].worst.seed) == (2, 1)
    assert math.isnan(table.rows[0].score.mean)


def test_a_default_stands_beside_what_overrides_it(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    lr = {"optimizer": {"lr": 0.01}}
    write_run("0", 0.5, merging="uniform", overrides=["experiment=needle"])
    write_run("1", 0.5, merging="none", overrides=["experiment=needle", "merging=none"])
    write_run("2", 0.5, merging="none", overrides=["merging=none", "++optimizer.lr=1e-2"], config=lr)
    (table,) = tables()
    assert table.columns == ("merging", "optimizer.lr")
    assert list(shown(table)) == [("uniform", "0.001"), ("none", "0.001"), ("none", "0.01")]
    assert [row.label for row in table.rows] == ["uniform, lr 0.001", "none, lr 0.001", "none, lr 0.01"]


def test_a_seed_that_was_resumed_stays_in_its_row(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    write_run("0", 0.5, overrides=["experiment=needle"])
    resumed = {"ckpt_path": "runs/1/checkpoints/last.ckpt"}
    write_run("1", 0.5, seed=1, overrides=["experiment=needle", "seed=1", "ckpt_path=runs/1"], config=resumed)
    (table,) = tables()
    assert (table.columns, shown(table)) == ((), {(): [0, 1]})


def test_where_a_run_was_done_makes_no_setting(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    for seed, where in enumerate(("here", "there")):
        given = [f"seed={seed}", f"data.root={where}", f"+data.num_workers={seed}", "logger=csv", "ablation=strategy"]
        config = {"data": {"root": where, "seed": seed, "num_workers": seed}, "logger": {"csv": where}}
        resumed = {"ckpt_path": None if seed else "runs/last.ckpt"}
        write_run(f"{seed}", 0.5, seed=seed, overrides=given[: 3 + seed], config=config | resumed)
    (table,) = tables()
    assert (table.columns, shown(table)) == ((), {(): [0, 1]})
    assert table.rows[0].label == "needle"


def test_settings_that_differ_without_an_override_are_never_averaged(
    write_run: Write, tables: Callable[[], list[Table]]
) -> None:
    write_run("0", 0.5, seed=0, config={"optimizer": {"lr": 0.001}})
    write_run("1", 0.9, seed=1, config={"optimizer": {"lr": 0.003}})  # another version had another default value
    (table,) = tables()
    assert table.columns == ("optimizer.lr",)
    assert shown(table) == {("0.001",): [0], ("0.003",): [1]}


def test_without_overrides_the_settings_tell(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    for job, (merging, seed) in enumerate((m, s) for m in ("none", "uniform", "center") for s in range(2)):
        lr = {"optimizer": {"lr": 0.01 if merging == "none" else 0.001}}
        write_run(f"{job}", 0.5, merging=merging, seed=seed, composed=False, config=lr)
    (table,) = tables()
    assert table.columns == ("merging._target_", "optimizer.lr", "merging.partition._target_")
    assert shown(table) == {
        ("vtm.merging.NoMerger", "0.01", "–"): [0, 1],
        ("vtm.merging.TokenMerger", "0.001", "vtm.merging.uniform_partition"): [0, 1],
        ("vtm.merging.TokenMerger", "0.001", "vtm.merging.center_partition"): [0, 1],
    }


@pytest.mark.parametrize(
    "other",
    [
        {"experiment": "other"},
        {"task": "other"},
        {"test": {"ids_sha256": "e" * 64}},
        {"val": {"ids_sha256": "e" * 64}},
        {"test": {"metric": "mse"}},
    ],
)
def test_what_was_scored_on_other_videos_gets_a_table_of_its_own(
    write_run: Write, tables: Callable[[], list[Table]], other: dict[str, Any]
) -> None:
    write_run("0", 0.5, seed=0)
    write_run("1", 0.9, seed=1, **other)
    write_run("2", 0.7, seed=2)
    first, second = tables()
    assert (first.rows[0].score.mean, second.rows[0].score.mean) == (pytest.approx(0.6), pytest.approx(0.9))


def test_of_the_same_seed_twice_the_later_counts(write_run: Write, tables: Callable[[], list[Table]]) -> None:
    for name, value in (("2030-01-01", 0.1), ("2030-01-02", 0.7)):
        write_run(name, value, seed=4)
    write_run("2030-01-03", 0.9, seed=5)
    (table,) = tables()
    assert table.rows[0].score.mean == pytest.approx(0.8)
    ((earlier, later),) = table.superseded
    assert (earlier.folder.name, later.folder.name) == ("2030-01-01", "2030-01-02")

"""The Pareto front against a loop, pictures in which no name covers another, and confusion matrices."""

import random
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from vtm.results.plots import draw, draw_confusion, pareto_front
from vtm.results.runs import read_runs
from vtm.results.tables import Table, group_runs

Write = Callable[..., Path]


def beaten(point: tuple[float, float], others: list[tuple[float, float]], lower: tuple[bool, bool]) -> bool:
    def better(a: float, b: float, lower: bool) -> bool:
        return a < b if lower else a > b

    for other in others:
        no_worse = [not better(a, b, low) for a, b, low in zip(point, other, lower, strict=True)]
        if all(no_worse) and other != point:
            return True
    return False


@pytest.mark.parametrize("lower", list(product([True, False], repeat=2)))
def test_the_pareto_front_is_what_a_loop_over_all_pairs_leaves(lower: tuple[bool, bool]) -> None:
    rng = random.Random(0)
    for size in (1, 2, 5, 30):
        for _ in range(20):
            points = [(float(rng.randint(0, 9)), float(rng.randint(0, 9))) for _ in range(size)]  # with ties
            expected = sorted({point for point in points if not beaten(point, points, lower)})
            assert pareto_front(points, lower_is_better=lower) == expected
    assert pareto_front([], lower_is_better=lower) == []


@pytest.fixture
def table(tmp_path: Path, write_run: Write, request: pytest.FixtureRequest) -> Table:
    """A table of eight settings (or a given number) with similar results, one of which keeps all tokens."""
    for setting in range(getattr(request, "param", 8)):
        for seed in range(2):
            cost = {
                "device": "a card", "inputs": "features", "batch_size": 16, "peak_gb": 0.05 if setting else 0.2,
                "clips_per_second": 600.0 + 5 * setting + seed, "tokens": [100, 33 if setting else 100],
            }  # fmt: skip
            write_run(
                f"{setting}_{seed}", 0.3 + 0.01 * setting + 0.02 * seed, seed=seed, test={"cost": cost},
                overrides=[f"optimizer.lr={setting}"], config={"optimizer": {"lr": setting}},
            )  # fmt: skip
    (table,) = group_runs(read_runs([tmp_path / "runs"], checkpoint="best")[0])
    return table


def test_names_lie_within_the_panels_and_cover_neither_each_other_nor_a_point(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.update({path.name: figure}))
    draw(table, tmp_path, name="a")
    figure = figures["a_cost.png"]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        notes = [child for child in axes.get_children() if isinstance(child, Annotation)]
        assert sorted(note.get_text() for note in notes) == [f"lr {setting}" for setting in range(8)]
        boxes = [Text.get_window_extent(note, canvas.get_renderer()) for note in notes]  # without the leaders
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        window = axes.get_window_extent()
        assert all(window.contains(*box.min) and window.contains(*box.max) for box in boxes)
        points = axes.transData.transform([note.xy for note in notes])
        assert not any(box.contains(*point) for box in boxes for point in points)


@pytest.mark.parametrize("metric", ["accuracy", "mse"])
@pytest.mark.parametrize("value", [0.5, 0.999, 0.001])
def test_the_axis_of_the_score_spans_the_interval_of_a_run_and_keeps_accuracy_in_range(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch, metric: str, value: float
) -> None:
    test = {"metric": metric, "interval": [value - 0.06, value + 0.06], "cost": {"clips_per_second": 5.0}}
    for seed in range(2):
        write_run(f"{seed}", value + 0.001 * seed, seed=seed, test=test)
    (table,) = group_runs(read_runs([tmp_path / "runs"], checkpoint="best")[0])
    figures = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.update({path.name: figure}))
    draw(table, tmp_path, name="a")
    for low, high in (figures["a_seeds.png"].axes[0].get_xlim(), *(a.get_ylim() for a in figures["a_cost.png"].axes)):
        assert low < value < high
        if metric == "accuracy":
            assert 0 <= low < high <= 1
            assert high - low >= 0.06
        else:
            assert high - low > 0.12 - 1e-9


@pytest.mark.parametrize("table", [2], indirect=True)
def test_pictures_are_written_for_screen_and_print(tmp_path: Path, table: Table) -> None:
    pictures = draw(table, tmp_path / "out", name="1_needle")
    assert [picture.name for picture in pictures] == ["1_needle_seeds.png", "1_needle_cost.png"]
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["1_needle_cost.pdf", "1_needle_cost.png", "1_needle_seeds.pdf", "1_needle_seeds.png"]
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    assert all(content.startswith(starts[name.split(".")[1]]) for name, content in files.items())


def test_without_cost_or_a_finite_score_the_rest_is_drawn(tmp_path: Path, write_run: Write) -> None:
    write_run("0", float("nan"), merging="none")
    write_run("1", 0.5, test={"cost": {"peak_gb": None}})
    (table,) = group_runs(read_runs([tmp_path / "runs"], checkpoint="best")[0])
    assert len(draw(table, tmp_path / "out", name="a")) == 2
    write_run("2", 0.5, experiment="other", test={"cost": {}})
    *_, other = group_runs(read_runs([tmp_path / "runs"], checkpoint="best")[0])
    assert [picture.name for picture in draw(other, tmp_path / "out", name="b")] == ["b_seeds.png"]


@pytest.mark.parametrize("classes", [2, 20, 60])
def test_a_confusion_matrix_is_readable_with_few_and_with_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.append(figure))
    names = [f"a class of {number}$^$ and {'x' * number}" for number in range(classes)]  # no mathematics, and too long
    counts = [[3 if row == column else 0 for column in range(classes)] for row in range(classes)]
    counts[1] = [0] * classes  # a class without videos
    draw_confusion(counts, names, tmp_path / "confusion")
    axes = figures[0].axes[0]
    FigureCanvasAgg(figures[0]).draw()
    assert [text.get_text() for text in axes.texts][:2] == (["3", "0"] if classes <= 20 else [])
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) == classes
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert axes.get_window_extent().width > figures[0].bbox.width / 3


def test_a_confusion_matrix_is_written_for_screen_and_print(tmp_path: Path) -> None:
    draw_confusion([[1, 2], [0, 3]], ["day", "night"], tmp_path / "out" / "confusion")
    files = {file.name: file.read_bytes()[:4] for file in (tmp_path / "out").iterdir()}
    assert files == {"confusion.pdf": b"%PDF", "confusion.png": b"\x89PNG"}

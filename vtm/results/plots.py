"""Draw the score of every seed, the score against its cost with the Pareto front, and the confusion matrix of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vtm.results.runs import Run
from vtm.results.tables import Row, Table, clips_per_second, peak_gb, seconds_per_question, tokens_kept
from vtm.system.atomic import write_atomically

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # text as text
}
# colors that can be told apart with any color vision (Okabe and Ito), and markers for prints in gray
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
_MARKERS = "osD^vPX*"
_GRAY = "0.45"
_MOST_NUMBERED_CLASSES = 20  # of a confusion matrix with a number in each cell
_LONGEST_NAME = 32  # characters of a class name beside a confusion matrix
Boxes = NDArray[np.float64]


class Cost(NamedTuple):
    """A cost that the score is drawn against."""

    name: str
    of: Callable[[Run], float | None]
    lower_is_better: bool


COSTS = (
    Cost("tokens kept (%)", tokens_kept, True),
    Cost("clips per second", clips_per_second, False),
    Cost("peak memory (GB)", peak_gb, True),
    Cost("seconds per question", seconds_per_question, True),
)


def draw(table: Table, folder: Path, *, name: str) -> list[Path]:
    """Draw the plots of a table as PNG and PDF.

    Args:
        table: table to draw.
        folder: folder to write to; it is created if it does not exist.
        name: beginning of the file names.

    Returns:
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(_STYLE):
        figures = {"seeds": _seeds(table)}
        if any(cost.of(run) is not None for run in table.runs for cost in COSTS):
            figures["cost"] = _costs(table)
        for kind, figure in figures.items():
            for suffix in ("pdf", "png"):
                path = folder / f"{name}_{kind}.{suffix}"
                figure.savefig(path, dpi=200)
            written.append(path)
    return written


def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as PNG and PDF, each row in shares of its true class.

    Args:
        counts: videos (K, K) of each true class, by row, and each predicted class, by column.
        names: names of the K classes.
        path: file to write, without its suffix.
    """
    size = len(names)
    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    side = min(15.0, 2.0 + 0.35 * size)  # inches of the matrix
    font = min(9.0, 0.75 * 72 * side / size)  # points, so that the names of neighbors do not touch
    labels = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.grid(visible=False)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        # a name may contain dollar signs, which are not mathematics
        axes.set_xticks(range(size), labels, rotation=90, fontsize=font, parse_math=False)
        axes.set_yticks(range(size), labels, fontsize=font, parse_math=False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        figure.colorbar(image, shrink=0.6, label="share of the true class")
        if size <= _MOST_NUMBERED_CLASSES:
            for row, column in product(range(size), repeat=2):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row][column]), ha="center", va="center", color=color, fontsize=font)
        for suffix in ("pdf", "png"):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=200)
            write_atomically(path.with_name(f"{path.name}.{suffix}"), content.getvalue())


def pareto_front(
    points: Sequence[tuple[float, float]], *, lower_is_better: tuple[bool, bool]
) -> list[tuple[float, float]]:
    """Return the points that no other point dominates, sorted; a dominating point is as good in both and better in one.

    >>> pareto_front([(1, 5), (2, 7), (3, 6), (3, 8)], lower_is_better=(True, False))
    [(1, 5), (2, 7), (3, 8)]
    """
    signs = [1 if lower else -1 for lower in lower_is_better]
    front: list[tuple[float, float]] = []
    best = math.inf
    for first, second in sorted({(signs[0] * a, signs[1] * b) for a, b in points}):
        if second < best:
            best = second
            front.append((signs[0] * first, signs[1] * second))
    return sorted(front)


def _seeds(table: Table) -> Figure:
    """Draw a line for each setting, with a dot for each seed, the mean, and bars of the standard deviation."""
    figure = Figure(figsize=(6.5, 1.1 + 0.38 * len(table.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(axis="y", visible=False)
    for position, row in enumerate(table.rows):
        color, _ = _style(position)
        values = [run.test["value"] for run in row.runs]
        middle = (len(values) - 1) / 2
        heights = [position + 0.3 * (i - middle) / max(1, len(values) - 1) for i in range(len(values))]
        axes.scatter(values, heights, s=22, color=color, alpha=0.75, linewidths=0, zorder=3, clip_on=False)
        mean, sd = row.score
        axes.errorbar(
            mean, position, xerr=sd or 0, color="black", marker="|", markersize=13, capsize=3, lw=1.2, zorder=4
        )
    for name, style, value in (
        ("floor", "--", table.rows[0].mean(lambda run: run.test.get("floor"))),
        ("oracle", ":", table.rows[0].mean(lambda run: run.test.get("details", {}).get("oracle"))),
    ):
        if value is not None:
            axes.axvline(value, color=_GRAY, ls=style, lw=1.2, label=name)
    axes.set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.set_xlim(_score_limits(table, *axes.get_xlim()))
    axes.set_xlabel(f"test {_metric(table)}")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def _costs(table: Table) -> Figure:
    """Draw a panel for each cost, with the standard deviation of the score and the range of the cost over seeds."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    measured = [cost for cost in COSTS if any(cost.of(run) is not None for run in table.runs)]
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    panel_points = [
        [point for position, row in enumerate(table.rows) if (point := _point(position, row, cost))]
        for cost in measured
    ]
    for axes, cost, points in zip(panels, measured, panel_points, strict=True):
        for point in points:
            color, marker = _style(point.position)
            axes.errorbar(
                point.x, point.y, xerr=[[point.x - point.low], [point.high - point.x]], yerr=point.sd, color=color,
                marker=marker, markersize=6, elinewidth=1, capsize=2,
            )  # fmt: skip
        sides = (cost.lower_is_better, table.lower_is_better)
        front = pareto_front([(point.x, point.y) for point in points], lower_is_better=sides)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=_GRAY, ls="--", lw=1, zorder=1, label="Pareto front")
        axes.margins(0.18)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"{cost.name}, {'lower' if cost.lower_is_better else 'higher'} is better")
    panels[0].set_ylabel(f"test {_metric(table)}")
    panels[0].set_ylim(_score_limits(table, *panels[0].get_ylim()))  # of all panels
    handles = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    if handles:
        figure.legend(handles=handles[:1], loc="outside upper right", frameon=False)
    canvas.draw()  # the layout must be final before the labels are placed
    for axes, points in zip(panels, panel_points, strict=True):
        _put_labels(axes, points, [row.label for row in table.rows], canvas)
    return figure


def _score_limits(table: Table, low: float, high: float) -> tuple[float, float]:
    """Widen the limits of a score to the mean 95 % interval of a run, so that noise looks small; keep shares in [0, 1].

    Args:
        table: table that is drawn.
        low: lower limit of the axis that fits everything.
        high: upper limit.
    """
    widths = [width for run in table.runs if math.isfinite(width := run.test["interval"][1] - run.test["interval"][0])]
    missing = max(0.0, sum(widths) / max(1, len(widths)) - (high - low))
    low, high = low - missing / 2, high + missing / 2
    return (low, high) if table.lower_is_better else (max(low, 0.0), min(high, 1.0))


class _Point(NamedTuple):
    position: int  # of the row
    x: float
    low: float
    high: float
    y: float
    sd: float


def _point(position: int, row: Row, cost: Cost) -> _Point | None:
    """Return the point of a row in a panel; None without a finite score or a cost."""
    costs = [value for run in row.runs if (value := cost.of(run)) is not None]
    x = row.median(cost.of)
    mean, sd = row.score
    if x is None or not math.isfinite(mean):
        return None
    return _Point(position, x, min(costs), max(costs), mean, sd or 0.0)


def _put_labels(axes: Axes, points: Sequence[_Point], names: Sequence[str], canvas: FigureCanvasAgg) -> None:
    """Write each name near its point, where the name and its leader line cover least of what is already drawn."""
    pixels = axes.figure.dpi / 72  # pixels per typographic point
    inside = np.array([axes.get_window_extent().extents])
    centers = [np.array(axes.transData.transform((point.x, point.y))) for point in points]
    lines = [np.array(line.get_xydata()) for line in axes.lines]
    front = [_boxes(axes.transData.transform(line), pixels) for line in lines if len(line) > 1]
    marks = [_mark(axes, point, center, pixels) for point, center in zip(points, centers, strict=True)]
    labels: list[Boxes] = []
    leaders: list[Boxes] = []
    for number in sorted(range(len(points)), key=lambda number: -points[number].y):
        point, center = points[number], centers[number]
        color, _ = _style(point.position)
        note = axes.annotate(
            names[point.position], (point.x, point.y), xytext=(0, 0), textcoords="offset points", ha="center",
            va="center", fontsize=8, arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 0},
        )  # fmt: skip
        note.set_in_layout(False)
        size = note.get_window_extent(canvas.get_renderer())
        half = np.array([size.width / 2 + pixels, size.height / 2])
        others = np.concatenate([*marks[:number], *marks[number + 1 :], *labels, *leaders, np.empty((0, 4))])
        everything = np.concatenate([others, marks[number], *front])
        choices: list[tuple[float, int, Boxes, Boxes, Boxes]] = []
        for gap, angle in product(range(5, 75, 5), (math.pi / 8 * step for step in range(16))):
            offset = np.array([math.cos(angle), math.sin(angle)]) * (half + gap * pixels)
            box = np.concatenate([center + offset - half, center + offset + half])
            leader = _boxes(np.array([center, center + offset]), pixels)
            crossed = sum(_overlap(part, others) for part in leader)
            outside = 4 * half.prod() - _overlap(box, inside)
            cost = 5 * (_overlap(box, everything) + crossed) + 10 * outside + gap
            choices.append((cost, len(choices), offset, box, leader))
        _, _, offset, box, leader = min(choices, key=lambda choice: choice[:2])
        note.xyann = tuple(offset / pixels)
        labels.append(box[None])
        leaders.append(leader)


def _mark(axes: Axes, point: _Point, center: Boxes, pixels: float) -> Boxes:
    """Cover a point and its error bars by boxes (k, 4)."""
    bars = [
        [(point.low, point.y), (point.high, point.y)],
        [(point.x, point.y - point.sd), (point.x, point.y + point.sd)],
    ]
    boxes = [_boxes(axes.transData.transform(bar), pixels) for bar in bars]
    return np.concatenate([*boxes, [[*(center - 4 * pixels), *(center + 4 * pixels)]]])


def _boxes(line: Boxes, width: float) -> Boxes:
    """Cover a line through points (n, 2) by small boxes (k, 4), as left, bottom, right and top."""
    share = np.linspace(0, 1, 20)[:, None]
    along = np.concatenate([start + share * (end - start) for start, end in pairwise(line)])
    return np.concatenate([along - width, along + width], axis=1)


def _overlap(box: Boxes, others: Boxes) -> float:
    """Return the total area that a box (4,) shares with others (k, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(sides.clip(min=0).prod(axis=1).sum())


def _style(position: int) -> tuple[str, str]:
    """Return the color and the marker of a row."""
    return _COLORS[position % len(_COLORS)], _MARKERS[(position + position // len(_COLORS)) % len(_MARKERS)]


def _metric(table: Table) -> str:
    return f"{table.metric}, lower is better" if table.lower_is_better else table.metric

"""Report of a test: the scores in `results.json` as a table, with the published figures of the task."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from vtm.results.record import NOTE
from vtm.tasks import lower_is_better

_SELECTIONS = {
    "val": "best epoch chosen on the validation videos",
    "test": (
        "best epoch chosen on the TEST videos, as ViS4mer does on Breakfast and COIN: its score is optimistic, "
        "the score of the last epoch is not"
    ),
}
_SHOWN_IDS = 5


def results_report(run: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report of a run: its scores, the videos they were computed on, and the published figures.

    Args:
        run: fields of `results.json` besides the scores.
        scores: evaluations by their name in the file; at least one test.
    """
    tests = {name: score for name, score in scores.items() if name.startswith("test")}
    *_, test = tests.values()
    train = test["train_videos"]
    lines = [
        f"{run['experiment']}, seed {run['seed']}; {train['n']} training videos, {train['missing']} missing",
        _SELECTIONS[test["selection"]]
        if test["checkpoint"] != "given"
        else "a given checkpoint or a ready model, not trained in this run",
        results_table(scores),
    ]
    for stage, score in {name.removesuffix("_last"): score for name, score in scores.items()}.items():
        if ids := score["missing_ids"]:
            more = f" and {len(ids) - _SHOWN_IDS} more, all in the file" if len(ids) > _SHOWN_IDS else ""
            lines.append(f"missing in {stage}: {', '.join(ids[:_SHOWN_IDS])}{more}")
        if videos := score["damaged_videos"]:
            lines.append(f"damaged in {stage}: {videos} videos, with frames that could not be decoded")
        if (share := score.get("motion_from_codec", 1.0)) < 1:
            lines.append(f"motion in {stage}: from the codec in {share:.1%} of the steps, else from frame differences")
    for name, score in scores.items():
        if details := score.get("details"):
            lines.append(f"details of {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in details.items()))
    if figures := run["published"]["figures"]:
        lines += ["", *_comparison(tests, figures)]
    return "\n".join(lines)


def results_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores in `results.json` as an aligned table, one evaluation per row.

    >>> score = {"metric": "accuracy", "value": 0.75, "floor": 0.5, "interval": [0.3, 0.95], "n": 4, "missing": 0,
    ...          "macro_accuracy": 0.8, "clip_level": {"value": 0.7, "n": 9}, "epoch": 3, "ids_sha256": "5feceb66ffc8"}
    >>> print(results_table({"test": score}))
          epoch    metric   value     95 % interval   floor   macro  clip level  videos  missing  ids sha256
    test      3  accuracy  0.7500  0.3000 to 0.9500  0.5000  0.8000      0.7000       4        0    5feceb66
    """
    rows = [["", "epoch", "metric", "value", "95 % interval", "floor", "macro", "clip level", "videos", "missing"]]
    rows[0].append("ids sha256")
    for name, score in scores.items():
        low, high = score["interval"]
        rows.append(
            [
                name,
                _or_dash(score["epoch"], ""),
                score["metric"],
                f"{score['value']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{score['floor']:.4f}",
                _or_dash(score.get("macro_accuracy"), ".4f"),
                f"{score['clip_level']['value']:.4f}",
                str(score["n"]),
                str(score["missing"]),
                score["ids_sha256"][:8],
            ]
        )
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=["right"] * len(rows[0]))


def published_figures(figures: Mapping[str, Mapping[str, Any]], *, metric: str) -> list[str]:
    """Format the published figures, best first.

    >>> published_figures({"A": {"value": 4.18}, "B": {"value": 2.9, "n": 86, "remark": "merged"}}, metric="mse")
    ['B 2.9 (n=86, merged)', 'A 4.18']
    """
    sign = 1 if lower_is_better(metric) else -1
    listed = []
    for method, figure in sorted(figures.items(), key=lambda item: (sign * item[1]["value"], item[0])):
        details = [f"n={figure['n']}"] if "n" in figure else []
        details += [figure["remark"]] if "remark" in figure else []
        listed.append(f"{method} {figure['value']:g}" + (f" ({', '.join(details)})" if details else ""))
    return listed


def _comparison(tests: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines with our tests, followed by the published figures, best first."""
    ours = []
    for name, test in tests.items():
        bias = ", selected on test" if test["selection"] == "test" and test["checkpoint"] != "last" else ""
        ours.append(f"{name} {test['value']:.4f} (n={test['n']}{bias})")
    published = published_figures(figures, metric=test["metric"])
    unbroken = ["; ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items) for items in (ours, published)]
    indent = " " * 11
    lines = [
        textwrap.fill(text, 120, initial_indent=f"{label:<11}", subsequent_indent=indent, break_on_hyphens=False)
        for label, text in zip(("ours", "published"), unbroken, strict=True)
    ]
    return [*(line.replace("\N{NO-BREAK SPACE}", " ") for line in lines), f"{indent}{NOTE}"]


def _or_dash(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)

"""The results of a list of questions as a table, with published figures below, which are never mixed with ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from vtm.results.summary import published_figures

NOTE = "Their models, prompts and frames are not those of this run: a difference is not one of the methods alone."
_SHOWN = 5


def results_summary(results: Mapping[str, Any]) -> str:
    """Return the content of `results.json` as text.

    Args:
        results: content of `results.json`.
    """
    lines = [_table(results)]
    tokens = results["tokens"]
    if tokens["nothing_merged"]:
        lines.append(f"nothing was merged: all {tokens['before']:.0f} tokens of a video were kept, on average")
    if cyclic := results.get("cyclic"):
        lines.append(
            f"over {cyclic['orders']} orders of the options: mean {cyclic['mean']:.4f}, min {cyclic['min']:.4f}, max "
            f"{cyclic['max']:.4f}; right in all orders {cyclic['all_correct']:.4f}"
        )
    for kind, groups in results["groups"].items():
        listed = ", ".join(f"{name} {group['value']:.3f} (n={group['n']})" for name, group in groups.items())
        lines.append(_filled(f"{kind}: ", listed))
    if results["unscored"]:
        lines.append(f"{results['unscored']} questions without a public answer were answered and not scored")
    errors = [f"{video} ({reason})" for video, reason in results["errors"].items()]
    for name, values in (("missing", results["missing_videos"]), ("errors", errors)):
        if values:
            more = f" and {len(values) - _SHOWN} more, all in results.json" if len(values) > _SHOWN else ""
            lines.append(f"{name}: {', '.join(values[:_SHOWN])}{more}")
    if figures := results["published"]["figures"]:
        listed = "; ".join(
            item.replace(" ", "\N{NO-BREAK SPACE}") for item in published_figures(figures, metric="accuracy")
        )
        lines += ["", _filled("published: ", listed).replace("\N{NO-BREAK SPACE}", " "), f"           {NOTE}"]
    return "\n".join(lines)


def _table(results: Mapping[str, Any]) -> str:
    low, high = results["interval"]
    floor, tokens = results["floor"], results["tokens"]
    row = {
        "": results["experiment"],
        "accuracy": f"{results['value']:.4f}",
        "95 % interval": f"{low:.4f} to {high:.4f}",
        "chance": f"{floor['chance']:.4f}",
        "majority": f"{floor['majority']:.4f} ({floor['majority_letter']})",
        "tokens kept": f"{tokens['after']:.0f} of {tokens['before']:.0f}, {tokens['kept']:.1%}",
        "s/question": f"{results['seconds_per_question']:.3g}",
        "questions": str(results["n"]),
        "videos": str(results["videos"]),
        "missing": str(results["missing"]),
        "errors": str(len(results["errors"])),
        "hash": results["hash"][:8],
    }
    return tabulate(
        [list(row), list(row.values())], tablefmt="plain", disable_numparse=True, colalign=["right"] * len(row)
    )


def _filled(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        120,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_on_hyphens=False,
        break_long_words=False,
    )

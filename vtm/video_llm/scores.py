"""Scores of answered questions: accuracy with its interval and floor, by groups and option orders, and their cost."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vtm.results.record import ids_sha256
from vtm.tasks.intervals import bootstrap_interval
from vtm.video_llm.evaluation import orders
from vtm.video_llm.questions.question import Question

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Answers = Mapping[tuple[str, int], Mapping[str, Any]]


def score_answers(questions: Sequence[Question], answers: Answers, *, cyclic: bool) -> dict[str, Any]:
    """Compute the scores in `results.json`.

    Args:
        questions: questions of the command.
        answers: answers by id and order; those in the official order are scored.
        cyclic: whether the questions were answered in all rotations of their options too.

    Returns:
        The accuracy of the questions whose answer is public, with its bootstrap interval over videos and its floor; the
        accuracy of groups; with `cyclic`, that over rotations; the share of tokens kept and the seconds per question.

    Raises:
        ValueError: if no question with a public answer was answered.
    """
    answered = [question for question in questions if (question.id, 0) in answers]
    scored = [question for question in answered if question.answer is not None]
    if not scored:
        raise ValueError(f"none of {len(questions)} questions has both a public answer and an answer of the model")
    right = [float(_is_right(question, answers, 0)) for question in scored]
    low, high = bootstrap_interval(torch.tensor(right), clusters=[question.video for question in scored])
    scores = {
        "metric": "accuracy",
        "value": statistics.fmean(right),
        "interval": [low, high],
        "n": len(scored),
        "videos": len({question.video for question in scored}),
        "unscored": len(answered) - len(scored),
        "floor": _floor(scored),
        "ids_sha256": ids_sha256(question.id for question in scored),
        "groups": _groups(scored, right),
    }
    if cyclic:
        scores["cyclic"] = _rotations(scored, answers)
    lines = [answers[question.id, 0] for question in answered]
    return {
        **scores,
        "tokens": _tokens(lines),
        "seconds_per_question": statistics.fmean(line["seconds"] for line in lines),
    }


def _is_right(question: Question, answers: Answers, order: int) -> bool:
    return bool(answers[question.id, order]["choice"] == question.answer)


def _floor(scored: Sequence[Question]) -> dict[str, Any]:
    """Return the accuracy of guessing, and of always choosing the letter that is right most often."""
    counts = Counter(question.answer for question in scored if question.answer is not None)
    best, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "chance": statistics.fmean(1 / len(question.options) for question in scored),
        "majority": count / len(scored),
        "majority_letter": _LETTERS[best],
    }


def _groups(scored: Sequence[Question], right: Sequence[float]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the accuracy and the number of questions of each group, by kind of group."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for question, value in zip(scored, right, strict=True):
        for kind, name in question.groups.items():
            found[kind][name].append(value)
    return {
        kind: {name: {"value": statistics.fmean(values), "n": len(values)} for name, values in sorted(groups.items())}
        for kind, groups in found.items()
    }


def _rotations(scored: Sequence[Question], answers: Answers) -> dict[str, Any] | None:
    """Return the accuracy over rotations of the options; None if no question was answered in all of them.

    There are as many rotations as the longest question has options; a shorter one begins again with its first.
    """
    complete = [
        question
        for question in scored
        if all((question.id, order) in answers for order in orders(question, cyclic=True))
    ]
    if not complete:
        return None
    rows = [[_is_right(question, answers, order) for order in orders(question, cyclic=True)] for question in complete]
    count = max(map(len, rows))
    values = [statistics.fmean(row[order % len(row)] for row in rows) for order in range(count)]
    return {
        "n": len(complete),
        "orders": count,
        "values": values,
        "mean": statistics.fmean(values),
        "min": min(values),
        "max": max(values),
        "all_correct": statistics.fmean(map(all, rows)),
    }


def _tokens(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the visual tokens of a question before and after, and the share that is kept."""
    before, after = ([line[f"tokens_{when}"] for line in lines] for when in ("before", "after"))
    kept = torch.tensor([new / old for old, new in zip(before, after, strict=True)], dtype=torch.float64)
    quantiles = kept.quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    return {
        "before": statistics.fmean(before),
        "after": statistics.fmean(after),
        "kept": float(kept.mean()),
        "kept_quantiles": {str(level): value for level, value in zip(_QUANTILES, quantiles, strict=True)},
        "nothing_merged": before == after,
    }

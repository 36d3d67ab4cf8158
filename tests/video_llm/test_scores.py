import random
from pathlib import Path
from typing import Any

import pytest
import torch

from vtm.results.record import ids_sha256
from vtm.video_llm.questions.question import Question
from vtm.video_llm.scores import score_answers
from vtm.video_llm.summary import results_summary


def question(id: str, video: str, answer: int | None, *, options: int = 4, **groups: str) -> Question:
    return Question(id, video, Path(video), "?", tuple("abcdefg"[:options]), answer, groups)


def answered(choices: dict[tuple[str, int], int], *, before: int = 64, after: int = 32) -> dict[tuple[str, int], Any]:
    cost = {"tokens_before": before, "tokens_after": after, "seconds": 0.5}
    return {key: {"choice": choice, **cost} for key, choice in choices.items()}


def test_accuracy_floor_groups_and_ids():
    questions = [
        question("q1", "v1", 2, type="x"),
        question("q2", "v1", 2, type="y"),
        question("q3", "v2", 1, options=5, type="x"),
        question("q4", "v3", None),
        question("q5", "v4", 0),
    ]
    scores = score_answers(questions, answered({("q1", 0): 2, ("q2", 0): 0, ("q3", 0): 1, ("q4", 0): 3}), cyclic=False)
    assert scores["value"] == pytest.approx(2 / 3)
    assert (scores["n"], scores["videos"], scores["unscored"]) == (3, 2, 1)
    assert scores["floor"] == {
        "chance": pytest.approx((1 / 4 + 1 / 4 + 1 / 5) / 3),
        "majority": pytest.approx(2 / 3),
        "majority_letter": "C",
    }
    assert scores["groups"] == {"type": {"x": {"value": 1.0, "n": 2}, "y": {"value": 0.0, "n": 1}}}
    assert scores["ids_sha256"] == ids_sha256(["q1", "q2", "q3"])
    assert "cyclic" not in scores


def test_the_interval_is_that_of_a_bootstrap_over_videos():
    chance = random.Random(0)
    questions = [question(f"q{number}", f"v{number // 4}", chance.randrange(4)) for number in range(60)]
    easy = {f"v{number}": chance.random() < 0.5 for number in range(15)}  # the questions of a video are alike
    choices = {(q.id, 0): q.answer if easy[q.video] or chance.random() < 0.1 else 9 for q in questions}
    scores = score_answers(questions, answered(choices), cyclic=False)
    groups = [[float(choices[q.id, 0] == q.answer) for q in questions if q.video == video] for video in easy]
    means = []
    for _ in range(4000):
        drawn = [value for _ in groups for value in chance.choice(groups)]
        means.append(sum(drawn) / len(drawn))
    low, high = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert scores["interval"] == pytest.approx([low, high], abs=0.03)
    assert high - low > 0.4  # 0.25 if the questions were independent


def test_rotations_are_scored_together():
    questions = [question("q1", "v1", 0, options=2), question("q2", "v2", 1, options=3), question("q3", "v3", 0)]
    choices = {("q1", 0): 0, ("q1", 1): 1, ("q2", 0): 1, ("q2", 1): 1, ("q2", 2): 1, ("q3", 0): 0, ("q3", 1): 0}
    cyclic = score_answers(questions, answered(choices), cyclic=True)["cyclic"]
    assert (cyclic["n"], cyclic["orders"]) == (2, 3)  # q3 is not complete
    assert cyclic["values"] == [1.0, 0.5, 1.0]  # the third of q1 is its first
    assert (cyclic["mean"], cyclic["min"], cyclic["max"]) == (pytest.approx(2.5 / 3), 0.5, 1.0)
    assert cyclic["all_correct"] == 0.5
    assert score_answers(questions[2:], answered(choices), cyclic=True)["cyclic"] is None


def test_tokens_and_seconds_are_those_of_the_official_order():
    questions = [question(f"q{number}", f"v{number}", 0) for number in range(5)]
    answers = {
        (f"q{number}", 0): {"choice": 0, "tokens_before": 100, "tokens_after": 20 * number + 20, "seconds": number}
        for number in range(5)
    }
    answers |= answered({("q1", 1): 0}, after=0)
    scores = score_answers(questions, answers, cyclic=False)
    assert scores["seconds_per_question"] == 2
    tokens = scores["tokens"]
    assert (tokens["before"], tokens["after"], tokens["kept"]) == (100, 60, pytest.approx(0.6))
    assert tokens["kept_quantiles"] == pytest.approx({"0.05": 0.24, "0.25": 0.4, "0.5": 0.6, "0.75": 0.8, "0.95": 0.96})
    assert not tokens["nothing_merged"]


def test_without_a_public_answer_there_is_no_score():
    with pytest.raises(ValueError, match="none of 1 questions has both a public answer and an answer of the model"):
        score_answers([question("q", "v", None)], answered({("q", 0): 0}), cyclic=False)


def test_the_summary_marks_what_was_not_merged_and_names_errors():
    scores = score_answers([question("q", "v", 0)], answered({("q", 0): 0}, after=64), cyclic=True)
    errors = {f"v{number}": "cannot be read" for number in range(7)}
    figures = {"DYTO 7B": {"value": 0.657, "remark": "not reproducible here"}, "DYTO 8B": {"value": 0.814}}
    run = {"experiment": "nextqa", "hash": "0123456789", "published": {"figures": figures}}
    text = results_summary({**run, **scores, "missing": 2, "missing_videos": ["w"], "errors": errors})
    assert "nextqa    1.0000  1.0000 to 1.0000  0.2500  1.0000 (A)  64 of 64, 100.0%" in text
    assert "nothing was merged: all 64 tokens of a video were kept" in text
    assert "missing: w\n" in text
    assert "errors: v0 (cannot be read), v1 (cannot be read)" in text
    assert "and 2 more, all in results.json" in text
    assert "published: DYTO 8B 0.814; DYTO 7B 0.657 (not reproducible here)" in text

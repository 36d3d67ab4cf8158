"""The small model and its tests: budgets, empty cells, and a reading of the answers."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (pip install vtm[hf])")

from vtm.benchmark.compressors import accuracy, training
from vtm.benchmark.compressors.accuracy import COMPRESSORS, RATIOS, Answers, budgeted, tables
from vtm.benchmark.compressors.clips import KINDS
from vtm.compressors import Clip
from vtm.video_llm.families import family_of

FRAMES = 14
TOKENS = FRAMES * 144


def ignore(frames: int) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def model():
    return training.train(training.Recipe(stages=((2, 2, 2),)), seed=0, device="cpu", after_step=ignore)


@pytest.fixture(scope="module")
def prompts():
    return training.draw_prompts(2, frames=FRAMES, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip(model, prompts):
    with torch.inference_mode():
        return family_of(model).read(model.base_model, prompts.inputs).clips[0]


def test_the_clip_has_what_compressors_need(clip):
    assert clip.grid == (FRAMES, 12, 12)
    assert clip.encoder is not None
    assert clip.frames is not None
    assert (
        float(torch.nn.functional.normalize(clip.frames).diff(dim=0).norm(dim=1).min()) > 1e-3
    )  # CLS tells frames apart


@pytest.mark.parametrize("name", COMPRESSORS)
def test_everything_is_kept_at_the_whole_budget(clip, name):
    compressed = budgeted(name, TOKENS, 1.0, seed=0)(clip)
    assert torch.equal(compressed.tokens, clip.tokens.flatten(0, 2))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_budget_is_used_up_to_what_the_compressor_can(clip, name, ratio):
    compressed = budgeted(name, TOKENS, ratio, seed=0)(clip)
    kept, budget = len(compressed.tokens), int(ratio * TOKENS)
    frames = len(compressed.position[:, 0].unique())
    whole = {"uniform frames": budget // 144 * 144, "random frames": budget // 144 * 144}
    if name == "dyntok":
        assert kept == pytest.approx(budget, abs=1)  # noise leaves no ties
    elif name == "pool":
        assert FRAMES * (budget // FRAMES) * 0.7 < kept <= budget  # whole rows and columns
    elif name.startswith("dyto"):
        assert frames <= 12
        assert kept == frames * min(144, budget // frames)
    elif name == "tome per frame":
        assert kept == FRAMES * (budget // FRAMES)
    else:
        assert kept == whole.get(name, budget)


def test_random_compressors_choose_anew_for_each_clip_and_the_same_for_each_seed(clip):
    for name in ("random tokens", "random frames"):
        first, again = (budgeted(name, TOKENS, 0.25, seed=3) for _ in range(2))
        index = [first(clip).index for _ in range(3)]
        assert not torch.equal(index[0], index[1])
        assert all(torch.equal(one, again(clip).index) for one in index)
        assert not torch.equal(index[0], budgeted(name, TOKENS, 0.25, seed=4)(clip).index)


def test_the_answer_is_the_option_with_the_largest_logit():
    generator = torch.Generator().manual_seed(0)
    ids = [7, 11, 13, 17, 21]  # first id of the options of each kind, and the end
    logits = torch.randn(5, len(KINDS), ids[-1], generator=generator)
    order = torch.rand(5, len(KINDS), generator=generator).argsort(1)
    chosen = training.chosen_options(logits, order)
    for row in range(5):
        for kind, (start, end) in enumerate(pairwise(ids)):
            asked = order[row].tolist().index(kind)
            values = logits[row, asked, start:end].tolist()
            assert int(chosen[row, kind]) == values.index(max(values))


def test_a_prompt_holds_a_placeholder_per_token_and_all_questions(model, prompts):
    ids = prompts.inputs["input_ids"]
    assert (ids == model.config.video_token_id).sum(1).tolist() == [TOKENS + 1] * 2  # and the newline token
    assert torch.equal(ids[:, -len(KINDS) :] - 3, prompts.order)
    assert prompts.order.sort(1).values.tolist() == [list(range(len(KINDS)))] * 2


def test_training_leaves_the_tower_and_the_random_state_alone():
    state = torch.random.get_rng_state()
    weights = [
        training.train(training.Recipe(stages=((2, 2, steps),)), seed=1, device="cpu", after_step=ignore).state_dict()
        for steps in (1, 3)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    same = {name for name in weights[0] if torch.equal(weights[0][name], weights[1][name])}
    tower = {name for name in weights[0] if ".vision_tower." in name}
    assert tower
    assert tower <= same
    assert len(same) < len(weights[0]) / 2


def test_keeping_all_tokens_answers_like_no_compression(model, prompts):
    alone, compressed = Answers(), Answers()
    alone.add(model, prompts, None)
    with pytest.warns(UserWarning, match="0 of 4032 tokens merged"):
        compressed.add(model, prompts, budgeted("random tokens", TOKENS, 1.0, seed=0))
    assert compressed.right == alone.right
    assert compressed.kept == [100.0]
    assert compressed.frames == [float(FRAMES)]


def test_a_budget_out_of_reach_leaves_a_cell_empty(model, prompts, monkeypatch):
    monkeypatch.setattr(accuracy, "RATIOS", (0.5, 0.05))
    monkeypatch.setattr(accuracy, "COMPRESSORS", {name: COMPRESSORS[name] for name in ("dyntok", "uniform frames")})
    results = {("none", 1.0): Answers({kind: [95.0] for kind in KINDS} | {"how many": [89.0]})}
    for name in ("dyntok", "uniform frames"):
        for ratio in (0.5, 0.05):
            results[name, ratio] = Answers()
            results[name, ratio].add(model, prompts, budgeted(name, TOKENS, ratio, seed=0))
    found = tables(results, [1.0], frames=FRAMES)
    code = "Which code, right answers of 1 models in %"
    for title in (code, "Tokens kept in %", f"Frames that keep tokens, of {FRAMES}"):
        for row in found[title]:
            assert row["50 %"] is not None
            assert row["5 %"] is None
    dyntok, uniform = (row["remarks"] for row in found["Tokens kept in %"])
    assert str(dyntok).startswith("5 %: expected the ratio of tokens to keep between 0.0833")
    assert str(uniform).startswith("5 %: a budget of 100 tokens is less than the 144 of one frame")
    assert found[code][0]["100 %"] == accuracy.Spread(95.0, None)


def test_a_budget_that_one_model_does_not_reach_is_not_reached(model, prompts):
    answers = Answers()
    answers.add(model, prompts, budgeted("pool", TOKENS, 0.5, seed=0))
    assert len(answers.kept) == len(answers.right["how many"]) == 1
    answers.add(model, prompts, budgeted("uniform frames", TOKENS, 0.05, seed=0))
    answers.add(model, prompts, budgeted("pool", TOKENS, 0.5, seed=0))
    assert answers.problem
    assert answers.kept == answers.frames == answers.right["how many"] == []


def test_a_kind_is_compared_in_the_models_that_have_learned_it(monkeypatch):
    monkeypatch.setattr(accuracy, "RATIOS", (0.5,))
    monkeypatch.setattr(accuracy, "COMPRESSORS", {"pool": ("pool",)})
    right = {kind: [91.0, 95.0, 99.0] for kind in KINDS}
    none = Answers(right | {"which half": [89.0, 90.0, 98.0], "how many": [50.0, 60.0, 89.9]})
    pooled = Answers({kind: [10.0, 20.0, 40.0] for kind in KINDS}, [50.0] * 3, [8.0] * 3)
    found = tables({("none", 1.0): none, ("pool", 0.5): pooled}, [1.0] * 3, frames=FRAMES)
    learned = {row["question"]: row["learned by"] for row in found["Without compression"]}
    assert list(learned.values()) == ["3 of 3 models", "2 of 3 models", "3 of 3 models", "0 of 3 models"]
    (half,) = found["Which half, right answers of 2 models in %"]
    assert half["100 %"] == accuracy.Spread.of([90.0, 98.0])
    assert half["50 %"] == accuracy.Spread.of([20.0, 40.0])
    assert not any(title.startswith("How many") for title in found)


def test_compressors_see_one_video_at_a_time(model, prompts):
    grids = []

    def compressor(clip: Clip):
        grids.append(clip.grid)
        return budgeted("pool", TOKENS, 0.25, seed=0)(clip)

    Answers().add(model, prompts, compressor)
    assert grids == [(FRAMES, 12, 12)] * 2

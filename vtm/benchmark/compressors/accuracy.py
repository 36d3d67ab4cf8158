"""Accuracy of compressors at equal budgets of tokens, in models that were trained without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import compress, count
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vtm.benchmark.compressors.clips import CELLS, KINDS
from vtm.benchmark.compressors.training import Prompts, Recipe, chosen_options, draw_prompts, load_or_train
from vtm.benchmark.merging.report import Cell, Spread
from vtm.benchmark.rows import CONF
from vtm.compressors import Compressed
from vtm.system.progress import Progress
from vtm.video_llm import Compressor, compress_videos

COMPRESSORS: dict[str, tuple[str, ...]] = {
    "dyto": ("dyto",),
    "dyto_released": ("dyto_released",),
    "dyntok": ("dyntok", "threshold=null"),
    "tome per frame": ("tome", "per=frame"),
    "tome per clip": ("tome", "per=clip"),
    "pool": ("pool",),
    "uniform frames": ("uniform",),
    "random frames": ("random_frames",),
    "random tokens": ("random_tokens",),
}  # preset in conf/compressor and overrides, by the name in the tables
RATIOS = (0.5, 0.25, 0.1)
LEARNED = 90.0  # percentage of right answers without compression from which on a model has learned a kind
_BATCH, _TRAINING = 10, 3  # prompts per call; cost of a frame in training, relative to one in the test
LEGEND = (
    "A LlavaOnevision with 144 tokens per frame, a random frozen tower with CLS and 2 layers of width 64 is trained "
    "without compression on drawn clips. It then answers the same kinds of question with each compressor of "
    "conf/compressor. Each value is the mean ± the standard deviation over the seeds, each with its own weights, "
    "training clips and test clips. Budgets are shares of the visual tokens; the last tables tell what was kept of "
    "them. At 100 % compressors return all tokens, so the answers are those without compression. Empty: the "
    "compressor does not reach the budget. A kind of question is compared in the models that have learned it, which "
    f"answer it at {LEARNED:.0f} % or better without compression. Which code: one token shows one of 4 patterns for a "
    "quarter of the clip. Which half: a square of 2 × 2 tokens with a pattern shows up for an eighth of the clip. "
    "Which first: two such squares, of 2 of 4 other patterns, show up one after the other; a model that sees both but "
    "not their order is right in half of the cases. How many: 0 to 3 such squares show up, each in one frame."
)


@dataclass
class Answers:
    """The answers of the models of all seeds so far with one compressor at one budget.

    Attributes:
        right: percentage of right answers of each kind of question, one per seed.
        kept: percentage of the tokens that were kept, one per seed.
        frames: number of frames of which a token was kept, one per seed.
        problem: why the budget was not reached; empty if it was.
    """

    right: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    kept: list[float] = field(default_factory=list)
    frames: list[float] = field(default_factory=list)
    problem: str = ""

    def add(self, model: Any, prompts: Prompts, compressor: Compressor | None) -> None:
        """Test one more model, without compression if there is no compressor, unless the budget is out of reach."""
        if self.problem:
            return
        chosen, kept, frames = [], [], []
        for part in prompts.split(_BATCH):
            inputs: dict[str, Any] = part.inputs
            if compressor is not None:
                try:
                    compression = compress_videos(model, inputs, compressor)
                except ValueError as error:
                    vars(self).update(vars(Answers(problem=str(error))))
                    return
                inputs = compression.inputs
                kept.append(100 * compression.tokens_after / compression.tokens_before)
                frames += [float(len(one.position[:, 0].unique())) for one in compression.compressed]
            with torch.inference_mode():
                logits = model(**inputs, use_cache=False, logits_to_keep=len(KINDS)).logits
            chosen.append(chosen_options(logits, part.order))
        right = 100 * (torch.cat(chosen) == prompts.answers).double().mean(0)
        for values, value in zip(self.right.values(), right.tolist(), strict=True):
            values.append(value)
        if compressor is not None:
            self.kept.append(sum(kept) / len(kept))
            self.frames.append(sum(frames) / len(frames))


Key = tuple[str, float]  # name of the compressor and share of the tokens
Results = dict[Key, Answers]


def budgeted(name: str, tokens: int, ratio: float, *, seed: int) -> Compressor:
    """Return a compressor with a budget; random ones choose anew for each clip.

    Args:
        name: key of `COMPRESSORS`.
        tokens: number of tokens of a clip.
        ratio: share of the tokens to keep.
        seed: seed of the random choices.
    """
    preset, *overrides = COMPRESSORS[name]
    limit = f"target_ratio={ratio}" if preset == "dyntok" else f"budget={int(ratio * tokens)}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"compressor.{override}" for override in (*overrides, limit)]
        config = compose(f"compressor/{preset}", overrides=chosen).compressor
    compressor: Callable[..., Compressed] = instantiate(config)
    if "seed" not in config:
        return compressor
    seeds = count(seed * 10**6)
    return lambda clip: compressor(clip, seed=next(seeds))


def measure(
    recipe: Recipe, *, seeds: int, folder: Path, device: torch.device | str, progress: Progress
) -> Iterator[dict[str, list[dict[str, Cell]]]]:
    """Train or load a model for each seed, test it with all compressors, and yield all tables after each seed.

    Args:
        recipe: training and test.
        seeds: number of models.
        folder: folder of the trained models.
        device: torch device.
        progress: progress whose total is `work(recipe, seeds)`.
    """
    results: Results = {("none", 1.0): Answers()}
    results |= {(name, ratio): Answers() for name in COMPRESSORS for ratio in RATIOS}

    def after_step(frames: int) -> None:
        progress.advance("training", to=progress.done + _TRAINING * frames)

    seconds = []
    for seed in range(seeds):
        path = folder / f"seed-{seed}.safetensors"
        model, spent = load_or_train(path, recipe, seed=seed, device=device, after_step=after_step)
        seconds.append(spent)
        generator = torch.Generator().manual_seed(2**32 + seed)  # clips that training has not seen
        prompts = draw_prompts(recipe.test_clips, frames=recipe.frames, generator=generator).to(device)
        for (name, ratio), answers in results.items():
            tokens = recipe.frames * CELLS**2
            answers.add(model, prompts, None if name == "none" else budgeted(name, tokens, ratio, seed=seed))
            progress.advance(name, to=progress.done + recipe.test_clips * recipe.frames)
        yield tables(results, seconds, frames=recipe.frames)


def work(recipe: Recipe, seeds: int) -> int:
    """Return the work of `measure`, in frames that pass the model forward."""
    tests = 1 + len(COMPRESSORS) * len(RATIOS)
    return seeds * (_TRAINING * recipe.work + tests * recipe.test_clips * recipe.frames)


def tables(results: Results, seconds: list[float], *, frames: int) -> dict[str, list[dict[str, Cell]]]:
    """Return the rows of all tables by title.

    Args:
        results: answers with all compressors.
        seconds: time of the training of each model.
        frames: number of frames of a clip.
    """
    none = results["none", 1.0].right
    learned = {kind: [value >= LEARNED for value in right] for kind, right in none.items()}  # by each model
    found: dict[str, list[dict[str, Cell]]] = {
        "Without compression": [
            {
                "question": kind,
                "chance %": 100 / len(KINDS[kind]),
                "right %": Spread.of(right),
                "lowest seed %": min(right),
                "learned by": f"{sum(learned[kind])} of {len(right)} models",
                "training, seconds": Spread.of(seconds),
            }
            for kind, right in none.items()
        ]
    }
    for kind, models in learned.items():
        if any(models):
            right = {key: list(compress(answers.right[kind], models)) for key, answers in results.items()}
            title = f"{kind.capitalize()}, right answers of {sum(models)} models in %"
            found[title] = _table(right, right["none", 1.0])
    found["Tokens kept in %"] = _table({key: answers.kept for key, answers in results.items()}, [100.0])
    for row in found["Tokens kept in %"]:
        problems = {results[str(row["compressor"]), ratio].problem: ratio for ratio in RATIOS}
        row["remarks"] = "; ".join(f"{_percent(ratio)}: {problem}" for problem, ratio in problems.items() if problem)
    kept = {key: answers.frames for key, answers in results.items()}
    found[f"Frames that keep tokens, of {frames}"] = _table(kept, [float(frames)])
    return found


def _table(values: dict[Key, list[float]], full: list[float]) -> list[dict[str, Cell]]:
    """Return a table of values with a row for each compressor and a column for each budget."""
    rows = []
    for name in COMPRESSORS:
        row: dict[str, Cell] = {"compressor": name, "100 %": Spread.of(full)}
        row |= {_percent(ratio): Spread.of(values[name, ratio]) if values[name, ratio] else None for ratio in RATIOS}
        rows.append(row)
    return rows


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"

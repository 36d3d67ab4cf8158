"""Accuracy of the modes and schedules of merging at equal multiply-adds, in models that were trained without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vtm.benchmark.merging.clips import NUM_CLASSES, moving_squares
from vtm.benchmark.merging.report import Cell, Spread
from vtm.benchmark.merging.training import DEPTH, NUM_TOKENS, WIDTH, Recipe, predict, train
from vtm.patching import (
    drop_random,
    drop_similar,
    equal_compute,
    merge_hybrid,
    merge_random,
    merge_similar,
    patch,
    recording,
    unpatch,
)
from vtm.patching.block import Heads
from vtm.patching.reduction import Reduction
from vtm.patching.schedules import SHAPES, Shape, multiply_adds
from vtm.system.progress import Progress

LEGEND = (
    "A VideoMAE (8 frames of 32 × 32 pixels, 64 tokens of width 64, 4 blocks, mean pooling) is trained without merging "
    f"on drawn clips of moving squares: {NUM_CLASSES} motions, which no single frame shows. Each value is the mean ± "
    "the standard deviation over the seeds, each with its own weights, training clips and test clips. Proportional "
    "attention is off and keys are the mean of the heads, except where the last tables say otherwise. Multiply-adds: "
    "of the blocks, from the numbers of tokens that they had, relative to no merging. Change: top-1 minus that of the "
    "same model without merging. Agreement: clips with the same top-1 class as without merging. Logit error: norm of "
    "the difference of the logits relative to the norm of the logits without merging. All sources: the block takes "
    "every second token away, so drop_similar and drop_random take the same ones there. First: half of the tokens in "
    "the first block, none in the others."
)
MODES: dict[str, Reduction] = {
    "merge_similar": merge_similar,
    "merge_hybrid 0.8": partial(merge_hybrid, threshold=0.8),
    "drop_similar": drop_similar,
    "merge_random": merge_random,
    "drop_random": drop_random,
}
RATIOS = (0.8, 0.6, 0.4)
_TRAINING = 3  # cost of a clip in training, relative to one in the test


@dataclass(frozen=True)
class Row:
    """One way to merge.

    Attributes:
        mode: key of `MODES`.
        shape: shape of the schedule; "first" for half of the tokens in the first block.
        ratio: upper bound of the multiply-adds, as a share of those without merging; not used for "first".
        proportional: whether the attention weighs tokens by their size.
        keys: keys to compare, "mean" or "concat".
    """

    mode: str
    shape: Shape | Literal["first"]
    ratio: float = 1.0
    proportional: bool = False
    keys: Heads = "mean"

    @property
    def name(self) -> str:
        """Mode and options, without their default values.

        >>> Row("merge_similar", "first", keys="concat").name
        'merge_similar, keys="concat"'
        """
        options = ", proportional" * self.proportional + f', keys="{self.keys}"' * (self.keys != "mean")
        return self.mode + options

    def schedule(self) -> list[int]:
        """Return the number of tokens to take away in each block.

        Raises:
            ValueError: if no schedule of the shape reaches the ratio.
        """
        if self.shape == "first":
            return [NUM_TOKENS // 2, *[0] * (DEPTH - 1)]
        return equal_compute(NUM_TOKENS, DEPTH, WIDTH, ratio=self.ratio, shape=self.shape)


class Trained(NamedTuple):
    """A trained model and its answers.

    Attributes:
        seed: seed of the test clips and of the random modes.
        model: model, in evaluation mode.
        logits: logits (N, classes) of the test clips without merging.
        labels: (N,).
    """

    seed: int
    model: nn.Module
    logits: Tensor
    labels: Tensor


def tables() -> dict[str, list[Row]]:
    """Return the rows of each table."""
    rows = {
        f"At most {100 * ratio:.0f} % of the multiply-adds": [
            Row(mode, shape, ratio) for shape in SHAPES for mode in MODES
        ]
        for ratio in RATIOS
    }
    rows["Half of the tokens in the first block"] = [Row(mode, "first") for mode in MODES]
    plain = [Row("merge_similar", shape, 0.6) for shape in SHAPES]
    rows["Proportional attention, at most 60 %"] = [
        replace(row, proportional=on) for row in [*plain, Row("merge_similar", "first")] for on in (False, True)
    ]
    rows["Keys, at most 60 %"] = [replace(row, keys=keys) for row in plain for keys in ("mean", "concat")]
    return rows


def measure(
    recipe: Recipe, *, seeds: int, device: torch.device | str, progress: Progress
) -> Iterator[tuple[str, dict[str, Cell]]]:
    """Train a model for each seed, and yield title and cells of each row.

    Args:
        recipe: training and test.
        seeds: number of models.
        device: torch device.
        progress: progress whose total is `work(recipe, seeds)`.
    """

    def after_step() -> None:
        progress.advance("training", to=progress.done + _TRAINING * recipe.batch)

    trained = []
    for seed in range(seeds):
        model = train(recipe, seed=seed, device=device, after_step=after_step)
        trained.append(Trained(seed, model, *_test(model, recipe, seed, device=device)))
    top1 = Spread.of(_percent(one.logits.argmax(1) == one.labels) for one in trained)
    yield "Without merging", {"model": "trained on the clips", "top-1 %": top1, "chance %": 100 / NUM_CLASSES}
    control = train(recipe, seed=0, device=device, after_step=after_step, still=True)
    logits, labels = _test(control, recipe, 0, device=device, still=True)
    cells: dict[str, Cell] = {"model": "trained and tested on one frame of each clip, repeated; one seed"}
    yield "Without merging", cells | {"top-1 %": _percent(logits.argmax(1) == labels), "chance %": 100 / NUM_CLASSES}
    for title, rows in tables().items():
        for row in rows:
            yield title, evaluate(row, trained, recipe, device=device)
            progress.advance(row.mode, to=progress.done + seeds * recipe.test_clips)


def work(recipe: Recipe, seeds: int) -> int:
    """Return the work of `measure`, in clips that pass the model forward."""
    training = _TRAINING * recipe.batch * recipe.steps
    return (seeds + 1) * training + seeds * recipe.test_clips * sum(map(len, tables().values()))


def evaluate(row: Row, trained: list[Trained], recipe: Recipe, *, device: torch.device | str) -> dict[str, Cell]:
    """Test all models with the merging of a row, and return its cells."""
    cells: dict[str, Cell] = {"mode": row.name, "schedule": row.shape}
    try:
        schedule = row.schedule()
    except ValueError as error:
        empty = dict.fromkeys(("multiply-adds %", "top-1 %", "change, % points", "agreement %", "logit error"))
        return cells | {"tokens": ""} | empty | {"remarks": "not reached; " + str(error).rpartition("; ")[2]}
    tops, changes, agreements, errors = [], [], [], []
    for seed, model, logits, labels in trained:
        reduce = partial(MODES[row.mode], generator=torch.Generator().manual_seed(seed))
        patch(model, schedule, reduce=reduce, keys=row.keys, proportional=row.proportional)
        with recording(model) as trace:
            merged, _ = _test(model, recipe, seed, device=device)
        unpatch(model)
        tops.append(_percent(merged.argmax(1) == labels))
        changes.append(tops[-1] - _percent(logits.argmax(1) == labels))
        agreements.append(_percent(merged.argmax(1) == logits.argmax(1)))
        errors.append(float((merged - logits).norm() / logits.norm()))
    counts = [NUM_TOKENS]
    for block in range(DEPTH):
        counts.append(trace.sizes[block].shape[1] if block in trace.sizes else counts[-1])
    taken = [before - after for before, after in pairwise(counts)]
    none = [0] * DEPTH
    full = [str(i + 1) for i, count in enumerate(taken) if count and count == counts[i] // 2]
    return cells | {
        "tokens": " → ".join(map(str, counts)),
        "multiply-adds %": 100 * multiply_adds(taken, NUM_TOKENS, WIDTH) / multiply_adds(none, NUM_TOKENS, WIDTH),
        "top-1 %": Spread.of(tops),
        "change, % points": Spread.of(changes),
        "agreement %": Spread.of(agreements),
        "logit error": Spread.of(errors),
        "remarks": f"all sources in block {', '.join(full)}" if full else "",
    }


def _test(
    model: nn.Module, recipe: Recipe, seed: int, *, device: torch.device | str, still: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, classes) and labels (N,) of clips that training has not seen."""
    generator = torch.Generator().manual_seed(2**32 + seed)  # drawn anew each time, to save memory
    clips, labels = moving_squares(recipe.test_clips, generator=generator, still=still)
    return predict(model, clips, device=device), labels


def _percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())

"""What came out of a run: `results.json`, and the report after a test, with the published figures of the task."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from vtm.data.dataset import Batch
from vtm.files import write_atomically
from vtm.measure import PeakMemory, device_name, synchronise

NOTE = "The test sets differ from ours and from one another: each paper scored the videos that it still had."
_SELECTIONS = {
    "val": "best epoch chosen on the validation videos",
    "test": (
        "best epoch chosen on the TEST videos, as ViS4mer does on Breakfast and COIN: its score is optimistic, "
        "the last epoch's is not"
    ),
}
_SHOWN_IDS = 5


class ResultsWriter(Callback):
    """Write `results.json` after every validation and test that is a call of its own, and report after every test.

    The LightningModule has `task.name`, the plain `config` of the run and `summary(stage)`, which gives, for the stage
    `val` or `test`, what its metric's `summary` gives, and

    - `floor`, and `ids_sha256` of the videos that were evaluated;
    - `missing`, the number of videos that were not, and their `missing_ids`;
    - `motion_from_codec`, where motion was read: the share of steps with the codec's, and not differences of frames;
    - `selection`, the split on which the best epoch is chosen, `val` or `test`;
    - `train_videos`, with the number `n` that there are to train on and the number `missing`;
    - `details`, further numbers by name, where callbacks logged some;
    - `tokens` of a clip that enter each block, and last those that remain.

    It is called on every rank. The file has a summary under the name of its stage, and for the checkpoint `last` under
    `<stage>_last`; with `checkpoint`, with `epoch`, the number of epochs that the checkpoint was trained for, and with
    `cost`, what the evaluation took in the process that writes the file; with several processes, of its own clips:

    - `device`, by name, and the `inputs`, `frames`, which are encoded, or `features`;
    - `batch_size`, the most clips in a step;
    - `clips_per_second`, the median of the steps, from inputs on the device to scores; the first step does not count
      where there are others;
    - `peak_gb`, the most memory that the first step took above what was in use; null where the system does not tell;
    - `tokens`, as above.

    Args:
        path: Of the file.
        experiment: Name of the experiment.
        seed: Of the run.
        published: Figures of the same task by others: to each method its `value` and, where known, the number `n` of
            its test videos and a `remark`.
    """

    def __init__(
        self, path: str | Path, *, experiment: str, seed: int, published: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.path = Path(path)
        self._checkpoints = ["given"]
        self._run: dict[str, Any] = {
            "experiment": experiment,
            "task": None,
            "seed": seed,
            "commit": source_commit(Path(__file__)),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,  # says which CUDA, which the package's version does not
                **{name: importlib.metadata.version(name) for name in ("lightning", "timm", "vtm")},
            },
            "config": None,
            "published": {"note": NOTE, "figures": published} if published else {"figures": {}},
        }
        self._scores: dict[str, dict[str, Any]] = {}
        self._steps = _Steps()

    def each(self, checkpoints: Mapping[str, str]) -> Iterator[str]:
        """Go through the files `best` and `last`, or `given`, to validate and test each; once if of the same epoch."""
        names: dict[int, list[str]] = {}
        for name, path in checkpoints.items():
            if path:  # fast_dev_run writes none
                names.setdefault(_epoch(path) if len(checkpoints) > 1 else 0, []).append(name)
        for self._checkpoints in names.values():
            yield checkpoints[self._checkpoints[0]]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = _Steps()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = _Steps()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *places: int) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._steps.begin(pl_module.device)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *places: int) -> None:
        self._steps.begin(pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._steps.end(batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *places: int
    ) -> None:
        self._steps.end(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._add("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add("test", trainer, pl_module)
        if trainer.is_global_zero:  # not before: what an earlier test has found stays until this one is complete
            run = {**self._run, "task": cast(Any, pl_module).task.name, "config": cast(Any, pl_module).config}
            content = json.dumps({**run, **self._scores}, indent=2, ensure_ascii=False)
            write_atomically(self.path, f"{content}\n")
            print(results_report(self._run, self._scores), f"written to {self.path}", sep="\n", flush=True)

    def _add(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(Any, pl_module)
        summary = module.summary(stage)
        if trainer.is_global_zero:
            cost = {**self._steps.cost(), "tokens": summary.pop("tokens")}
            epoch = _epoch(trainer.ckpt_path) if trainer.ckpt_path else None
            for name in self._checkpoints:
                found = {**summary, "checkpoint": name, "epoch": epoch, "cost": cost}
                self._scores[f"{stage}_last" if name == "last" else stage] = found


class _Steps:
    """Measure the steps of one evaluation."""

    def __init__(self) -> None:
        self._memory = PeakMemory("cpu")  # of the first step, whose time does not count
        self._start = 0.0
        self._inputs = ""
        self._rates: list[float] = []  # clips per second
        self._sizes: list[int] = []  # clips

    def begin(self, device: torch.device) -> None:
        if not self._rates:
            self._memory = PeakMemory(device).__enter__()
        synchronise(device)
        self._start = time.perf_counter()

    def end(self, batch: Batch) -> None:
        synchronise(self._memory.device)
        seconds = time.perf_counter() - self._start
        if not self._rates:
            self._memory.__exit__(None, None, None)
        self._rates.append(len(batch.id) / seconds)
        self._sizes.append(len(batch.id))
        self._inputs = "features" if batch.inputs.is_floating_point() else "frames"

    def cost(self) -> dict[str, Any]:
        """Say what `ResultsWriter` promises, but for the tokens."""
        return {
            "device": device_name(self._memory.device),
            "inputs": self._inputs,
            "batch_size": max(self._sizes),
            "clips_per_second": statistics.median(self._rates[1:] or self._rates),
            "peak_gb": None if self._memory.bytes is None else self._memory.bytes / 1e9,
        }


def results_report(run: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in lines what `results.json` says: the scores, what they were got from, and the published figures.

    Args:
        run: What the file has beside the scores.
        scores: Each evaluation under its name in the file; at least a test.
    """
    tests = {name: score for name, score in scores.items() if name.startswith("test")}
    *_, test = tests.values()
    train = test["train_videos"]
    lines = [
        f"{run['experiment']}, seed {run['seed']}; {train['n']} training videos, {train['missing']} missing",
        _SELECTIONS[test["selection"]] if test["checkpoint"] != "given" else "a given checkpoint, not one of this run",
        results_table(scores),
    ]
    for stage, score in {name.removesuffix("_last"): score for name, score in scores.items()}.items():
        if ids := score["missing_ids"]:
            more = f" and {len(ids) - _SHOWN_IDS} more, all in the file" if len(ids) > _SHOWN_IDS else ""
            lines.append(f"missing in {stage}: {', '.join(ids[:_SHOWN_IDS])}{more}")
        if videos := score["damaged_videos"]:
            lines.append(f"damaged in {stage}: {videos} videos, with frames that could not be decoded")
        if (share := score.get("motion_from_codec", 1.0)) < 1:
            lines.append(f"motion in {stage}: the codec's in {share:.1%} of the steps, else differences of frames")
    for name, score in scores.items():
        if details := score.get("details"):
            lines.append(f"details of {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in details.items()))
    if figures := run["published"]["figures"]:
        lines += ["", *_comparison(tests, figures)]
    return "\n".join(lines)


def results_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Align the scores of `results.json`, one evaluation in a row.

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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def source_commit(path: Path) -> str | None:
    """Name the commit that a source file belongs to.

    Returns:
        The hash, with `+dirty` if the checkout has changes or files that are not in it; None if git does not know the
        file, as in an installed package.
    """
    try:
        _git(path.parent, "ls-files", "--error-unmatch", path.name)
        commit = _git(path.parent, "rev-parse", "HEAD")
        return f"{commit}+dirty" if _git(path.parent, "status", "--porcelain") else commit
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def published_figures(figures: Mapping[str, Mapping[str, Any]], *, metric: str) -> list[str]:
    """List the figures of others, best first.

    >>> published_figures({"A": {"value": 4.18}, "B": {"value": 2.9, "n": 86, "remark": "merged"}}, metric="mse")
    ['B 2.9 (n=86, merged)', 'A 4.18']
    """
    sign = 1 if metric == "mse" else -1
    listed = []
    for method, figure in sorted(figures.items(), key=lambda item: (sign * item[1]["value"], item[0])):
        details = [f"n={figure['n']}"] if "n" in figure else []
        details += [figure["remark"]] if "remark" in figure else []
        listed.append(f"{method} {figure['value']:g}" + (f" ({', '.join(details)})" if details else ""))
    return listed


def _comparison(tests: Mapping[str, Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Put our tests in the first line and the published figures, best first, below."""
    ours = []
    for name, test in tests.items():
        flaw = ", selected on test" if test["selection"] == "test" and test["checkpoint"] != "last" else ""
        ours.append(f"{name} {test['value']:.4f} (n={test['n']}{flaw})")
    theirs = published_figures(figures, metric=test["metric"])
    unbroken = ["; ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items) for items in (ours, theirs)]
    indent = " " * 11
    lines = [
        textwrap.fill(text, 120, initial_indent=f"{label:<11}", subsequent_indent=indent, break_on_hyphens=False)
        for label, text in zip(("ours", "published"), unbroken, strict=True)
    ]
    return [*(line.replace("\N{NO-BREAK SPACE}", " ") for line in lines), f"{indent}{NOTE}"]


def _or_dash(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _epoch(checkpoint: str | Path) -> int:
    """Return for how many epochs a checkpoint was trained."""
    # the trainer's own count is that of the end of training; mapped, the file's tensors are not read
    return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["epoch"]) + 1


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

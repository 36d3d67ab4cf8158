"""Write the results of a run: `results.json`, predictions, a confusion matrix, and a report that is printed once."""

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from vtm.data.dataset import Batch
from vtm.results.plots import draw_confusion
from vtm.results.predictions import write_confusion, write_predictions
from vtm.results.record import describe_run, write_results
from vtm.results.summary import results_report
from vtm.system.measure import PeakMemory, device_name, synchronize
from vtm.tasks.predictions import Predictions
from vtm.training.checkpoint import read_checkpoint


class ResultsWriter(Callback):
    """A writer of `results.json` after each separate validation or test; after the last test it also prints a report.

    After a test it also writes, beside `results.json`, for the checkpoint under test:

    - `predictions.csv` (`predictions_last.csv` for the last checkpoint): a row for each video, in the order of the
      split, with its `id`, `target` and `prediction` and, for classes, a `probability_<class name>` for each class;
    - for classes, and not for the last checkpoint, the confusion matrix: `confusion.csv`, the number of videos with a
      row for each true class and a column for each predicted class, and a drawing, `confusion.png` and `confusion.pdf`.

    The file has each summary under the name of its stage, `val` or `test`; for the checkpoint `last`, under `val_last`
    or `test_last`. A summary has the fields of the metric's `summary`, such as `value`, `interval` and `n`, and

    - `per_class`, for classes: the `accuracy` and the number `n` of the evaluated videos of each class, by class name;
      the accuracy is null if there are none;
    - `floor`, the score of the baseline, and `ids_sha256` of the evaluated videos;
    - `missing`, the number of videos that were not evaluated, and their `missing_ids`;
    - `motion_from_codec`, if motion was read: the share of steps with the codec's motion, not frame differences;
    - `selection`, the split on which the best epoch is chosen, `val` or `test`;
    - `train_videos`, the number `n` of available training videos and the number `missing`;
    - `details`, further numbers by name, if callbacks logged some;
    - `checkpoint`, `best`, `last` or `given`, and `epoch`, the number of epochs it was trained for;
    - `cost`, what the evaluation took in the process that writes the file; with several processes, of its own clips:

      - `device`, by name, and the `inputs`, `frames`, which are encoded, or `features`;
      - `batch_size`, the maximum number of clips in a step;
      - `clips_per_second`, the median over steps, from inputs on the device to scores; the first step counts only if it
        is the only one;
      - `peak_gb`, the peak GPU memory of the first step, in addition to what was in use; null on a CPU, whose peaks
        the benchmark measures in separate processes;
      - `tokens`, how many tokens of a clip enter each block, followed by how many remain.

    The LightningModule must have `task.name`, the plain `config` of the run, and `summary(stage)`, which is called on
    every rank and returns these fields except for `checkpoint`, `epoch` and `cost`, but with `tokens` and with
    `predictions`, a `vtm.tasks.predictions.Predictions`.

    Args:
        path: file to write.
        experiment: name of the experiment.
        seed: seed of the run.
        published: published figures of the same task: the `value` of each method and, where known, the number `n` of
            its test videos and a `remark`.
    """

    def __init__(
        self, path: str | Path, *, experiment: str, seed: int, published: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.path = Path(path)
        self._checkpoints = ["given"]
        self._run = describe_run(
            experiment=experiment,
            seed=seed,
            published=published,
            source=Path(__file__),
        )
        self._scores: dict[str, dict[str, Any]] = {}
        self._files: set[str] = set()  # written beside `path`
        self._steps = _Steps()

    def each(self, checkpoints: Mapping[str, str | None]) -> Iterator[str | None]:
        """Yield the files of the checkpoints `best` and `last`, or `given`; one file if both are of the same epoch.

        The file of `given` may be None, for a network that is trained already.

        After they have been tested, print a report and the names of all written files.
        """
        names: dict[int, list[str]] = {}
        for name, path in checkpoints.items():
            if path or name == "given":  # empty with fast_dev_run
                epochs = read_checkpoint(path).epochs if path and len(checkpoints) > 1 else 0
                names.setdefault(epochs, []).append(name)
        for self._checkpoints in names.values():
            yield checkpoints[self._checkpoints[0]]
        if any(name.startswith("test") for name in self._scores):  # on the first rank only
            others = f", with {', '.join(sorted(self._files))}" if self._files else ""
            print(results_report(self._run, self._scores), f"written to {self.path}{others}", sep="\n", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = _Steps()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = _Steps()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *indices: int
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._steps.begin(pl_module.device)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *indices: int) -> None:
        self._steps.begin(pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._steps.end(batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        self._steps.end(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._add("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        predictions = self._add("test", trainer, pl_module)
        if predictions is not None:  # the results of an earlier test stay until this one is complete
            run = {**self._run, "task": cast(Any, pl_module).task.name, "config": cast(Any, pl_module).config}
            write_results(self.path, run, self._scores)
            self._write_predictions(predictions)

    def _add(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> Predictions | None:
        """Keep the summary of an evaluation for the file, and return its predictions; None on other ranks than 0."""
        module = cast(Any, pl_module)
        summary = module.summary(stage)
        if not trainer.is_global_zero:
            return None
        predictions: Predictions = summary.pop("predictions")
        cost = {**self._steps.cost(), "tokens": summary.pop("tokens")}
        # not the epoch of the trainer, which is the last one
        epoch = read_checkpoint(trainer.ckpt_path).epochs if trainer.ckpt_path else None
        for name in self._checkpoints:
            score = {**summary, "checkpoint": name, "epoch": epoch, "cost": cost}
            self._scores[f"{stage}_last" if name == "last" else stage] = score
        return predictions

    def _write_predictions(self, predictions: Predictions) -> None:
        folder = self.path.parent
        for name in self._checkpoints:
            file = f"predictions{'_last' if name == 'last' else ''}.csv"
            write_predictions(folder / file, predictions)
            self._files.add(file)
            if name != "last" and predictions.class_names is not None:
                write_confusion(folder / "confusion.csv", predictions)
                draw_confusion(predictions.confusion(), predictions.class_names, folder / "confusion")
                self._files |= {"confusion.csv", "confusion.pdf", "confusion.png"}


class _Steps:
    """The measured steps of one evaluation."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._memory: PeakMemory | None = None  # of the first step on a GPU
        self._start = 0.0
        self._inputs = ""
        self._rates: list[float] = []  # clips per second
        self._sizes: list[int] = []  # clips

    def begin(self, device: torch.device) -> None:
        self._device = device
        if not self._rates and device.type == "cuda":
            self._memory = PeakMemory(device).__enter__()
        synchronize(device)
        self._start = time.perf_counter()

    def end(self, batch: Batch) -> None:
        synchronize(self._device)
        seconds = time.perf_counter() - self._start
        if not self._rates and self._memory is not None:
            self._memory.__exit__(None, None, None)
        self._rates.append(len(batch.id) / seconds)
        self._sizes.append(len(batch.id))
        self._inputs = "features" if batch.inputs.is_floating_point() else "frames"

    def cost(self) -> dict[str, Any]:
        """Return the field `cost` that `ResultsWriter` describes, except for its `tokens`."""
        return {
            "device": device_name(self._device),
            "inputs": self._inputs,
            "batch_size": max(self._sizes),
            "clips_per_second": statistics.median(self._rates[1:] or self._rates),
            "peak_gb": None if self._memory is None or self._memory.bytes is None else self._memory.bytes / 1e9,
        }

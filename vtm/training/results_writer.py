"""What came out of a run: `results.json`, and the report after a test, with the published figures of the task."""

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from vtm.data.dataset import Batch
from vtm.results.record import describe_run, write_results
from vtm.results.summary import results_report
from vtm.system.measure import PeakMemory, device_name, synchronize
from vtm.training.checkpoint import read_checkpoint


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
    - `peak_gb`, the most memory of a GPU that the first step took above what was in use; null on a CPU, whose peaks the
      benchmark measures in processes of their own;
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
        self._run = describe_run(
            experiment=experiment,
            seed=seed,
            published=published,
            source=Path(__file__),
        )
        self._scores: dict[str, dict[str, Any]] = {}
        self._steps = _Steps()

    def each(self, checkpoints: Mapping[str, str]) -> Iterator[str]:
        """Go through the files `best` and `last`, or `given`, to validate and test each; once if of the same epoch."""
        names: dict[int, list[str]] = {}
        for name, path in checkpoints.items():
            if path:  # fast_dev_run writes none
                names.setdefault(read_checkpoint(path).epochs if len(checkpoints) > 1 else 0, []).append(name)
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
            write_results(self.path, run, self._scores)
            print(results_report(self._run, self._scores), f"written to {self.path}", sep="\n", flush=True)

    def _add(self, stage: str, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(Any, pl_module)
        summary = module.summary(stage)
        if trainer.is_global_zero:
            cost = {**self._steps.cost(), "tokens": summary.pop("tokens")}
            # the trainer's own count is that of the end of training
            epoch = read_checkpoint(trainer.ckpt_path).epochs if trainer.ckpt_path else None
            for name in self._checkpoints:
                found = {**summary, "checkpoint": name, "epoch": epoch, "cost": cost}
                self._scores[f"{stage}_last" if name == "last" else stage] = found


class _Steps:
    """Measure the steps of one evaluation."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._memory: PeakMemory | None = None  # of the first step on a GPU, whose time does not count
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
        """Say what `ResultsWriter` promises, but for the tokens."""
        return {
            "device": device_name(self._device),
            "inputs": self._inputs,
            "batch_size": max(self._sizes),
            "clips_per_second": statistics.median(self._rates[1:] or self._rates),
            "peak_gb": None if self._memory is None or self._memory.bytes is None else self._memory.bytes / 1e9,
        }

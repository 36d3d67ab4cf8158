"""Checks of a run before it starts: what its first step, or Lightning, would refuse after processes have started."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from vtm.cli.errors import naming
from vtm.data.datamodule import SPLITS
from vtm.training.checkpoint_io import AtomicCheckpointIO
from vtm.training.module import VTMModule

_NEEDED = ("best", "last", "results")  # callbacks that train.py itself uses


def check_callbacks(callbacks: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks of a run without those that are null.

    Raises:
        ValueError: if one that is needed is missing, or a value is not a callback.
    """
    for name in _NEEDED:
        if callbacks.get(name) is None:
            raise ValueError(f"callbacks.{name} is missing, but every run needs it; see conf/callbacks/default.yaml")
    return _only(Callback, "callbacks", callbacks)


def check_loggers(loggers: Mapping[str, Any]) -> list[Logger]:
    """Return the loggers of a run without those that are null.

    Raises:
        ValueError: if a value is not a logger.
    """
    return _only(Logger, "logger", loggers)


def check_start(trainer: Trainer, module: VTMModule, *, trains: bool, validates: bool = True) -> None:
    """Check that a run can start, with the data as the trainer would load them, and finish the settings of the trainer.

    The check is the same if other processes will run it. The trainer will log every epoch, and write checkpoints in one
    step.

    Args:
        trainer: trainer of the run, or one with the same settings.
        module: module to train or test.
        trains: whether the run trains.
        validates: whether the run validates.

    Raises:
        ValueError: if settings do not fit together, or a split is empty.
    """
    data: LightningDataModule = module.data
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    for split in SPLITS if trains else SPLITS[1 if validates else 2 :]:
        if not module.data.videos(split):
            raise ValueError(f"the {split} split has no videos, but every run needs some; see data/README.md")
    if trains:
        _check_length(trainer)
        trainer.state.fn, trainer.state.stage = TrainerFn.FITTING, RunningStage.TRAINING
        data.setup("fit")
        module.setup("fit")
        with naming("optimizer"):
            module.optimizer(module.model.parameters())
        with naming("scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, it says again when the training starts
            module.configure_optimizers()
        _log_every_epoch(trainer)
    data.setup("test")
    module.setup("test")


def _log_every_epoch(trainer: Any) -> None:
    """Lower the number of steps between two logged ones, so that the loss of short epochs is logged too."""
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, steps))


def _check_length(trainer: Trainer) -> None:
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            "trainer.max_epochs = -1 has no end, but the learning rate follows the share of the training that is done; "
            "give the most epochs that +trainer.max_time may cut short"
        )
    if trainer.max_epochs == 0:
        raise ValueError("trainer.max_epochs = 0 trains nothing; train=false ckpt_path=<file> tests a checkpoint")
    if trainer.accumulate_grad_batches < 1:
        raise ValueError(
            f"expected trainer.accumulate_grad_batches of at least 1, got {trainer.accumulate_grad_batches}"
        )
    if (clip := trainer.gradient_clip_val) is not None and clip < 0:  # it would turn the gradients around
        raise ValueError(f"expected trainer.gradient_clip_val of at least 0, got {clip}")


def _only(kind: Any, group: str, values: Mapping[str, Any]) -> list[Any]:
    chosen = {name: value for name, value in values.items() if value is not None}
    for name, value in chosen.items():
        if not isinstance(value, kind):
            raise ValueError(f"{group}.{name}: expected a `_target_` that builds a {kind.__name__}, got {value!r}")
    return list(chosen.values())

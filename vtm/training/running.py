"""The course of a run: loggers, training, and the tests of its checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from vtm.training.loggers import closing_wandb, log_configuration, log_tests_apart
from vtm.training.module import VTMModule
from vtm.training.starting import check_loggers


@contextmanager
def logging_to(
    trainer: Trainer, build_loggers: Callable[[], Mapping[str, Any]], config: dict[str, Any]
) -> Iterator[None]:
    """Start the loggers and log the configuration; on exit, close the W&B run, as failed after an error.

    Args:
        trainer: trainer that will log.
        build_loggers: function that starts the loggers, by name.
        config: configuration of the run in plain containers.
    """
    with closing_wandb():
        trainer.loggers = check_loggers(build_loggers())
        log_configuration(trainer.loggers, config)
        yield


def fit_and_test(
    trainer: Trainer, module: VTMModule, callbacks: Mapping[str, Any], *, trains: bool, ckpt_path: str | None
) -> None:
    """Fit, then test the best and the last checkpoint; or only test the given one.

    A network that is trained already is tested without a checkpoint; it is not validated, because no epoch is chosen,
    so the validation videos need not be there.

    Args:
        trainer: trainer with the callbacks.
        module: module to train or test.
        callbacks: callbacks of the run by name, with `best`, `last` and `results`.
        trains: whether to fit.
        ckpt_path: checkpoint to resume or test; None to start from the beginning.
    """
    checkpoints: dict[str, str | None] = {"given": ckpt_path}
    if trains:
        trainer.fit(module, module.data, ckpt_path=ckpt_path)
        checkpoints = {name: callbacks[name].best_model_path for name in ("best", "last")}
    log_tests_apart(trainer.loggers)
    for path in callbacks["results"].each(checkpoints):
        for evaluate in (trainer.validate, trainer.test) if path else (trainer.test,):
            if trainer.received_sigterm:
                sys.exit(143)  # Lightning itself exits only before another batch
            evaluate(module, module.data, ckpt_path=path, verbose=False)

"""Train and test a video token merging model: python train.py experiment=demo."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.cli.errors import concise_errors, naming
from vtm.cli.launch import (
    end_with_launcher,
    filter_warnings,
    keep_configuration,
    processes_to_start,
    resumable,
    run_folder,
    start_processes,
)
from vtm.cli.naming import name_run
from vtm.cli.overrides import check_overrides
from vtm.cli.ownership import claimed
from vtm.results.record import read_results
from vtm.system.processes import process_rank
from vtm.system.threads import use_threads

CONF = Path(__file__).parent / "conf"


def checked_run_folder(name: str, train: bool, ckpt_path: str | None, finetune_from: str | None) -> str:
    """Check the given checkpoints and return the run folder; errors end here, before OmegaConf wraps them."""
    from vtm.training.checkpoint import read_checkpoint

    given = {"ckpt_path": ckpt_path, "finetune_from": finetune_from}
    with concise_errors():
        for key, path in given.items():
            if path is not None:
                read_checkpoint(path, key=key)
        return run_folder(name, train=train, ckpt_path=ckpt_path)


OmegaConf.register_new_resolver("run_folder", checked_run_folder, use_cache=True)


@check_overrides(CONF, "train")
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Check the data, then train and test, in one process per device.

    Returns:
        The validation score of the best checkpoint, for sweepers that optimize it; None on all ranks except 0.
    """
    from vtm.training.checkpoint import read_checkpoint

    end_with_launcher()
    run_dir, overrides = Path(cfg.run_dir), HydraConfig.get().overrides.task
    resumes = cfg.train and cfg.ckpt_path is not None
    with concise_errors(), ExitStack() as stack:
        with claimed(run_dir, overrides, trains=cfg.train, ckpt_path=cfg.ckpt_path), filter_warnings(resumes=resumes):
            name_run(cfg)
            processes = processes_to_start(cfg.trainer)
            trained_with = read_checkpoint(cfg.ckpt_path).threads if resumes else None
            if processes == 1:
                use_threads(trained_with)
            encoder = instantiate(cfg.encoder)
            data = instantiate(cfg.data, encoder=encoder)
            task = instantiate(cfg.task, data.num_outputs)
            data.check_videos(training=cfg.train)
            module = build(cfg, encoder, data, task)
            callbacks = instantiate(cfg.callbacks)
            trainer = prepare(cfg, callbacks, module)
            if processes == 1:
                stack.enter_context(logging_to(cfg, trainer, module.config))
            keep_configuration(cfg)
        with filter_warnings(resumes=resumes), resumable(cfg.name, overrides, run_dir):
            if processes == 1:
                run(cfg, trainer, callbacks, module, data)
            else:
                start_processes(processes, Path(__file__), run_dir, trained_with=trained_with)
        results = run_dir / "results.json"
        if process_rank().rank > 0 or not results.is_file():  # +trainer.fast_dev_run=true writes no results
            return None
        score: float | None = read_results(results).get("val", {}).get("value")
        return score


def build(cfg: DictConfig, encoder: Any, data: Any, task: Any) -> Any:
    """Build the module; check `ckpt_path` and load the network of `finetune_from`, where given."""
    from vtm.training.callbacks import epoch_seed
    from vtm.training.checkpoint import fine_tune, read_checkpoint
    from vtm.training.module import VTMModule

    with naming("seed"):
        epoch_seed(cfg.seed, epoch=0, rank=0)  # the same initial weights on every rank
    model = instantiate(cfg.model, encoder.channels, data.num_outputs, encoder.grid)
    rules = {"optimizer": instantiate(cfg.optimizer), "scheduler": instantiate(cfg.scheduler)}
    module = VTMModule(encoder, model, task, data, **rules, config=OmegaConf.to_container(cfg, resolve=True))
    if cfg.ckpt_path is not None:
        module.check_checkpoint(read_checkpoint(cfg.ckpt_path), resumes=cfg.train)
    if cfg.finetune_from is not None:
        fine_tune(model, cfg.finetune_from, encoder_key=encoder.key)
    return module


def prepare(cfg: DictConfig, callbacks: Any, module: Any) -> Any:
    """Build the trainer, and check with it that the run can start, also if other processes will run it."""
    from vtm.training.checkpoint_io import AtomicCheckpointIO
    from vtm.training.starting import check_callbacks, check_start, log_every_epoch

    trainer = instantiate(cfg.trainer, callbacks=check_callbacks(callbacks), logger=False)
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    check_start(trainer, module, trains=cfg.train)
    if cfg.train:
        log_every_epoch(trainer)
    return trainer


@contextmanager
def logging_to(cfg: DictConfig, trainer: Any, config: dict[str, Any]) -> Iterator[None]:
    """Start the loggers and log the configuration; on exit, close the W&B run, as failed after an error."""
    from vtm.training.loggers import closing_wandb, log_configuration
    from vtm.training.starting import check_loggers

    with closing_wandb():
        trainer.loggers = check_loggers(instantiate(cfg.logger))
        log_configuration(trainer.loggers, config)
        yield


def run(cfg: DictConfig, trainer: Any, callbacks: Any, module: Any, data: Any) -> None:
    """Fit, then test the best and the last checkpoint; or only test the given one."""
    from vtm.training.loggers import log_tests_apart

    checkpoints = {"given": cfg.ckpt_path}
    if cfg.train:
        trainer.fit(module, data, ckpt_path=cfg.ckpt_path)
        checkpoints = {name: callbacks[name].best_model_path for name in ("best", "last")}
    log_tests_apart(trainer.loggers)
    for path in callbacks.results.each(checkpoints):
        for evaluate in (trainer.validate, trainer.test):
            if trainer.received_sigterm:
                sys.exit(143)  # Lightning itself exits only before another batch
            evaluate(module, data, ckpt_path=path, verbose=False)


if __name__ == "__main__":
    main()

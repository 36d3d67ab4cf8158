"""Train and test a video token merging model: python train.py experiment=demo."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.cli import launch
from vtm.cli.encoder import build_encoder
from vtm.cli.errors import concise_errors, naming
from vtm.cli.model import build_model
from vtm.cli.naming import name_run
from vtm.cli.overrides import check_overrides
from vtm.cli.ownership import claimed
from vtm.results.record import validation_score
from vtm.system.processes import process_rank
from vtm.system.threads import use_threads

CONF = Path(__file__).parent / "conf"


def checked_run_folder(name: str, train: bool, ckpt_path: str | None, finetune_from: str | None, ready: bool) -> str:
    """Check the given checkpoints and return the run folder; errors end here, before OmegaConf wraps them."""
    from vtm.training.checkpoint import read_checkpoint

    with concise_errors():
        for key, path in (("ckpt_path", ckpt_path), ("finetune_from", finetune_from)):
            if path is not None:
                read_checkpoint(path, key=key)
        return launch.run_folder(name, train=train, ckpt_path=ckpt_path, ready=ready)


OmegaConf.register_new_resolver("run_folder", checked_run_folder, use_cache=True)


@check_overrides(CONF, "train")
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Check the data, then train and test, in one process per device.

    Returns:
        The validation score of the best checkpoint, for sweepers that optimize it; None on all ranks except 0.
    """
    from vtm.training.checkpoint import read_checkpoint
    from vtm.training.running import fit_and_test, logging_to

    launch.end_with_launcher()
    run_dir, overrides, ckpt_path = Path(cfg.run_dir), HydraConfig.get().overrides.task, cfg.ckpt_path
    resumes = cfg.train and ckpt_path is not None
    with concise_errors(), launch.filter_warnings(resumes=resumes), ExitStack() as stack:
        with claimed(run_dir, overrides, trains=cfg.train, ckpt_path=ckpt_path):
            name_run(cfg)
            processes = launch.processes_to_start(cfg.trainer)
            threads = read_checkpoint(ckpt_path).threads if resumes else None
            if processes == 1:
                use_threads(threads)
            module, callbacks, trainer = build(cfg)
            if processes == 1:
                stack.enter_context(logging_to(trainer, lambda: instantiate(cfg.logger), module.config))
            launch.keep_configuration(cfg)
        with launch.resumable(cfg.name, overrides, run_dir):
            if processes == 1:
                fit_and_test(trainer, module, callbacks, trains=cfg.train, ckpt_path=ckpt_path)
            else:
                launch.start_processes(processes, Path(__file__), run_dir, trained_with=threads)
        return validation_score(run_dir) if process_rank().rank == 0 else None


def build(cfg: DictConfig) -> tuple[Any, Any, Any]:
    """Build module, callbacks and trainer, and check with them that the run can start; load the given weights."""
    from vtm.training.callbacks import epoch_seed
    from vtm.training.checkpoint import fine_tune, read_checkpoint
    from vtm.training.module import VTMModule
    from vtm.training.starting import check_callbacks, check_start

    encoder = build_encoder(cfg)
    data = instantiate(cfg.data, encoder=encoder)
    task = instantiate(cfg.task, data.num_outputs)
    data.check_videos(training=cfg.train, validates=cfg.train or cfg.ckpt_path is not None)
    with naming("seed"):
        epoch_seed(cfg.seed, epoch=0, rank=0)  # the same initial weights on every rank
    model = build_model(cfg, encoder, data)
    rules = {"optimizer": instantiate(cfg.optimizer), "scheduler": instantiate(cfg.scheduler)}
    module = VTMModule(encoder, model, task, data, **rules, config=OmegaConf.to_container(cfg, resolve=True))
    if cfg.ckpt_path is not None:
        module.check_checkpoint(read_checkpoint(cfg.ckpt_path), resumes=cfg.train)
    if cfg.finetune_from is not None:
        fine_tune(model, cfg.finetune_from, encoder_key=encoder.key)
    callbacks = instantiate(cfg.callbacks)
    trainer = instantiate(cfg.trainer, callbacks=check_callbacks(callbacks), logger=False)
    check_start(trainer, module, trains=cfg.train, validates=cfg.train or cfg.ckpt_path is not None)
    return module, callbacks, trainer


if __name__ == "__main__":
    main()

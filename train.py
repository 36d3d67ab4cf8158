"""Train and test a video token merging model: python train.py experiment=demo."""

import sys
import warnings
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.launch import processes_to_start, run_folder, start_processes
from vtm.overrides import errors_in_one_sentence, explained

CONF = Path(__file__).parent / "conf"
OmegaConf.register_new_resolver("run_folder", errors_in_one_sentence()(run_folder), use_cache=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@errors_in_one_sentence()
def main(cfg: DictConfig) -> None:
    """Instantiate, fit, and test the best and the last checkpoint; in one process per device."""
    encoder = instantiate(cfg.encoder)
    data = instantiate(cfg.data, encoder=encoder)
    task = instantiate(cfg.task, data.num_outputs)
    if (processes := processes_to_start(cfg.trainer)) > 1:
        start_processes(processes, Path(__file__), Path(cfg.run_dir))
        return

    from vtm.callbacks import epoch_seed
    from vtm.lit_module import VTMModule
    from vtm.loggers import finish_wandb

    noise = "Found .* in eval mode|.*LeafSpec|.*broadcast_buffers|The dirpath has changed"  # nothing to be done about
    warnings.filterwarnings("ignore", noise)
    epoch_seed(cfg.seed, epoch=0, rank=0)  # the same initial weights on every rank
    model = instantiate(cfg.model, encoder.channels, data.num_outputs)
    rules = {"optimizer": instantiate(cfg.optimizer), "scheduler": instantiate(cfg.scheduler)}
    module = VTMModule(encoder, model, task, **rules, config=OmegaConf.to_container(cfg, resolve=True))
    if cfg.finetune_from is not None:
        module.load_pretrained(cfg.finetune_from)
    callbacks = instantiate(cfg.callbacks)
    try:
        loggers = [*instantiate(cfg.logger).values()]
        trainer = instantiate(cfg.trainer, callbacks=[*callbacks.values()], logger=loggers)
        checkpoints = {"given": cfg.ckpt_path}
        if cfg.train:
            trainer.fit(module, data, ckpt_path=cfg.ckpt_path)
            checkpoints = {name: callbacks[name].best_model_path for name in ("best", "last")}
        for callbacks.results.checkpoint, path in checkpoints.items():
            if path:  # fast_dev_run writes none
                trainer.validate(module, data, ckpt_path=path, verbose=False)
                trainer.test(module, data, ckpt_path=path, verbose=False)
    finally:
        finish_wandb(exit_code=int(sys.exc_info()[0] is not None))


if __name__ == "__main__":
    with explained(CONF, "train"):
        main()

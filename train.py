"""Train and test a video token merging model: python train.py experiment=demo."""

import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vtm.launch import processes_to_start, run_folder, start_processes
from vtm.overrides import explained

CONF = Path(__file__).parent / "conf"
OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    """Run one job, in this process or in one process per device."""
    if (processes := processes_to_start(cfg.trainer)) > 1:
        start_processes(processes, Path(__file__), Path(HydraConfig.get().runtime.output_dir))
    else:
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Instantiate, fit, and test the best and the last checkpoint."""
    import lightning
    from hydra.utils import instantiate

    from vtm.callbacks import ResultsWriter, finish_wandb
    from vtm.lit_module import VTMModule

    warnings.filterwarnings("ignore", "Found .* in eval mode")  # the frozen encoder
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own use of torch
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    data = instantiate(cfg.data)
    task = instantiate(cfg.task, data.num_outputs)
    encoder = instantiate(cfg.encoder)
    model = instantiate(cfg.model, encoder.channels, data.num_outputs)
    optimizer, scheduler = instantiate(cfg.optimizer), instantiate(cfg.scheduler)
    module = VTMModule(encoder, model, task, optimizer=optimizer, scheduler=scheduler, config=config)
    if cfg.finetune_from is not None:
        module.load_pretrained(cfg.finetune_from)
    callbacks = instantiate(cfg.callbacks)
    results = ResultsWriter(
        Path(cfg.run_dir, "results.json"), experiment=cfg.name, task=task.name, seed=cfg.seed, config=config
    )
    try:
        loggers = list(instantiate(cfg.logger).values())
        trainer = instantiate(cfg.trainer, callbacks=[*callbacks.values(), results], logger=loggers)
        checkpoints = {"given": cfg.ckpt_path}
        if cfg.train:
            trainer.fit(module, data, ckpt_path=cfg.ckpt_path)
            checkpoints = {name: callbacks[name].best_model_path for name in ("best", "last")}
        for results.checkpoint, path in checkpoints.items():
            trainer.validate(module, data, ckpt_path=path, verbose=False)
            trainer.test(module, data, ckpt_path=path, verbose=False)
    finally:
        finish_wandb()


if __name__ == "__main__":
    with explained(CONF, "train"):
        main()

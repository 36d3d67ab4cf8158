"""Build the encoder of a configuration, with the settings that it finds out kept in the configuration."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vtm.system.bfloat16 import has_bfloat16
from vtm.system.processes import process_rank


def build_encoder(cfg: DictConfig) -> Any:
    """Build the encoder of a configuration.

    Args:
        cfg: configuration, in which encoder.precision=auto is replaced: by bfloat16 where the device of the trainer has
            units for it, else by float32. The values of the processor file of encoder.processor are added.
    """
    if cfg.encoder.get("precision") == "auto":
        on_gpu = cfg.trainer.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        cfg.encoder.precision = "bfloat16" if has_bfloat16("cuda" if on_gpu else "cpu") else "float32"
        if process_rank().rank == 0:
            print(f"encoder.precision=auto is {cfg.encoder.precision} on this machine")
    encoder = instantiate(cfg.encoder)
    OmegaConf.update(cfg, "encoder", getattr(encoder, "settings", {}), merge=True)
    return encoder

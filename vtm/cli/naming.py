"""Names of runs for loggers: the experiment, and in a sweep what the sweep varies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_LONGEST = 128  # characters of a name that W&B takes


def name_run(cfg: DictConfig) -> None:
    """Add to the name of a run in its loggers what the sweep varies, such as `needle seed=1`, and group the sweep.

    A logger with another name or group keeps it.

    Args:
        cfg: configuration of the run, which is changed.
    """
    hydra, varied = HydraConfig.get(), _varied_keys()
    chosen = [text for text in hydra.overrides.task if _key(text) in varied]
    for logger in cfg.logger.values():
        if not isinstance(logger, DictConfig):
            continue
        if chosen and logger.get("name") == cfg.name:
            logger.name = " ".join([cfg.name, *chosen])[:_LONGEST]
        if hydra.mode == RunMode.MULTIRUN and "group" in logger and logger.group is None:
            logger.group = f"{cfg.name} {Path(hydra.sweep.dir).name}"[:_LONGEST]


def _varied_keys() -> set[str]:
    """Return the keys that a sweep varies."""
    hydra = HydraConfig.get()
    if "WANDB_SWEEP_ID" in os.environ:  # an agent of W&B does not tell which of the overrides it has chosen
        return {_key(text) for text in hydra.overrides.task} - {"experiment"}
    if hydra.mode != RunMode.MULTIRUN:
        return set()
    words, params = [word for word in sys.argv[1:] if "=" in word], dict(hydra.sweeper.get("params") or {})
    if (sweep := Path(hydra.sweep.dir, "multirun.yaml")).is_file():  # a job of a launcher has other arguments
        words = OmegaConf.load(sweep).hydra.overrides.task
    parsed = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    return {override.key_or_group for override in parsed if override.is_sweep_override()} | {*params}


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]

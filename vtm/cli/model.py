"""Build the network of a configuration, and keep in the configuration what it has read from a checkpoint."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


def build_model(cfg: DictConfig, encoder: Any, data: Any) -> Any:
    """Build the network of a configuration for an encoder and data.

    Args:
        cfg: configuration, to which the settings of a ready transformer are added, so that checkpoints and model files
            can be read without the files that it came from.
        encoder: encoder of the run.
        data: data of the run.

    Raises:
        ValueError: if a network that is not trained is to be tested, or the experiment has settings of another network.
    """
    if "host" in cfg.model and "window_frames" in cfg.model:
        raise ValueError(
            f"experiment {cfg.name} sets model.window_frames, which model=video_transformer does not have; use an "
            "experiment that leaves the network open, such as experiment=folder, with data=… of your choice"
        )
    model = instantiate(cfg.model, encoder.channels, data.num_outputs, encoder.grid)
    is_trained = model.match_classes(data.class_names)
    if not (cfg.train or cfg.ckpt_path or is_trained):
        raise ValueError(
            "train=false needs ckpt_path=<file>, the checkpoint to test, because the last layer of the network is new; "
            "give one, or the folder of a trained model as model.host.name with model.host.pretrained=true, or train it"
        )
    OmegaConf.update(cfg, "model", model.settings, merge=True, force_add=True)
    return model

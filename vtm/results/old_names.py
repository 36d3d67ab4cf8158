"""Translate the names of classes and functions in checkpoints and results of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOVED = {
    "vtm.callbacks.BestCheckpoint": "vtm.training.callbacks.BestCheckpoint",
    "vtm.callbacks.EpochSeed": "vtm.training.callbacks.EpochSeed",
    "vtm.callbacks.NeedlesKept": "vtm.training.callbacks.NeedlesKept",
    "vtm.callbacks.NetworkSize": "vtm.training.progress.NetworkSize",
    "vtm.callbacks.progress_bar": "vtm.training.progress.progress_bar",
    "vtm.data.breakfast.BreakfastDataModule": "vtm.data.datasets.breakfast.BreakfastDataModule",
    "vtm.data.coin.COINDataModule": "vtm.data.datasets.coin.COINDataModule",
    "vtm.data.features.FeatureStore": "vtm.features.store.FeatureStore",
    "vtm.data.folder.FolderDataModule": "vtm.data.datasets.folder.FolderDataModule",
    "vtm.data.lvu.LVUDataModule": "vtm.data.datasets.lvu.LVUDataModule",
    "vtm.data.needle.NeedleDataModule": "vtm.data.datasets.needle.NeedleDataModule",
    "vtm.data.needle.NeedleSource": "vtm.data.datasets.needle.NeedleSource",
    "vtm.data.needle.Needles": "vtm.data.datasets.needle.Needles",
    "vtm.data.synthetic.DemoDataModule": "vtm.data.datasets.demo.DemoDataModule",
    "vtm.data.synthetic.Scene": "vtm.data.datasets.demo.Scene",
    "vtm.lit_module.auto_precision": "vtm.training.optim.auto_precision",
    "vtm.lit_module.cosine_with_warmup": "vtm.training.optim.cosine_with_warmup",
    "vtm.loggers.csv_logger": "vtm.training.loggers.csv_logger",
    "vtm.loggers.wandb_logger": "vtm.training.loggers.wandb_logger",
    "vtm.picture_logger.PictureLogger": "vtm.training.picture_logger.PictureLogger",
    "vtm.results.ResultsWriter": "vtm.training.results_writer.ResultsWriter",
    "vtm.tasks.Classification": "vtm.tasks.classification.Classification",
    "vtm.tasks.MeanOutput": "vtm.tasks.fusion.AveragedLogits",
    "vtm.tasks.Regression": "vtm.tasks.regression.Regression",
    "vtm.tasks.TwoLosses": "vtm.tasks.fusion.AuxiliaryLoss",
}


# Settings that results of earlier versions lack, with the values that they had.
ADDED_SETTINGS = {"data.motion_source": "codec"}


def with_current_names(config: Any) -> Any:
    """Return a configuration, in plain containers, with the current name of every `_target_`.

    >>> with_current_names({"task": {"_target_": "vtm.tasks.Regression"}})
    {'task': {'_target_': 'vtm.tasks.regression.Regression'}}
    """
    if isinstance(config, Mapping):
        return {
            key: _MOVED.get(value, value) if key == "_target_" and isinstance(value, str) else with_current_names(value)
            for key, value in config.items()
        }
    return [with_current_names(item) for item in config] if isinstance(config, list) else config

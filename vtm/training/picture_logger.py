"""Log to W&B and TensorBoard during training what is merged: the sheet of `vtm.visualize` for one validation clip."""

from __future__ import annotations

import warnings
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from vtm.data.dataset import Batch
from vtm.models import HeadOutput
from vtm.pictures import ClipView
from vtm.pictures.captions import decimal
from vtm.pictures.features import feature_colors
from vtm.pictures.sheet import draw_sheet
from vtm.tasks.task import ranked
from vtm.training.module import VTMModule


class PictureLogger(Callback):
    """A callback that logs the sheet of the first validation clip, after the first, every few, and the last epoch.

    The sheet shows the frames of the batch. Stored features have no frames: their first three principal components are
    shown as red, green and blue. Without a logger that takes pictures, nothing is drawn, nor of a whole video
    transformer, whose outputs do not tell what its blocks merge; `python -m vtm.visualize` draws that.

    Args:
        every_epochs: number of epochs between two sheets.

    Raises:
        ValueError: if every_epochs is less than 1.
    """

    def __init__(self, *, every_epochs: int) -> None:
        if every_epochs < 1:
            raise ValueError(f"expected every_epochs of at least 1, got {every_epochs}")
        self.every_epochs = every_epochs
        self._drawn: int | None = None  # the epoch of the last sheet

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
        if loggers and trainer.is_global_zero and batch_idx == dataloader_idx == 0 and self._is_due(trainer):
            self._drawn = trainer.current_epoch
            if not outputs["output"].blocks:
                warnings.warn(
                    "no pictures are logged of a whole video transformer, whose outputs do not tell what its blocks "
                    "merge; python -m vtm.visualize draws that of an exported model",
                    stacklevel=2,
                )
                return
            sheet, caption = _sheet(cast(VTMModule, pl_module), outputs["output"], batch)
            for logger in loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("val/merged", [sheet], step=trainer.global_step, caption=[caption])
                else:
                    logger.experiment.add_image("val/merged", sheet, trainer.global_step, dataformats="HWC")
                    logger.experiment.add_text("val/merged", caption, trainer.global_step)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return False
        epoch = trainer.current_epoch
        passed = self.every_epochs if self._drawn is None else epoch - self._drawn
        return passed >= self.every_epochs or (passed > 0 and epoch + 1 == trainer.max_epochs)


def _sheet(module: VTMModule, output: HeadOutput, batch: Batch) -> tuple[Any, str]:
    """Draw the first clip of a batch, and return the drawing with a caption."""
    data = module.data
    video = data.videos("val")[int(batch.index[0])]
    length = data.source.length(video)
    times = [video.start + time for time in data.protocol.times(data.protocol.starts(length)[0], length)]
    grid, inputs = module.encoder.grid, batch.inputs[0]
    if inputs.is_floating_point():
        tokens = inputs[: len(times)].flatten(1, 2)[:, grid.prefix :]
        frames = feature_colors(tokens.unflatten(1, (grid.height, grid.width)))
    else:
        frames = inputs[:: module.encoder.frames.frames_per_step][: len(times)]
    names = data.class_names
    truth = decimal(video.target) if names is None else names[int(video.target)]
    scores = ranked(names, module.task.scores(output.logits[:1]).flatten().tolist())
    view = ClipView.of(frames, times, output.clip(0), grid, scores=scores)
    return draw_sheet(view, title=batch.id[0], truth=truth), f"{batch.id[0]}, true: {truth}"

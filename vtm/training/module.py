"""The only LightningModule: encode, model, task, log; the task and the data hold what differs between data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from vtm.data.datamodule import Split, VideoDataModule
from vtm.data.dataset import Batch, clip_generator
from vtm.encoders import Encoder
from vtm.models import Head, HeadOutput
from vtm.results.record import ids_sha256
from vtm.tasks import lower_is_better
from vtm.tasks.metric import VideoMetric
from vtm.tasks.predictions import Predictions
from vtm.tasks.task import Task
from vtm.training.checkpoint import FORMAT, Checkpoint, check_same_run
from vtm.training.optim import has_finite_weights, schedule_position, steps_per_epoch


class VTMModule(L.LightningModule):
    """A head that is trained, validated and tested on the features of a frozen encoder.

    Checkpoints hold the network and the task, and the key of the encoder but not its weights. They contain plain values
    and tensors only, so `torch.load(weights_only=True)` reads them.

    Args:
        encoder: frozen encoder; its key must match the key in a loaded checkpoint.
        model: network to train.
        task: loss, scores and metric.
        data: splits, class names and shape of the clips; must be the data that the trainer loads.
        optimizer: function that returns the optimizer of the network's parameters.
        scheduler: function that returns the schedule, `scheduler(optimizer, total_steps=…, total_epochs=…)`.
        config: resolved configuration of the run in plain containers; it is kept in the checkpoint.
    """

    def __init__(
        self,
        encoder: Encoder,
        model: Head,
        task: Task,
        data: VideoDataModule,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[..., LRScheduler],
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = model
        self.task = task
        self.data = data
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.val_metric = task.metric()
        self.test_metric = task.metric()
        self.summaries: dict[str, dict[str, Any]] = {}

    def setup(self, stage: str) -> None:
        """Check that data and network fit together, and fit the task to the training targets."""
        data = self.data
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            ids = ids_sha256(video.id for video in data.videos(split))
            if self.trainer.strategy.broadcast(ids) != ids:  # clips refer to their videos by position in this list
                raise RuntimeError(
                    f"other processes see different {split} videos from this one, which sees "
                    f"{len(data.videos(split))}; wait until no files are added or removed"
                )
        shape = (data.protocol.num_frames, *self.encoder.grid.shape)
        self.model.plan(*shape)  # raises if the clips do not fit
        if self.model.needs_motion and not data.source.motion:
            raise ValueError("the network merges by motion, but the data do not read it: set motion=true")
        if stage == "fit":
            self.task.fit_targets(data.train_targets())
            self.model.freeze_unused(*shape)

    def forward(self, batch: Batch) -> HeadOutput:
        """Run encoder and network; in evaluation, random sampling depends only on the clip's id."""
        features = batch.inputs if batch.inputs.is_floating_point() else self.encoder(batch.inputs)
        features = features.to(next(self.model.parameters()).dtype)
        generator = None if self.training else [clip_generator(clip) for clip in batch.id]
        output: HeadOutput = self.model(features, motion=batch.motion, mask=batch.mask, generator=generator)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the main and the auxiliary path."""
        output = self(batch)
        losses = self.task.loss(output.logits, output.aux_logits, batch.target)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(batch.id), prog_bar=name == "loss")
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, HeadOutput]:
        """Collect the scores of the clips, and return what was merged, for callbacks."""
        return self._score("val", self.val_metric, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, HeadOutput]:
        """Collect the scores of the clips, and return what was merged, for callbacks."""
        return self._score("test", self.test_metric, batch)

    def on_validation_epoch_end(self) -> None:
        """Score the videos by the average of their clips."""
        self._summarize("val", self.val_metric)

    def on_test_epoch_end(self) -> None:
        """Score the videos by the average of their clips."""
        self._summarize("test", self.test_metric)

    def summary(self, stage: str) -> dict[str, Any]:
        """Return the last evaluation of a stage, "val" or "test", with the fields that `ResultsWriter` describes.

        What callbacks log as `<stage>/details/<name>` is returned under `details`.
        """
        logged, prefix = self.trainer.callback_metrics, f"{stage}/details/"
        details = {name.removeprefix(prefix): float(value) for name, value in logged.items() if name.startswith(prefix)}
        share = logged.get(f"{stage}/motion_from_codec")
        found = {"motion_from_codec": None if share is None else float(share), "details": details}
        return self.summaries[stage] | {name: value for name, value in found.items() if value not in (None, {})}

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the network and its schedule, which advances every step.

        Raises:
            ValueError: if neither the epochs nor the steps of the training are limited.
        """
        optimizer = self.optimizer(self.model.parameters())
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "trainer.max_epochs = -1 without trainer.max_steps leaves the length of the learning-rate schedule "
                "open; set trainer.max_epochs, which trainer.max_time may cut short"
            )
        limited = self.trainer.max_epochs != -1
        epochs = self.trainer.max_epochs if limited else Fraction(int(steps), steps_per_epoch(self.trainer))
        scheduler = self.scheduler(optimizer, total_steps=int(steps), total_epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Advance the schedule to the fraction of the training that is done."""
        if isinstance(scheduler, LambdaLR):
            position: Any = schedule_position(self.trainer)
            scheduler.last_epoch = position - 1  # `step` adds one
        scheduler.step()

    def on_train_start(self) -> None:
        """Move the schedule of a resumed run, which may have other steps per epoch or be longer than before.

        Raises:
            ValueError: if the schedule is no function of the step, so that it cannot be moved.
        """
        position = schedule_position(self.trainer)
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            if isinstance(scheduler, LambdaLR) and position:
                self.lr_scheduler_step(scheduler, None)
            elif scheduler.last_epoch != position:
                raise ValueError(
                    f"the checkpoint is at step {scheduler.last_epoch} of the learning-rate schedule, but with the "
                    f"steps per epoch of this run, it would be at step {position:g}; resume with the data.batch_size, "
                    "trainer.accumulate_grad_batches and number of videos that it was trained with"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the format, the number of threads, the encoder's key, the class names and the configuration.

        Raises:
            RuntimeError: if the weights are not finite; the earlier checkpoint stays.
        """
        if not has_finite_weights(self.model):
            raise RuntimeError(
                f"the weights of the network are not finite in epoch {self.trainer.current_epoch + 1}, at step "
                f"{self.trainer.global_step}, so they are not saved; lower optimizer.lr, or set "
                "trainer.precision=32-true; earlier checkpoints are kept"
            )
        facts = {"encoder": self.encoder.key, "classes": self.data.class_names, "config": self.config}
        checkpoint["vtm"] = {"format": FORMAT, "threads": torch.get_num_threads(), **facts}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that Lightning loads a checkpoint of vtm that fits this run."""
        resumes = self.trainer.state.fn == TrainerFn.FITTING
        self.check_checkpoint(Checkpoint.parse(checkpoint, "the checkpoint"), resumes=resumes)

    def check_checkpoint(self, checkpoint: Checkpoint, *, resumes: bool) -> None:
        """Check that a checkpoint was trained with the encoder, the classes and the settings of this run.

        Args:
            checkpoint: checkpoint to resume or test.
            resumes: whether its training continues.

        Raises:
            ValueError: if something differs; the message names the first difference.
        """
        check_same_run(
            checkpoint,
            encoder_key=self.encoder.key,
            class_names=self.data.class_names,
            config=self.config,
            resumes=resumes,
        )

    def _score(self, stage: str, metric: VideoMetric, batch: Batch) -> dict[str, HeadOutput]:
        output: HeadOutput = self(batch)
        metric.update(self.task.scores(output.logits), batch.target, batch.index, batch.damaged)
        loss = self.task.loss(output.logits, None, batch.target)["loss"]
        self.log(f"{stage}/loss", loss, batch_size=len(batch.id), on_epoch=True, sync_dist=True)
        if batch.from_codec is not None:
            share = batch.from_codec.mean()
            self.log(f"{stage}/motion_from_codec", share, batch_size=len(batch.id), on_epoch=True, sync_dist=True)
        return {"output": output}

    def _summarize(self, stage: Split, metric: VideoMetric) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.summaries[stage] = self._describe(stage, metric)
        value = metric.compute()
        metric.reset()
        score = -value if lower_is_better(metric.name) else value  # higher is better, whatever the task
        self.log(f"{stage}/{self.task.metric_name}", value, prog_bar=True, sync_dist=True)
        self.log(f"{stage}/score", score, sync_dist=True)

    def _describe(self, stage: Split, metric: VideoMetric) -> dict[str, Any]:
        data = self.data
        videos = data.videos(stage)
        clustered = any(video.cluster for video in videos)
        clusters = [video.cluster or video.id for video in videos] if clustered else None
        summary = metric.summary(clusters=clusters)
        indices = summary.pop("videos")
        evaluated = [videos[index] for index in indices]
        targets, ids = [video.target for video in evaluated], [video.id for video in evaluated]
        missing = sorted({video.id for video in data.listed(stage)}.difference(ids))
        lost = len(data.missing("train"))
        clusters = clusters and [clusters[index] for index in indices]
        predictions = Predictions(ids, targets, summary.pop("scores"), data.class_names, clusters)
        per_class = {"per_class": predictions.per_class()} if data.class_names is not None else {}
        return (
            summary
            | per_class
            | {
                "predictions": predictions,
                "floor": self.task.baseline(data.train_targets().tolist(), targets),
                "missing": len(missing),
                "missing_ids": missing,
                "ids_sha256": ids_sha256(ids),
                "selection": data.selection,
                "train_videos": {"n": len(data.listed("train")) - lost, "missing": lost},
                "tokens": self.model.token_counts(data.protocol.num_frames, *self.encoder.grid.shape),
            }
        )

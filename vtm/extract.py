"""Encode the videos of an experiment once and store the features: python -m vtm.extract experiment=lvu_scene.

Any number of processes, on one or more machines that share the folder, can run it at the same time: each takes videos
that no other has taken. After an interruption the same command continues, and repeats only the unfinished videos.
Then `python train.py experiment=lvu_scene data/source=features` trains on the stored features.
"""

from __future__ import annotations

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from vtm.cli.encoder import build_encoder
from vtm.cli.errors import concise_errors
from vtm.cli.launch import end_with_launcher, filter_warnings, processes_to_start, start_processes
from vtm.cli.overrides import check_overrides
from vtm.data.source import VideoFiles
from vtm.features.extraction import extract
from vtm.system.cells import as_cell
from vtm.system.processes import host_name, process_rank
from vtm.system.threads import use_threads
from vtm.video.decoding import VideoError

CONF = Path(__file__).parents[1] / "conf"


@check_overrides(CONF, "extract")
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="extract")
@concise_errors()
def main(cfg: DictConfig) -> None:
    """Store the features of all splits, in one process per device."""
    end_with_launcher()
    encoder = build_encoder(cfg)
    data = instantiate(cfg.data, encoder=encoder, source=partial(VideoFiles, motion=True))
    store = instantiate(cfg.data.source)(
        root=data.root,
        encoder=encoder,
        sampling=data.protocol.sampling,
        motion_source=cfg.data.motion_source,
    )
    if "://" in store.folder:
        raise ValueError(f"data.source.address={store.folder} is not a local folder; extract to one, then upload it")
    run_dir = Path(cfg.run_dir)
    if (processes := processes_to_start(cfg.trainer)) > 1:
        data.check_lists()
        start_processes(processes, Path(__file__), run_dir)
    else:
        use_threads()
        with filter_warnings(resumes=False):
            failed = extract(data, store, encoder, device=_device(cfg.trainer))
        if failed:
            path = run_dir / f"failed.{host_name()}.{os.getpid()}.csv"
            with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                csv.writer(file).writerows([("id", "reason"), *(map(as_cell, item) for item in failed.items())])
    lists = list(run_dir.glob("failed.*.csv"))
    if lists:
        message = f"some videos could not be stored; {run_dir}/failed.*.csv lists them with the reasons"
        if process_rank().world_size == 1:  # torchrun stops all processes when one fails
            raise VideoError(message)
        print(message)


def _device(trainer: Any) -> torch.device:
    """Choose the device of this process as Lightning's trainer would."""
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator = gpu, but torch finds no GPU here; use trainer=cpu or trainer=auto")
    if trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, devices = process_rank().local_rank, trainer.devices
    return torch.device("cuda", local_rank if isinstance(devices, int | str) else devices[local_rank])


if __name__ == "__main__":
    main()

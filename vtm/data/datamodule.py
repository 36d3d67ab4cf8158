"""What all data sets share: batches from lists of videos, and what to do about those that are missing."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Literal, TypedDict

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vtm.data.dataset import Clip, VideoDataset, collate
from vtm.data.samplers import EvalSampler, TrainSampler
from vtm.data.sampling import ClipProtocol
from vtm.data.source import EncoderSpec, Source, Video

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_HELP = "data/README.md"


class LoaderOptions(TypedDict):
    """Name the arguments that every data set takes; `VideoDataModule` explains them."""

    root: Path | str
    protocol: ClipProtocol
    source: Callable[..., Source]
    encoder: EncoderSpec
    batch_size: int
    num_workers: int
    seed: int
    allow_missing: bool


class VideoDataModule(LightningDataModule, ABC):
    """Load the splits of one data set, which lies in `root/annotations` and `root/videos`.

    The samplers divide the work between devices themselves, so the trainer needs `use_distributed_sampler=False`.

    Args:
        root: The folder of the data set.
        protocol: Says where clips start and at which times they look.
        source: Makes what gives the inputs, frames or stored features, from `root`, `encoder` and `sampling`.
        encoder: Turns the frames into features, or has done so.
        batch_size: Clips per step over all devices.
        num_workers: Loading processes per device; 0 loads in the training process.
        seed: Fixes, with the epoch, the order of the training videos.
        allow_missing: Leave out videos that are missing, and those that `python -m vtm.check_data` found unusable;
            every result then says how many and which. Otherwise a missing video stops a run before it starts.

    Raises:
        NotADirectoryError: The root is a file.
        ValueError: There is no clip in a step, or fewer than no loading processes.
    """

    def __init__(
        self,
        *,
        root: Path | str,
        protocol: ClipProtocol,
        source: Callable[..., Source],
        encoder: EncoderSpec,
        batch_size: int,
        num_workers: int,
        seed: int,
        allow_missing: bool,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        if self.root.is_file():
            raise NotADirectoryError(f"data.root={root} is a file; give the folder of the data set, see {_HELP}")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"expected data.batch_size of at least 1 and data.num_workers of at least 0, got {batch_size} and "
                f"{num_workers}"
            )
        self.protocol = protocol
        self.source = source(root=self.root, encoder=encoder, sampling=protocol.sampling)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.allow_missing = allow_missing
        self._listed: dict[Split, list[Video]] = {}
        self._splits: dict[Split, tuple[list[Video], list[Video]]] = {}

    @abstractmethod
    def read_split(self, split: Split) -> list[Video]:
        """List the videos that the annotations name, whether their files are there or not, in a fixed order."""

    @property
    @abstractmethod
    def class_names(self) -> list[str] | None:
        """Name the classes in the order of their indices; None for regression."""

    @property
    def num_outputs(self) -> int:
        """Count what a model has to put out: the classes, or one value."""
        return 1 if self.class_names is None else len(self.class_names)

    @property
    def selection(self) -> Split:
        """Name the split on which checkpoints are chosen; "test" where the validation split is the test split."""
        return "val"

    @rank_zero_only
    def check_videos(self, *, training: bool) -> None:
        """Look for the videos of a run, after writing those that can be written: before it leaves a trace anywhere.

        Args:
            training: The training videos are wanted too.

        Raises:
            FileNotFoundError: The folder, an annotation file or some of the videos are missing.
        """
        self.prepare_data()
        for split in SPLITS if training else SPLITS[1:]:
            self.videos(split)

    def setup(self, stage: str) -> None:
        """Look for all videos of a run before it starts, and for what can be told of them at once."""
        for split in SPLITS if stage == "fit" else ():
            expect = partial(self.source.expect, protocol=self.protocol, train=split == "train")
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(expect, self.videos(split)))

    def listed(self, split: Split) -> list[Video]:
        """List the videos that the annotations name, as `read_split` did the first time."""
        if split not in self._listed:
            self._listed[split] = self.read_split(split)
        return self._listed[split]

    def videos(self, split: Split) -> list[Video]:
        """List the videos of a split that are there: all of them, unless some may be missing.

        Raises:
            FileNotFoundError: The folder, an annotation file or some of the videos are missing.
        """
        found, lost = self._divide(split)
        if lost and not (found and self.allow_missing):
            raise FileNotFoundError(
                f"{len(lost)} of the {len(found) + len(lost)} {split} videos are missing, such as "
                f"{', '.join(self.source.locate(video) for video in lost[:3])}; {self.source.remedy}. "
                "`python -m vtm.check_data` with the same overrides lists all"
                + (
                    ", and data.allow_missing=true goes on without them and says so in every result"
                    if found
                    else "; data.allow_missing=true needs at least one video in every split"
                )
            )
        return found

    def missing(self, split: Split) -> list[str]:
        """List the ids of the videos of a split that are left out."""
        return [video.id for video in self._divide(split)[1]]

    def _divide(self, split: Split) -> tuple[list[Video], list[Video]]:
        """Divide the videos of a split into those to be used and those that are missing."""
        if split not in self._splits:
            videos = self.listed(split)
            unusable = read_unusable(self.source.unusable) if self.allow_missing else {}
            with ThreadPoolExecutor(16) as pool:  # a store may be far away
                versions = list(pool.map(self.source.version, videos))
            usable = [
                version is not None and version != unusable.get(video.id)
                for video, version in zip(videos, versions, strict=True)
            ]
            self._splits[split] = list(compress(videos, usable)), list(compress(videos, map(not_, usable)))
        return self._splits[split]

    def train_targets(self) -> Tensor:
        """Collect the targets of training, (V,) int64 or float32; no video file is needed for them."""
        dtype = torch.float32 if self.class_names is None else torch.int64
        return torch.tensor([video.target for video in self.listed("train")], dtype=dtype)

    def annotation(self, *names: str) -> Path:
        """Find an annotation file; several names are alternatives in order of preference.

        Raises:
            FileNotFoundError: The folder of the data set or all alternatives are missing.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"The folder {self.root} is missing; {_HELP} says how to get it.")
        paths = [self.root / "annotations" / name for name in names]
        for path in paths:
            if path.is_file():
                return path
        raise FileNotFoundError(f"The file {' or '.join(map(str, paths))} is missing; {_HELP} says how to get it.")

    def train_dataloader(self) -> DataLoader[Clip]:
        """Load one clip of each training video, shuffled."""
        videos = self.videos("train")
        rank, world_size = self._rank()
        sampler = TrainSampler(len(videos), seed=self.seed, rank=rank, world_size=world_size)
        return self._loader(self._dataset(videos, train=True), sampler)

    def val_dataloader(self) -> DataLoader[Clip]:
        """Load every clip of the validation videos once."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Clip]:
        """Load every clip of the test videos once."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> DataLoader[Clip]:
        dataset = self._dataset(self.videos(split), train=False)
        rank, world_size = self._rank()
        return self._loader(dataset, EvalSampler(len(dataset), rank=rank, world_size=world_size))

    def _dataset(self, videos: list[Video], *, train: bool) -> VideoDataset:
        return VideoDataset(videos, self.protocol, self.source, train=train)

    def _loader(self, dataset: VideoDataset, sampler: Sampler[int]) -> DataLoader[Clip]:
        _, world_size = self._rank()
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size counts the clips on all devices and must be a multiple of their number, got batch_size = "
                f"{self.batch_size} and {world_size} devices; change one of them"
            )
        return DataLoader(  # torch gives each loading process one thread: the processes are the parallelism
            dataset,
            batch_size=self.batch_size // world_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0
            and isinstance(sampler, EvalSampler),  # new ones after a resume, too
        )

    def _rank(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def read_unusable(path: Path) -> dict[str, str]:
    """Read the list of what is there but of no use, if there is one: by id, the version of the file that is meant."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["version"] for row in csv.DictReader(file)}

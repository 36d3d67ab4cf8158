"""The base class of the data modules: batches from lists of videos, and the handling of missing videos."""

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from vtm.data.dataset import Clip, VideoDataset, collate
from vtm.data.samplers import EvalSampler, TrainSampler
from vtm.data.sampling import ClipProtocol
from vtm.data.source import EncoderSpec, Source, Video, explain_absence
from vtm.system.cells import from_cell
from vtm.system.names import PathIndex
from vtm.video.motion import MotionSource

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_HELP = "data/README.md"


class LoaderOptions(TypedDict):
    """Arguments that every data set takes, see `VideoDataModule`."""

    root: Path | str
    protocol: ClipProtocol
    source: Callable[..., Source]
    encoder: EncoderSpec
    batch_size: int
    num_workers: int
    seed: int
    allow_missing: bool
    motion_source: NotRequired[MotionSource]


class VideoDataModule(LightningDataModule, ABC):
    """Base class of the data modules, which load a data set from `root/annotations` and `root/videos`.

    The samplers divide the clips among devices themselves, so the trainer needs `use_distributed_sampler=False`.

    Args:
        root: folder of the data set.
        protocol: clip protocol, which chooses the sampled times.
        source: factory of the source of the inputs (frames or stored features), called with `root`, `encoder`,
            `sampling` and `motion_source`.
        encoder: specification of the encoder of the frames or of the stored features.
        batch_size: number of clips per step, over all devices.
        num_workers: number of worker processes per device; 0 loads in the training process.
        seed: seed of the order of the training videos, together with the epoch.
        allow_missing: skip videos that are missing or that `python -m vtm.check_data` found unusable, and report them
            in every result. Otherwise a missing video stops a run before it starts.
        motion_source: where the motion of tokens comes from, if it is read: the motion vectors of the codec, or the
            difference of frames.

    Raises:
        NotADirectoryError: if the root is a file.
        ValueError: if `batch_size` is less than 1, `num_workers` is negative or `motion_source` is unknown.
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
        motion_source: MotionSource = "codec",
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
        if motion_source not in (known := get_args(MotionSource)):
            raise ValueError(f"expected data.motion_source={' or '.join(known)}, got {motion_source}")
        self.protocol = protocol
        self.source = source(root=self.root, encoder=encoder, sampling=protocol.sampling, motion_source=motion_source)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.allow_missing = allow_missing
        self._listed: dict[Split, list[Video]] = {}
        self._splits: dict[Split, tuple[list[Video], list[Video]]] = {}

    @abstractmethod
    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split in the annotations, in a fixed order, whether or not their files exist."""

    @property
    @abstractmethod
    def class_names(self) -> list[str] | None:
        """Names of the classes by index; None for regression."""

    @property
    def num_outputs(self) -> int:
        """Number of outputs of a model: the number of classes, or 1 for regression."""
        return 1 if self.class_names is None else len(self.class_names)

    @property
    def selection(self) -> Split:
        """Split on which checkpoints are selected: "test" if the validation split is the test split."""
        return "val"

    @rank_zero_only
    def check_videos(self, *, training: bool, validates: bool = True) -> None:
        """Prepare the data and check that the videos of a run exist, before the run writes any files.

        Args:
            training: also check the training videos.
            validates: also check the validation videos.

        Raises:
            FileNotFoundError: if the folder, an annotation file or some of the videos are missing.
            ValueError: if the lists are wrong.
        """
        self.check_lists()
        for split in SPLITS if training else SPLITS[1 if validates else 2 :]:
            self.videos(split)

    def check_lists(self) -> None:
        """Prepare the data, then read and check the lists of all splits, whether or not the files exist.

        Raises:
            ValueError: if the lists are wrong.
            FileNotFoundError: if the folder or an annotation file is missing.
        """
        self.prepare_data()
        for split in SPLITS:
            self.listed(split)

    def setup(self, stage: str) -> None:
        """Before training, check that all videos exist and run the quick checks of the source on them."""
        for split in SPLITS if stage == "fit" else ():
            expect = partial(self.source.expect, protocol=self.protocol, train=split == "train")
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(expect, self.videos(split)))

    def listed(self, split: Split) -> list[Video]:
        """List the videos of a split in the annotations; `read_split` is called only once."""
        if split not in self._listed:
            self._listed[split] = self.read_split(split)
        return self._listed[split]

    def videos(self, split: Split) -> list[Video]:
        """List the videos of a split to load: all of them or, with `allow_missing`, the usable ones.

        Raises:
            FileNotFoundError: if the folder, an annotation file or some of the videos are missing.
        """
        usable, missing = self._divide(split)
        if missing and not (usable and self.allow_missing):
            paths = PathIndex()
            explanations = (explain_absence(self.source, video, paths) for video in missing[:3])
            explanation = next(filter(None, explanations), "")
            raise FileNotFoundError(
                f"{len(missing)} of the {len(usable) + len(missing)} {split} videos are missing, such as "
                f"{', '.join(self.source.locate(video) for video in missing[:3])}{explanation}; {self.source.remedy}. "
                "`python -m vtm.check_data` with the same overrides lists all missing videos"
                + (
                    ", and data.allow_missing=true skips them and reports this in every result"
                    if usable
                    else "; data.allow_missing=true needs at least one video in every split"
                )
            )
        return usable

    def missing(self, split: Split) -> list[str]:
        """List the ids of the videos of a split that are skipped."""
        return [video.id for video in self._divide(split)[1]]

    def _divide(self, split: Split) -> tuple[list[Video], list[Video]]:
        """Divide the videos of a split into usable ones and missing ones."""
        if split not in self._splits:
            videos = self.listed(split)
            unusable = read_unusable(self.source.unusable) if self.allow_missing else {}
            with ThreadPoolExecutor(16) as pool:  # a store may be remote
                versions = list(pool.map(self.source.version, videos))
            usable = [
                version is not None and version != unusable.get(video.id)
                for video, version in zip(videos, versions, strict=True)
            ]
            self._splits[split] = list(compress(videos, usable)), list(compress(videos, map(not_, usable)))
        return self._splits[split]

    def train_targets(self) -> Tensor:
        """Return the targets of the V training videos, (V,) int64 or float32, from the annotations alone."""
        dtype = torch.float32 if self.class_names is None else torch.int64
        return torch.tensor([video.target for video in self.listed("train")], dtype=dtype)

    def annotation(self, *names: str) -> Path:
        """Return the path of an annotation file.

        Args:
            names: alternative file names in order of preference.

        Raises:
            FileNotFoundError: if the folder of the data set or all alternatives are missing.
        """
        if not self.root.is_dir():
            hint = PathIndex().explain(self.root, here="data.root")
            raise FileNotFoundError(f"The folder {self.root} is missing{hint}; {_HELP} says how to get it.")
        paths = [self.root / "annotations" / name for name in names]
        for path in paths:
            if path.is_file():
                return path
        hint = next(filter(None, (PathIndex().explain(path, here="this program") for path in paths)), "")
        raise FileNotFoundError(
            f"The file {' or '.join(map(str, paths))} is missing{hint}; {_HELP} says how to get it."
        )

    def train_dataloader(self) -> DataLoader[Clip]:
        """Return a loader of one clip per training video, shuffled."""
        videos = self.videos("train")
        rank, world_size = self._rank()
        sampler = TrainSampler(len(videos), seed=self.seed, rank=rank, world_size=world_size)
        return self._loader(self._dataset(videos, train=True), sampler)

    def val_dataloader(self) -> DataLoader[Clip]:
        """Return a loader of every clip of the validation videos."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Clip]:
        """Return a loader of every clip of the test videos."""
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
                f"expected a batch_size, which counts the clips on all devices, that is a multiple of the number of "
                f"devices, got batch_size = {self.batch_size} and {world_size} devices; change one of them"
            )
        return DataLoader(  # torch limits each worker process to one thread
            dataset,
            batch_size=self.batch_size // world_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0
            and isinstance(
                sampler, EvalSampler
            ),  # training starts new workers each epoch, so a resume repeats its clips
        )

    def _rank(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def read_unusable(path: Path) -> dict[str, str]:
    """Read the list of unusable videos if it exists: the version of the unusable file by video id."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {from_cell(row["id"]): row["version"] for row in csv.DictReader(file)}

"""COIN (Tang et al., CVPR 2019): 180 tasks of instructional videos, with the official split of `COIN.json`."""

import json
import warnings
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Unpack

from vtm.data.datamodule import Loading, Split, VideoDataModule, find_video, name_classes
from vtm.data.dataset import Video

_SUBSETS = {"train": "training", "val": "training", "test": "testing"}


class COINDataModule(VideoDataModule):
    """Load COIN; a clip looks at the region of interest of its video.

    The official file has no validation part: of each class a tenth of the training videos is held out, chosen by a hash
    of their ids, so it is the same for every seed. Videos lie as the official downloader puts them,
    `videos/<recipe_type>/<id>.<suffix>`, or flat. `COIN.rebuilt.json` stands in where `COIN.json` is missing: training
    videos without a label are then left out and those without a region are used whole, with a warning.
    """

    def __init__(self, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        self._entries: dict[str, dict[str, Any]] | None = None

    @property
    def class_names(self) -> list[str]:
        """Name the 180 tasks in the order of `recipe_type`."""
        entries = self._labelled().values()
        pairs = ((entry["recipe_type"], entry["class"]) for entry in entries)
        return name_classes(pairs, source=self._path())

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split in the order of their ids."""
        entries = {key: entry for key, entry in self._labelled().items() if entry["subset"] == _SUBSETS[split]}
        if split != "test":
            held_out = hold_out_tenth({key: entry["recipe_type"] for key, entry in entries.items()})
            entries = {key: entry for key, entry in entries.items() if (key in held_out) == (split == "val")}
        folder = self.root / "videos"
        return [
            Video(
                key,
                find_video(folder, f"{entry['recipe_type']}/{key}", key),
                entry["recipe_type"],
                start=entry.get("start", 0.0),
                end=entry.get("end"),
            )
            for key, entry in sorted(entries.items())
        ]

    def _path(self) -> Path:
        return self.annotation("COIN.json", "COIN.rebuilt.json")

    def _labelled(self) -> dict[str, dict[str, Any]]:
        """Read the entries that have a label, and check the rest of what is used of them."""
        if self._entries is None:
            path = self._path()
            database = json.loads(path.read_text(encoding="utf-8")).get("database")
            if not isinstance(database, dict):
                raise ValueError(f'{path}: expected {{"database": {{id: entry}}}}, the official layout')
            for key, entry in database.items():
                if entry["subset"] not in _SUBSETS.values():
                    raise ValueError(f"{path}: expected training or testing as subset of {key}, got {entry['subset']}")
            self._entries = {key: entry for key, entry in database.items() if entry["recipe_type"] is not None}
            unlabelled = len(database) - len(self._entries)
            whole = sum("end" not in entry for entry in self._entries.values())
            if unlabelled or whole:
                warnings.warn(
                    f"{path}: {unlabelled} videos have no label and are left out, {whole} have no region of interest "
                    "and are used whole; with the official COIN.json neither happens",
                    stacklevel=2,
                )
        return self._entries


def hold_out_tenth(classes: dict[str, int]) -> set[str]:
    """Choose a tenth of the ids of each class, rounded and at least one, in the order of their SHA-256.

    >>> len(hold_out_tenth({str(number): number % 2 for number in range(60)}))
    6
    """
    members = defaultdict(list)
    for key, label in classes.items():
        members[label].append(key)
    held_out: set[str] = set()
    for keys in members.values():
        keys.sort(key=lambda key: sha256(key.encode()).digest())
        held_out.update(keys[: max(1, round(len(keys) / 10))])
    return held_out

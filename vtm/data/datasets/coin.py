"""COIN (Tang et al., CVPR 2019): 180 tasks of instructional videos, in the official split, from any published list."""

import json
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from vtm.data.datamodule import SPLITS, LoaderOptions, Split, VideoDataModule
from vtm.data.datasets.annotations import class_index, finite_number, name_classes, read_rows, read_text
from vtm.data.datasets.checking import Item, check_items
from vtm.data.datasets.official import hold_out_tenth
from vtm.data.source import Video
from vtm.system.names import explain_missing
from vtm.video.listing import VideoIndex

_SIZES = {"training": 9030, "testing": 2797}
_SPELLINGS = {
    "training": ("training", "train"),
    "testing": ("testing", "test", "validation", "val"),  # COIN has two subsets; some lists call the second validation
}
_ID_LISTS = {"training": "train_split.txt", "testing": "test_split.txt"}
_ONE_KEY = "a list of one-key dictionaries, as of SCHEMA and PDPP"
_TAXONOMY = ("recipe_type", "class", "domain", "n_steps", "step_ids")


class COINDataModule(VideoDataModule):
    """Data module of COIN, whose clips are sampled from the region of interest of each video.

    `COIN.json` may have any of the layouts that `read_coin` accepts; if it is missing, `COIN.rebuilt.json` is read.
    Video files are expected as the official downloader writes them, `videos/<recipe_type>/<id>.<suffix>`, or as
    `videos/<id>.<suffix>`.

    Args:
        hold_out: validate on a tenth of the training videos of each class, because COIN has no validation subset. A
            hash of the ids selects them, so they do not depend on the seed. Otherwise train on all training videos and
            validate on the test split, as in ViS4mer; checkpoints are then selected on test videos.
        options: see `VideoDataModule`.
    """

    def __init__(self, *, hold_out: bool, **options: Unpack[LoaderOptions]) -> None:
        super().__init__(**options)
        self.hold_out = hold_out
        self._class_names: list[str] = []
        self._entries: dict[Split, dict[str, Entry]] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the 180 tasks in the order of `recipe_type`."""
        self._checked()
        return self._class_names

    @property
    def selection(self) -> Split:
        """Split on which checkpoints are selected."""
        return "val" if self.hold_out else "test"

    def read_split(self, split: Split) -> list[Video]:
        """List the videos of a split, sorted by id."""
        part: Split = "test" if split == "val" and not self.hold_out else split
        files = VideoIndex(self.root / "videos")
        return [
            Video(key, files.find(f"{task}/{key}", key), task, start=start, end=end)
            for key, (task, _, _, start, end) in self._checked()[part].items()
        ]

    def _checked(self) -> dict[Split, dict[str, "Entry"]]:
        """Read and check the list and divide it into splits; this is done only once, and no files are looked up."""
        if self._entries is None:
            path = self.annotation("COIN.json", "COIN.rebuilt.json")
            labeled = dict(sorted(read_coin(path).items()))
            training = {key: entry for key, entry in labeled.items() if entry.subset == "training"}
            held_out = hold_out_tenth({key: e.task for key, e in training.items()}) if self.hold_out else set()
            entries: dict[Split, dict[str, Entry]] = {
                "train": {key: entry for key, entry in training.items() if key not in held_out},
                "val": {key: entry for key, entry in training.items() if key in held_out},
                "test": {key: entry for key, entry in labeled.items() if entry.subset == "testing"},
            }
            check_items(
                [Item(key, e.name, split, str(path)) for split, part in entries.items() for key, e in part.items()],
                source=path,
                splits=SPLITS if self.hold_out else ("train", "test"),
                known={entry.name for entry in training.values()},
            )
            self._class_names = name_classes(((entry.task, entry.name) for entry in labeled.values()), source=path)
            self._entries = entries
        return self._entries


class Entry(NamedTuple):
    """Annotations of one video."""

    task: int  # recipe_type
    name: str  # name of the task
    subset: str  # training or testing
    start: float  # start of the region of interest in seconds
    end: float | None  # end of the region of interest in seconds; None for the end of the video


def read_coin(path: Path) -> dict[str, Entry]:
    """Read the labeled videos of a list of COIN in the official split, by id.

    Accepted are the official layout, the flat dictionary of MA-LMM and HERMES, the lists of one-key dictionaries of
    SCHEMA and PDPP, and entries with a `video_uid` as in videollm-online. If `train_split.txt` and `test_split.txt`
    (one official id per line) are in the same folder, they determine the split. An entry without `recipe_type` takes it
    from `taxonomy_targets.csv` or from another entry whose class name has the same letters. One warning lists all
    differences from the official list.

    Raises:
        ValueError: if the layout is unknown, the split is not the official one, or a label is wrong.
        FileNotFoundError: if only one of the two lists of ids exists.
    """
    entries, layout = _read_entries(path)
    subsets, split_notes = _official_split(path, entries, layout)
    tasks = _look_up_tasks(path, entries)
    labeled = {
        key: Entry(*tasks[key], subsets[key], *_region(entry, f"{path}: {key}"))
        for key, entry in entries.items()
        if key in tasks
    }
    notes = [*([] if layout is None else [f"is {layout}"]), *split_notes]
    for subset in _SIZES:
        if not any(entry.subset == subset for entry in labeled.values()):
            raise ValueError(f"{path}: expected training and testing videos, got none for {subset}; join both lists")
    unlabeled, whole = len(entries) - len(labeled), sum(entry.end is None for entry in labeled.values())
    if unlabeled or whole:
        notes.append(f"{unlabeled} videos have no label and are left out, {whole} have no region and are used whole")
    counted = sum("num_frames_actual" in entry for entry in entries.values())
    if counted:
        notes.append(f"{len(entries) - counted} videos that its authors could not download are expected too")
    if notes:
        warnings.warn(f"{path}: {'; '.join(notes)}. The official COIN.json has none of these differences", stacklevel=2)
    return labeled


def _region(entry: dict[str, Any], origin: str) -> tuple[float, float | None]:
    """Return the start and the end of the region of interest in seconds; the end is None for the end of the video."""
    start, end = (
        None if entry.get(name) is None else finite_number(entry[name], f"{origin}: {name}", minimum=0)
        for name in ("start", "end")
    )
    if end is not None and end <= (start or 0):
        raise ValueError(f"{origin}: expected an end after the start {start or 0:g} s, got {end:g} s; correct them")
    return start or 0.0, end


def _read_entries(path: Path) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Read the entries by id, and describe the layout; None for the official one."""
    text, repeated = read_text(path), list[str]()
    try:
        content = json.loads(text, object_pairs_hook=partial(_collect, repeated=repeated))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON in UTF-8 ({error}); download the file itself, not its web page"
        ) from error
    if repeated:
        raise ValueError(f"{path}: expected every key once, got {repeated[0]!r} several times; remove all but one")
    layout: str | None = "a flat dictionary, as of MA-LMM and HERMES"
    if isinstance(content, dict) and "database" in content:
        content, layout = content["database"], None
    if isinstance(content, list) and all(isinstance(item, dict) and "video_uid" in item for item in content):
        layout = "a list of entries with video_uid, as of videollm-online"
        pairs = [(item["video_uid"], item) for item in content]
    elif isinstance(content, list):
        layout = _ONE_KEY
        pairs = [pair for item in content if isinstance(item, dict) and len(item) == 1 for pair in item.items()]
    else:
        pairs = list(content.items()) if isinstance(content, dict) else []
    known = all(isinstance(key, str) and isinstance(entry, dict) for key, entry in pairs)
    if not pairs or not known or len(pairs) != len(content):
        raise ValueError(f'{path}: expected {{"database": {{id: entry}}}}, or a layout that data/README.md describes')
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: expected every video once, got {twice[0]} several times; remove all but one")
    return dict(pairs), layout


def _collect(pairs: list[tuple[str, Any]], *, repeated: list[str]) -> dict[str, Any]:
    """Make a dictionary of a JSON object, of which `json` would silently keep only the last of several equal keys."""
    repeated += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return dict(pairs)


def _official_split(
    path: Path, entries: dict[str, dict[str, Any]], layout: str | None
) -> tuple[dict[str, str], list[str]]:
    """Return the official subset of each video, and notes on how the subsets in the list differ from it."""
    subsets, notes = _read_subsets(path, entries)
    lists = {subset: path.with_name(name) for subset, name in _ID_LISTS.items()}
    names = " and ".join(_ID_LISTS.values())
    remedy = f"put {names}, with one official id per line, in the same folder"
    if any(file.is_file() for file in lists.values()):
        missing = [file for file in lists.values() if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"The file {missing[0]} is missing; {remedy}, or neither of the two")
        official = _read_ids(lists)
        unknown = [key for key in subsets if key not in official]
        if unknown:
            hint = explain_missing(unknown[0], official, here=path.name, there="the lists of ids")
            raise ValueError(
                f"{path}: expected ids that are in {names}, got {unknown[0]}{hint}; remove it, or {remedy}"
            )
        moved = sum(official[key] != subset for key, subset in subsets.items())
        if moved:
            notes.append(f"{moved} videos have the wrong subset and are moved to the one in {names}")
        subsets = {key: official[key] for key in subsets}
    elif layout == _ONE_KEY:
        raise ValueError(f"{path}: is {layout}, of which PDPP's list has a split that is not official; {remedy}")
    counts = Counter(subsets.values())
    sizes = f"{counts['training']} of {_SIZES['training']} training and {counts['testing']} of {_SIZES['testing']} test"
    if any(counts[subset] > size for subset, size in _SIZES.items()):
        raise ValueError(f"{path}: expected the official split, got {sizes} videos; {remedy}")
    if counts != _SIZES:
        notes.append(f"{sizes} videos are listed")
    return subsets, notes


def _read_ids(lists: dict[str, Path]) -> dict[str, str]:
    """Return the subset of each id in the two lists of ids."""
    subsets: dict[str, str] = {}
    for subset, file in lists.items():
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            key = line.strip()
            if key and subsets.setdefault(key, subset) != subset:
                raise ValueError(
                    f"{file}, line {number}: expected ids that are in one of the two lists, got {key}, which is in "
                    f"{_ID_LISTS[subsets[key]]} too; remove it from one of them"
                )
    return subsets


def _read_subsets(path: Path, entries: dict[str, dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Return the official name of the subset of each video in the list, and notes on other names in it."""
    official = {spelling: subset for subset, spellings in _SPELLINGS.items() for spelling in spellings}
    listed = {key: str(entry.get("subset")) for key, entry in entries.items()}
    for key, subset in listed.items():
        if subset not in official:
            raise ValueError(f"{path}: expected training or testing as subset of {key}, got {subset}; correct it")
    names = sorted(set(listed.values()))
    if len(names) > len(_SIZES):
        raise ValueError(f"{path}: expected the subsets training and testing, got {', '.join(names)}; correct them")
    notes = [f"{name} stands for {official[name]}" for name in names if name not in _SIZES]
    return {key: official[subset] for key, subset in listed.items()}, notes


def _look_up_tasks(path: Path, entries: dict[str, dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Return the index and the name of the task of each labeled video."""
    names = {key: str(name) for key, e in entries.items() if (name := e.get("class") or e.get("target"))}
    tasks: dict[str, tuple[int, str]] = {}
    taxonomy = path.with_name("taxonomy_targets.csv")
    for row in read_rows(taxonomy, _TAXONOMY, delimiter=",") if taxonomy.is_file() else ():
        tasks[_letters(row["class"])] = row.class_index("recipe_type"), row["class"]
    numbers = {
        key: class_index(number, f"{path}: {key}: recipe_type")
        for key, entry in entries.items()
        if (number := entry.get("recipe_type")) is not None
    }
    for key, number in numbers.items():
        if key not in names:
            raise ValueError(f"{path}: expected class or target of {key} with its recipe_type; download the list again")
        task = tasks.setdefault(_letters(names[key]), (number, names[key]))
        if task[0] != number:
            raise ValueError(
                f"{path}: expected recipe_type {task[0]} for {key}, {names[key]}, got {number}; correct it"
            )
    for key, name in names.items():
        if _letters(name) not in tasks:
            raise ValueError(
                f"{path}: expected one of the 180 tasks as class of {key}, got {name}, which has a recipe_type neither "
                f"in other entries nor in {taxonomy.name}; correct it, or put that file in the same folder"
            )
    return {key: tasks[_letters(name)] for key, name in names.items()}


def _letters(name: str) -> str:
    """Reduce a class name to lower-case letters and digits, which its spellings share: PerformCPR, perform cpr."""
    return "".join(filter(str.isalnum, name.casefold()))

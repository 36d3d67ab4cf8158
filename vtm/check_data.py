"""Check every video of an experiment, or its stored features: python -m vtm.check_data experiment=lvu_scene.

It counts the sound, missing, unreadable and too short videos of each split, and lists those that are not sound in a
file. The exit status is 1 if there are any. With `data/source=features` it checks every byte of the stored features.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from tabulate import tabulate

from vtm.cli.encoder import build_encoder
from vtm.cli.errors import concise_errors
from vtm.cli.overrides import check_overrides
from vtm.data.datamodule import SPLITS, Split, VideoDataModule
from vtm.data.source import Video, explain_absence
from vtm.features.file import FeatureError, OtherTimesError
from vtm.system.atomic import write_atomically
from vtm.system.cells import as_cell, from_cell
from vtm.system.locks import locked_folder
from vtm.system.names import PathIndex
from vtm.system.progress import Progress
from vtm.video.decoding import TooShortError, VideoError

CONF = Path(__file__).parents[1] / "conf"
STATES = ("sound", "missing", "unreadable", "too short")


@check_overrides(CONF, "check_data")
@hydra.main(version_base="1.3", config_path=str(CONF), config_name="check_data")
@concise_errors()
def main(cfg: DictConfig) -> None:
    """Check all splits, print the counts, and list the videos that are not sound."""
    data = instantiate(cfg.data, encoder=build_encoder(cfg))
    findings = check(data)
    print(counts_table(findings))
    bad = [finding for finding in findings if finding.state != "sound"]
    if bad:
        _write(Path(cfg.run_dir) / "problems.csv", bad)
    try:
        update_unusable(data.source.unusable, findings)
    except OSError as error:
        print(
            f"{data.source.unusable}: cannot be written ({error.strerror}); data.allow_missing=true will not leave out "
            "the videos that were found unusable"
        )
    if bad:
        trainable = {finding.split for finding in findings if finding.state == "sound"} == set(SPLITS)
        sys.exit(
            f"{len(bad)} of {len(findings)} videos are not sound, see {cfg.run_dir}/problems.csv; "
            "data.allow_missing=true " + ("leaves them out" if trainable else "needs a sound video in every split")
        )


class Finding(NamedTuple):
    """The result of checking one video."""

    split: str
    id: str
    state: str
    path: str
    version: str  # of the checked file; the finding does not apply to another version
    reason: str


def check(data: VideoDataModule) -> list[Finding]:
    """Check all videos of a data set: the first and the last frame of each, or all its stored features.

    A video in two splits is listed twice.

    Args:
        data: data module that lists the videos and has their source.
    """
    todo = [(split, video) for split in SPLITS for video in data.listed(split)]
    paths = PathIndex()
    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("checking", len(todo)) as progress:
        findings = []
        for finding in pool.map(lambda entry: _check(data, *entry, paths=paths), todo):
            findings.append(finding)
            progress.advance()
    return findings


def counts_table(findings: Iterable[Finding]) -> str:
    """Tabulate the number of findings by split and state.

    >>> print(counts_table([Finding("test", "a", "sound", "", "", ""), Finding("test", "b", "missing", "", "", "")]))
           sound  missing  unreadable  too short
    train      0        0           0          0
    val        0        0           0          0
    test       1        1           0          0
    """
    counts = Counter((finding.split, finding.state) for finding in findings)
    rows = [["", *STATES], *([split, *(str(counts[split, state]) for state in STATES)] for split in SPLITS)]
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=["left", *["right"] * len(STATES)])


def update_unusable(path: Path, findings: list[Finding]) -> None:
    """Replace the entries of the checked videos in the list of unusable videos.

    Other processes may update the list at the same time.

    Args:
        path: CSV file of the list; it is created once there is a video to list.
        findings: results for the videos that were checked.

    Raises:
        OSError: if the list cannot be written.
    """
    checked = {finding.id for finding in findings}
    bad = [finding for finding in findings if finding.state in ("unreadable", "too short")]
    if not bad and not path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(path.parent):
        old: list[Finding] = []
        if path.is_file():
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = [{key: from_cell(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
            old = [Finding(**row) for row in rows if row["id"] not in checked]
        _write(path, old + bad)


def _check(data: VideoDataModule, split: Split, video: Video, *, paths: PathIndex) -> Finding:
    source = data.source
    state, version, reason = "missing", None, ""
    try:
        version = source.version(video)
        if version is None:
            reason = explain_absence(source, video, paths).removeprefix("; ")
        else:
            source.check(video, data.protocol, train=split == "train")
            state = "sound"
    except OtherTimesError as error:  # other times are stored than those needed
        reason = str(error)
    except TooShortError as error:
        state, reason = "too short", str(error)
    except (VideoError, FeatureError, ValueError, OSError) as error:
        state, reason = "unreadable", str(error)
    return Finding(split, video.id, state, source.locate(video), version or "", reason)


def _write(path: Path, findings: list[Finding]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([Finding._fields, *(map(as_cell, finding) for finding in findings)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))  # names may be other bytes


if __name__ == "__main__":
    main()

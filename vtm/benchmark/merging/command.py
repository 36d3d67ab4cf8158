"""Measure accuracy and speed of training-free merging without a download: python -m vtm.benchmark merging."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vtm.benchmark.options import chosen_device, count_option, counts_option, device_option, stamped_folder
from vtm.cli.errors import concise_errors
from vtm.system.progress import Progress

if TYPE_CHECKING:
    from vtm.benchmark.merging.report import Report

_BATCHES = {"cpu": (4, 1), "cuda": (64, 8)}


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    given = _options(arguments)
    with concise_errors():
        _run(given, shlex.join(["python", "-m", "vtm.benchmark", "merging", *arguments]))


def _run(given: argparse.Namespace, command: str) -> None:
    # slow to import, and not needed for --help
    import torch

    from vtm.benchmark.report import machine
    from vtm.results.record import source_commit

    device = chosen_device(given.device)
    threads = given.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    transformers = find_spec("transformers") is not None
    if not transformers:
        reason = "the accuracy and the rows of VideoMAE need transformers: pip install -e '.[hf]'"
        if given.only == "accuracy":
            raise ValueError(reason)
        print(f"left out: {reason}", file=sys.stderr)
    packages = ("timm", "transformers") if transformers else ("timm",)
    facts = machine(device, threads, source_commit(Path(__file__)))
    facts |= {name: f"{name} {version(name)}" for name in packages} | {"command": command}
    print("; ".join(facts.values()), f"written to {given.out}", sep="\n", flush=True)
    if given.quick:
        print("--quick measures tiny sizes, whose numbers mean nothing", flush=True)
    reports: list[Report] = []
    try:
        if given.only != "speed" and transformers:
            _measure_accuracy(given, device, facts, reports)
        if given.only != "accuracy":
            _measure_speed(given, device, facts, reports, videomae=transformers)
    except KeyboardInterrupt:
        rows = sum(len(table) for report in reports for table in report.tables.values())
        sys.exit(f"\ninterrupted; {rows} rows are in {given.out}" if rows else "\ninterrupted")


def _measure_accuracy(given: argparse.Namespace, device: str, facts: dict[str, str], reports: list[Report]) -> None:
    from vtm.benchmark.merging import accuracy
    from vtm.benchmark.merging.report import Report
    from vtm.benchmark.merging.training import Recipe

    recipe = Recipe(steps=4, batch=8, test_clips=24) if given.quick else Recipe()
    seeds = given.seeds or (1 if given.quick else 5)
    sizes = f"{seeds} seeds, {recipe.steps} training steps of {recipe.batch} clips, {recipe.test_clips} test clips."
    report = Report("accuracy", "Accuracy of training-free merging", facts, f"{sizes} {accuracy.LEGEND}")
    reports.append(report)
    with Progress("accuracy, clips", accuracy.work(recipe, seeds)) as progress:
        for title, cells in accuracy.measure(recipe, seeds=seeds, device=device, progress=progress):
            first = title not in report.tables
            report.tables.setdefault(title, []).append(cells)
            report.write(given.out)
            lines = report.table(title).splitlines()
            progress.print("\n".join([f"\n## {title}\n", *lines] if first else lines[-1:]))


def _measure_speed(
    given: argparse.Namespace, device: str, facts: dict[str, str], reports: list[Report], *, videomae: bool
) -> None:
    from vtm.benchmark.merging import speed
    from vtm.benchmark.merging.report import Report

    hosts = speed.hosts(quick=given.quick, videomae=videomae)
    images, *clips = given.batch or ((2, 2) if given.quick else _BATCHES[device.partition(":")[0]])
    batches = {host.name: images if host.frames is None or not clips else clips[0] for host in hosts}
    repeats = given.repeats or (2 if given.quick else 5)
    report = Report("speed", "Speed of training-free merging", facts, speed.LEGEND)
    reports.append(report)
    total = sum(speed.work(host, batches[host.name], repeats) for host in hosts)
    with Progress("speed, 10⁹ multiply-adds", total) as progress:
        for host in hosts:
            for rows in speed.measure(
                host, batch=batches[host.name], repeats=repeats, device=device, progress=progress
            ):
                report.tables[host.title] = rows
                report.write(given.out)
            progress.print(f"\n## {host.title}\n\n{report.table(host.title)}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.benchmark merging",
        description="Measure training-free merging (vtm.patching) without a download: its accuracy in small models "
        "that are trained here on drawn clips, and its speed in models of real size with random weights.",
        epilog="A small example, in seconds: python -m vtm.benchmark merging --quick",
    )
    parser.add_argument("--only", choices=("accuracy", "speed"), help="measure only one of the two")
    parser.add_argument("--device", type=device_option, help="cpu, cuda or cuda:1 (default: cuda if available)")
    parser.add_argument("--threads", type=count_option, help="number of CPU threads (default: torch's choice)")
    parser.add_argument(
        "--batch", type=_batches, help="images and clips per call, for the speed (default: 4,1 on a CPU, 64,8 on a GPU)"
    )
    parser.add_argument("--repeats", type=count_option, help="timed rounds, for the speed (default: 5)")
    parser.add_argument("--seeds", type=count_option, help="number of models to train, for the accuracy (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose numbers mean nothing")
    parser.add_argument("--out", type=Path, help="output folder (default: runs/benchmark/<stamp>)")
    given = parser.parse_args(arguments)
    given.out = given.out or stamped_folder()
    return given


def _batches(text: str) -> tuple[int, ...]:
    counts = counts_option(text)
    if len(counts) > 2:
        raise argparse.ArgumentTypeError(f"expected one number, or two for images and clips, got {text}")
    return counts

"""Measure the compressors of video LLMs without a download: python -m vtm.benchmark compressors."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from vtm.benchmark.options import chosen_device, count_option, device_option, stamped_folder
from vtm.cli.errors import concise_errors
from vtm.system.progress import Progress


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    given = _options(arguments)
    with concise_errors():
        _run(given, shlex.join(["python", "-m", "vtm.benchmark", "compressors", *arguments]))


def _run(given: argparse.Namespace, command: str) -> None:
    if find_spec("transformers") is None:
        raise ValueError("the benchmark of compressors needs transformers: pip install -e '.[hf]'")
    # slow to import, and not needed for --help
    import torch

    from vtm.benchmark.compressors import accuracy
    from vtm.benchmark.compressors.training import Recipe
    from vtm.benchmark.merging.report import Report
    from vtm.benchmark.report import machine
    from vtm.results.record import source_commit

    device = chosen_device(given.device)
    threads = given.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    recipe = Recipe(stages=((2, 4, 2),), frames=14, test_clips=2) if given.quick else Recipe()
    seeds = given.seeds or (1 if given.quick else 5)
    facts = machine(device, threads, source_commit(Path(__file__)))
    facts |= {"transformers": f"transformers {version('transformers')}", "command": command}
    print("; ".join(facts.values()), f"written to {given.out}", sep="\n", flush=True)
    if given.quick:
        print("--quick measures tiny sizes, whose numbers mean nothing", flush=True)
    sizes = f"{seeds} seeds, test clips of {recipe.frames} frames, {recipe.test_clips} per seed."
    report = Report("compressors", "Compressors of video LLMs", facts, f"{sizes} {accuracy.LEGEND}")
    try:
        with Progress("compressors, frames", accuracy.work(recipe, seeds)) as progress:
            for tables in accuracy.measure(recipe, seeds=seeds, folder=given.out, device=device, progress=progress):
                report.tables = tables
                report.write(given.out)
                title = next(iter(tables))
                progress.print(f"\n## {title}\n\n{report.table(title)}")
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; to go on, give --out {given.out}")
    print(*(f"\n## {title}\n\n{report.table(title)}" for title in list(report.tables)[1:]), sep="\n", flush=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.benchmark compressors",
        description="Measure the compressors of conf/compressor without a download: small video LLMs are trained here "
        "on drawn clips, and answer questions with each compressor at equal budgets of tokens.",
        epilog="A small example, in seconds: python -m vtm.benchmark compressors --quick",
    )
    parser.add_argument("--device", type=device_option, help="cpu, cuda or cuda:1 (default: cuda if available)")
    parser.add_argument("--threads", type=count_option, help="number of CPU threads (default: torch's choice)")
    parser.add_argument("--seeds", type=count_option, help="number of models to train (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose numbers mean nothing")
    parser.add_argument(
        "--out",
        type=Path,
        help="output folder; models that it holds are not trained again (default: runs/benchmark/<stamp>)",
    )
    given = parser.parse_args(arguments)
    given.out = given.out or stamped_folder()
    return given

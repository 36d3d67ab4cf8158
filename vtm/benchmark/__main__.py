"""Measure time and memory of the network on this machine, and count its arithmetic: python -m vtm.benchmark.

By default it changes one factor at a time from the paper's setting: one clip of 60 frames of 16 × 16 tokens with 1024
channels, and the rest as in `conf/`. It prints each row when it is measured, and writes tables in Markdown and CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from vtm.benchmark.options import chosen_device, count_option, counts_option, device_option, stamped_folder
from vtm.benchmark.rows import Row, Setting, default_tables, full_tables, long_tables
from vtm.cli.errors import concise_errors
from vtm.system.progress import Progress


def main() -> None:
    """Measure the tables chosen on the command line."""
    if sys.argv[1:2] == ["merging"]:  # overrides contain "="
        from vtm.benchmark.merging import command as merging

        merging.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["compressors"]:
        from vtm.benchmark.compressors import command as compressors

        compressors.main(sys.argv[2:])
        return
    given = _arguments()
    with concise_errors():
        _run(given)


def _run(given: dict[str, Any]) -> None:
    # slow to import, and not needed for --help
    import torch

    from vtm.benchmark.counting import needs
    from vtm.benchmark.measuring import Result, measure
    from vtm.benchmark.network import identity
    from vtm.benchmark.processes import measured_apart
    from vtm.benchmark.report import Report, machine
    from vtm.results.record import source_commit

    device = chosen_device(given.pop("device"))
    kinds = {"batches": given.pop("batch"), "precisions": given.pop("precision")}
    full, long, encoder, only, out = (given.pop(name) for name in ("full", "long", "encoder", "only", "out"))
    setting = Setting(**given | {"device": device, "threads": given["threads"] or torch.get_num_threads()})
    gpu = torch.device(device).type != "cpu"
    if full:
        tables = full_tables(**kinds, encoder=encoder or gpu)
    else:
        tables = default_tables(**kinds, plain_everywhere=gpu, encoder=encoder or gpu)
    tables |= long_tables() if long else {}
    titles = ", ".join(tables)
    tables = {title: rows for title, rows in tables.items() if only.lower() in title.lower()}
    if not tables:
        raise ValueError(f"--only {only} matches no title of {titles}; --long and --encoder add tables")
    rows = {identity(row, setting): row for row in chain.from_iterable(tables.values())}  # raises for wrong overrides
    needs(next(row for row in rows.values() if row.strategy == "learnable"), setting)

    report = Report(machine(device, setting.threads, source_commit(Path(__file__))), _shape(setting))
    print("; ".join(report.machine.values()), report.shape, f"written to {out}", sep="\n")
    least = _least_seconds(rows.values(), setting)
    print(f"{len(rows)} rows, which take at least {timedelta(seconds=round(least))} on this machine", flush=True)
    known: dict[Any, Result] = {}
    rates: dict[str, float] = {}
    try:
        for title, table in tables.items():
            print(f"\n## {title}\n", flush=True)
            for row in table:
                same = identity(row, setting)
                if same not in known:
                    print(f"row {len(known) + 1} of {len(rows)}: {row.name}", file=sys.stderr, flush=True)
                    known[same] = measured_apart(measure, row, setting, rates.get(row.precision))
                result = known[same]
                rates |= {row.precision: result.rate} if result.rate else {}
                report.entries.append((title, row, result))
                lines = report.table(title).splitlines()
                print(*(lines if row is table[0] else lines[-1:]), sep="\n", flush=True)  # the heading with the first
                report.write(out)
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {len(report.entries)} rows are in {out}" if report.entries else "\ninterrupted")


def _least_seconds(rows: Collection[Row], setting: Setting) -> float:
    """Compute the time of the rows from their arithmetic and the speed of a matrix product on this machine."""
    import torch

    from vtm.benchmark.counting import needs
    from vtm.benchmark.measuring import least_seconds, matrix_rate

    torch.set_num_threads(setting.threads)
    rate = matrix_rate(torch.device(setting.device), torch.float32, repeats=1)
    seconds = 0.0
    with Progress("counting the arithmetic of the rows", len(rows), every_seconds=5) as progress:
        for row in rows:
            with suppress(ValueError, InstantiationException):  # shown with the row
                seconds += least_seconds(row, setting, needs(row, setting).flop, rate)
            progress.advance(row.name)
    return seconds


def _shape(setting: Setting) -> str:
    sizes = f"{setting.frames} × {setting.height} × {setting.width} × {setting.channels}"
    return f"Clips of {sizes} features; overrides: {' '.join(setting.overrides) or 'none'}"


def _arguments() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m vtm.benchmark",
        description="Measure time and memory of the network on this machine, and count its arithmetic, for each "
        "strategy, γ, L, R, batch size, precision and torch.compile.",
        epilog="A small example: python -m vtm.benchmark --only strategies --height 4 --width 4 "
        "--channels 256 --batch 1 --precision 32-true. Training-free merging and the compressors of video LLMs have "
        "benchmarks of their own: python -m vtm.benchmark merging --help, python -m vtm.benchmark compressors --help",
    )
    parser.add_argument("overrides", nargs="*", help="overrides of conf/train.yaml, such as merging.partition_factor=4")
    parser.add_argument("--full", action="store_true", help="measure all combinations, not one factor at a time")
    parser.add_argument(
        "--long", action="store_true", help="also measure videos of up to three hours, whole and as a stream"
    )
    parser.add_argument("--encoder", action="store_true", help="also measure with the encoder (always on a GPU)")
    parser.add_argument("--only", default="", help=f"only tables with this text in the title: {_titles()}")
    parser.add_argument("--device", type=device_option, help="cpu, cuda or cuda:1 (default: cuda if available)")
    parser.add_argument("--threads", type=count_option, help="number of CPU threads (default: torch's choice)")
    parser.add_argument(
        "--repeats", type=count_option, default=5, help="timed calls per row (default: 5; slow rows: at most 3)"
    )
    parser.add_argument(
        "--limit", type=float, default=20.0, help="skip rows whose calls take more seconds than this (default: 20)"
    )
    for name, size in {"frames": 60, "height": 16, "width": 16, "channels": 1024}.items():
        parser.add_argument(
            f"--{name}", type=count_option, default=size, help=f"{name} of the features (default: {size})"
        )
    parser.add_argument(
        "--batch", type=counts_option, default="1,16", help="batch sizes; most tables use the first (default: 1,16)"
    )
    parser.add_argument(
        "--precision",
        type=_precisions,
        default="32-true,bf16-mixed",
        help="precisions; most tables use the first (default: 32-true,bf16-mixed)",
    )
    parser.add_argument("--out", type=Path, help="output folder (default: runs/benchmark/<stamp>)")
    given = vars(parser.parse_intermixed_args())
    for name in ("merging", "compressors"):
        if name in given["overrides"]:
            parser.error(f"{name} must come first: python -m vtm.benchmark {name} …")
    given["overrides"] = tuple(given["overrides"])
    given["out"] = given["out"] or stamped_folder()
    return given


def _titles() -> str:
    tables = default_tables((1, 16), ("32-true", "bf16-mixed"), plain_everywhere=True, encoder=True)
    return ", ".join([*tables, *long_tables()])


def _precisions(text: str) -> tuple[str, ...]:
    known = ("32-true", "bf16-mixed")
    parts = tuple(text.split(","))
    if unknown := [part for part in parts if part not in known]:
        raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(known)}, got {unknown[0]}")
    return parts


if __name__ == "__main__":
    main()

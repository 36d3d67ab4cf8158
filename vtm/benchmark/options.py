"""The values of command-line options that the benchmarks share."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path


def device_option(text: str) -> str:
    """Parse the name of a device.

    Raises:
        argparse.ArgumentTypeError: if it is neither a CPU nor a GPU of CUDA.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:1, got {text}")
    return text


def count_option(text: str) -> int:
    """Parse a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: if it is something else.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)


def counts_option(text: str) -> tuple[int, ...]:
    """Parse whole numbers above 0, separated by commas."""
    return tuple(count_option(part) for part in text.split(","))


def chosen_device(given: str | None) -> str:
    """Return the given device, or without one a GPU if there is one.

    Raises:
        ValueError: if the GPU does not exist.
    """
    import torch  # slow to import, and not needed for --help

    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {device} does not exist: torch finds {torch.cuda.device_count()} GPUs; choose another"
        )
    return device


def stamped_folder() -> Path:
    """Return the default output folder, named by the time."""
    return Path("runs/benchmark") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")

"""Bring the `results.json` of `python -m vtm.qa`, about questions, into the form of a run of train.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `results.json` with its scores as the test of either checkpoint.

    The seed is that of the compressor, if it has one, and the floor that of always choosing one letter; chance and the
    scores over rotations of the options are `details`.
    """
    rotations = content.get("cyclic") or {}
    names = {"mean": "mean of orders", "min": "worst order", "max": "best order", "all_correct": "right in all orders"}
    tokens = content["tokens"]
    test = {
        "level": "question",
        **{key: content[key] for key in ("metric", "value", "interval", "n", "videos", "missing", "ids_sha256")},
        "floor": content["floor"]["majority"],
        "details": {
            "chance": content["floor"]["chance"],
            **{name: rotations[key] for key, name in names.items() if key in rotations},
        },
        "errors": len(content["errors"]),
        "orders": rotations.get("orders", 1) if rotations.get("n") == content["n"] else 1,  # of every question
        "prompt": content["prompt"],
        "frames": content["frames"],
        "hash": content["hash"],
        "nothing_merged": tokens["nothing_merged"],
        "seconds_per_question": content["seconds_per_question"],
        "cost": {"tokens": [tokens["before"], tokens["after"]], "tokens_kept": tokens["kept"]},
    }
    seed = content["compressor"].get("seed", content["seed"])
    return {**content, "seed": seed, "test": test, "test_last": test}

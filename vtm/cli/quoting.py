"""Overrides that Hydra reads as they were meant, for commands that are printed to be pasted or that start processes."""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def quoted_override(key: str, text: str) -> str:
    r"""Return the override that sets a key to a text; it is quoted only where Hydra would read it differently.

    >>> print(quoted_override("ckpt_path", "runs/demo/best.ckpt"))
    ckpt_path=runs/demo/best.ckpt
    >>> print(quoted_override("ckpt_path", "runs/my run (2)/best.ckpt"))
    ckpt_path="runs/my run (2)/best.ckpt"
    """
    # OmegaConf would replace ${…}, unless a backslash precedes it; earlier backslashes then count twice
    text = re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)
    plain = f"{key}={text}"
    try:
        found = OverridesParser.create().parse_override(plain)
        if isinstance(found.value(), str) and found.value() == text and not found.is_sweep_override():
            return plain
    except HydraException:
        pass
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"

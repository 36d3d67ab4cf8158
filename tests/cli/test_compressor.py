"""A compressor is built from its name and overrides; mistakes name what exists."""

from pathlib import Path

import pytest

from vtm.cli.compressor import build_compressor
from vtm.compressors import dyntok, dyto, keep_all

CONF = Path(__file__).parents[2] / "conf" / "compressor"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_compressor_is_built(name):
    assert callable(build_compressor([name], CONF))


def test_overrides_replace_values():
    compressor = build_compressor(["dyntok", "threshold=null", "target_ratio=0.5"], CONF)
    assert compressor.func is dyntok
    assert compressor.keywords == {"threshold": None, "target_ratio": 0.5, "axis": "row", "reduce": "mean"}
    released = build_compressor(["dyto_released", "budget=3680"], CONF)
    assert (released.func, released.keywords["budget"], released.keywords["few_pick"]) == (dyto, 3680, "first")
    assert build_compressor(["none"], CONF).func is keep_all


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dynto"], "'dynto' is not a compressor; expected one of dyntok, dyto, dyto_released, none, "),
        (
            ["dyntok", "tau=1"],
            "'tau=1' cannot be set for the compressor dyntok; expected key=value with a key of thres",
        ),
        (["dyntok", "0.6"], "'0.6' cannot be set for the compressor dyntok; expected key=value"),
        (["dyntok", "_target_=os.system"], "'_target_=os.system' cannot be set"),
        (["dyntok", "+threshold=1"], r"'\+threshold=1' cannot be set"),
        (["none", "a=1"], "'a=1' cannot be set for the compressor none; expected no overrides"),
        (["dyntok", "threshold=much"], "threshold=much: expected a number"),
        (["dyntok", "threshold=0.5,0.6"], "has several values"),
    ],
)
def test_mistakes_name_what_exists(words, message):
    with pytest.raises(ValueError, match=message):
        build_compressor(words, CONF)

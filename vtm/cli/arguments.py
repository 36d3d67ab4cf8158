"""Flags and overrides on the command line of a Hydra application, told apart before Hydra's own parser reads them."""

from __future__ import annotations

import difflib
from typing import NamedTuple

_SHORT = {
    "-h": "--help", "-c": "--cfg", "-p": "--package", "-r": "--run", "-m": "--multirun", "-sc": "--shell-completion",
    "-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir", "-i": "--info",
}  # fmt: skip
_WITH_VALUE = (
    "--cfg", "--package", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
)  # fmt: skip
_FLAGS = (*sorted({*_SHORT.values(), *_WITH_VALUE}), "--hydra-help", "--version", "--resolve")
_ONE_OF = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")


class Arguments(NamedTuple):
    """The arguments of a command.

    Attributes:
        flags: flags such as `-m`, each with its value behind it, if it has one.
        words: other arguments, which should be overrides.
        names: long names of the flags.
        mistakes: one sentence for each flag that does not exist or cannot be given.
    """

    flags: list[str]
    words: list[str]
    names: set[str]
    mistakes: list[str]


def split_arguments(arguments: list[str]) -> Arguments:
    """Divide arguments into flags and words, in any order.

    >>> split_arguments(["experiment=demo", "-m", "seed=0,1", "--cfg", "job"])[:2]
    (['-m', '--cfg', 'job'], ['experiment=demo', 'seed=0,1'])
    """
    flags, words, names, mistakes = list[str](), list[str](), set[str](), list[str]()
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
        elif (name := _long_name(argument)) is None:
            mistakes.append(_unknown_flag(argument))
        else:
            flags.append(argument)
            names.add(name)
            if name in _WITH_VALUE and "=" not in argument and left and not (name == "--info" and "=" in left[0]):
                flags.append(left.pop(0))
    if len(both := [name for name in _ONE_OF if name in names]) > 1:
        mistakes.append(f"{' and '.join(both)} cannot be combined; give one of them")
    return Arguments(flags, words, names, mistakes)


def _long_name(argument: str) -> str | None:
    """Return the name of a flag, which may be abbreviated; None if it does not exist."""
    flag, equals, _ = argument.partition("=")
    flag = _SHORT.get(flag, flag)
    # argparse would take --experiment=demo for an abbreviation of --experimental-rerun
    found = [name for name in _FLAGS if name == flag or (name.startswith(flag) and flag[:2] == "--" and not equals)]
    return found[0] if len(found) == 1 and (not equals or found[0] in _WITH_VALUE) else None


def _unknown_flag(argument: str) -> str:
    key, equals, value = argument.lstrip("-").partition("=")
    if equals:
        return (
            f"{argument!r} is not a flag; write {f'{key}={value}'!r}, without hyphens (a W&B sweep does if its command "
            "ends with ${args_no_hyphens})"
        )
    near = difflib.get_close_matches(argument, _FLAGS, n=1, cutoff=0.7)
    remedy = f"did you mean {near[0]}?" if near else f"write {key}=value to set a key, or see --hydra-help"
    return f"{argument!r} is not a flag; {remedy}"

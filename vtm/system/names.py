"""Explain how names that look alike differ: composed letters, case, spaces, slashes and invisible characters."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

_ALIKE = str.maketrans(
    "‐‑‒–—―−’‘´“”„АВЕЅІЈКМНОРСТУХаеіјорсухѕԁΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",  # dashes, quotes, Cyrillic and Greek letters
    "-------'''\"\"\"ABESIJKMHOPCTYXaeijopcyxsdABEZHIKMNOPTYXo",
)


def _visible(name: str) -> str:
    """Remove characters without a picture, such as a byte order mark; white space stays."""
    if name.isascii() and name.isprintable():
        return name
    return "".join(c for c in name if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())


def _common(name: str) -> str:
    """Replace dashes, quotes, foreign letters and compatibility characters by the common ones that look like them."""
    if name.isascii():
        return name
    return "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith("<") and not c.isspace() else c
        for c in name.translate(_ALIKE)
    )


def _trimmed(name: str) -> str:
    """Remove white space around each part of a path and its suffix, and replace other white space by single spaces."""
    stems = (os.path.splitext(" ".join(part.split())) for part in name.split("/"))
    return "/".join(stem.rstrip() + suffix for stem, suffix in stems)


_RULES: dict[str, Callable[[str], str]] = {
    "invisible": _visible,
    "alike": _common,
    "slashes": lambda name: name.replace("\\", "/"),
    "quotes": lambda name: name.strip("\"'"),
    "spaces": _trimmed,
    "composed": lambda name: unicodedata.normalize("NFC", name),
    "case": str.casefold,
}


def fold(name: str, *, without: str = "") -> str:
    r"""Reduce a name to what it shares with all names that look like it.

    Args:
        name: name or path.
        without: rule to leave out.

    >>> fold("Cafe\u0301\\A.mp4 ") == fold("caf\xe9/a.mp4")
    True
    """
    for key, rule in _RULES.items():
        name = name if key == without else rule(name)
    return name


def explain_difference(name: str, other: str, *, here: str, there: str) -> str:
    r"""Describe how two unequal names with equal folds differ.

    Args:
        name: name that was requested.
        other: name that exists.
        here: where the first name is written, such as "the list".
        there: where the other name is written, such as "the file name".

    >>> explain_difference("caf\xe9", "cafe\u0301", here="the list", there="the file name")
    "'é' is composed in the list and decomposed in the file name"
    >>> explain_difference("a\\b", "a/b ", here="the list", there="the file name")
    'the list has a backslash where the file name has a slash, and the name ends with a space in the file name'
    """
    needed = [key for key in _RULES if fold(name, without=key) != fold(other, without=key)]
    texts = [_describe(key, name, other, here, there) for key in needed]
    return ", and ".join(texts) or f"{here} has {name!a} and {there} has {other!a}"


def explain_missing(name: str, existing: Iterable[str], *, here: str, there: str) -> str:
    r"""Name the existing name that only looks like a missing one, with the difference; empty if there is none.

    Args:
        name: name that was not found.
        existing: names that exist.
        here: where the missing name is written, such as "the list".
        there: where the existing names are written, such as "the file name".

    >>> explain_missing("dog ", ["cat", "dog"], here="the table", there="the folder")
    "; 'dog' exists, but the name ends with a space in the table"
    >>> explain_missing("bird", ["cat", "dog"], here="the table", there="the folder")
    ''
    """
    folded = fold(name)
    other = next((other for other in existing if other != name and fold(other) == folded), None)
    if other is None:
        return ""
    return f"; {other!r} exists, but {explain_difference(name, other, here=here, there=there)}"


def did_you_mean(name: str, near: Sequence[str], *, there: str) -> str:
    """Ask for names that resemble an unknown one on the command line, and describe a difference that is hard to see.

    Args:
        name: name that is unknown.
        near: names that exist.
        there: where the existing names are written.

    >>> did_you_mean("scene ", ["scene"], there="the tasks")
    "did you mean 'scene'? the name ends with a space in the command line"
    >>> did_you_mean("scen", ["scene", "screen"], there="the tasks")
    "did you mean 'scene' or 'screen'?"
    """
    question = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
    if near and fold(near[0]) == fold(name):
        question += f" {explain_difference(name, near[0], here='the command line', there=there)}"
    return question


def spellings(name: str) -> list[str]:
    """List other spellings of a name that look the same or nearly the same, except for case."""
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in (name, _trimmed(name))]
    forms += [form.replace("\\", "/") for form in forms]
    return [form for form in dict.fromkeys((*forms, _visible(name))) if form != name]


def explain_path(path: str | Path) -> str:
    """Name the existing path that only looks like a given one that is missing, see `PathIndex.explain`."""
    return PathIndex().explain(Path(path), here="the given path")


class PathIndex:
    """An index of the names in folders, to find the file that a missing path may stand for; it reads a folder once."""

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, list[str]]] = {}

    def explain(self, path: Path, *, here: str = "the list", suffixes: Collection[str] = ()) -> str:
        """Name the existing path that only looks like a missing one, with the difference; empty if there is none.

        Args:
            path: path that does not exist.
            here: where the path is written.
            suffixes: suffixes in lower case that the file may have instead of its own.
        """
        path = Path(os.path.abspath(path))
        folder = next(parent for parent in path.parents if os.path.exists(parent))
        missing = path.relative_to(folder).as_posix()
        other = self._find(folder, missing.replace("\\", "/").split("/"), suffixes)
        if other is None:
            return ""
        names = missing, other.relative_to(folder).as_posix()
        if fold(names[0]) != fold(names[1]):  # the file has another suffix
            names = missing[: -len(path.suffix)], names[1][: -len(other.suffix)]
        if names[0] == names[1]:
            return ""
        return f"; {other} exists, but {explain_difference(*names, here=here, there='the file name')}"

    def _find(self, folder: Path, parts: list[str], suffixes: Collection[str]) -> Path | None:
        names = self._names(folder)
        alike = names.get(fold(parts[0]), [])
        if len(parts) > 1:
            found = (self._find(folder / name, parts[1:], suffixes) for name in alike)
            return next((path for path in found if path is not None), None)
        stem, suffix = os.path.splitext(parts[0])
        if not alike and suffix.lower() in suffixes:
            alike = [name for other in suffixes for name in names.get(fold(stem + other), [])]
        return folder / alike[0] if alike else None

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Return the names in a folder by their fold; empty for anything but a readable folder."""
        if folder not in self._read:
            self._read[folder] = {}
            try:
                listed = sorted(os.listdir(folder))
            except OSError:
                listed = []
            for name in listed:
                self._read[folder].setdefault(fold(name), []).append(name)
        return self._read[folder]


def _describe(key: str, name: str, other: str, here: str, there: str) -> str:
    rule, sides = _RULES[key], ((name, here), (other, there))
    if key == "composed":
        letter = next(c for c in rule(name + other) if unicodedata.normalize("NFD", c) != c)
        return f"{letter!r} is {_form(name)} in {here} and {_form(other)} in {there}"
    if key == "case":
        pairs = zip(fold(name, without=key), fold(other, without=key), strict=False)
        upper, lower = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
        return f"{upper!r} in {here} is {lower!r} in {there}: upper and lower case differ"
    text, where = next((side for side in sides if rule(side[0]) != side[0]), sides[0])
    if key == "slashes":
        return f"{where} has a backslash where {there if where == here else here} has a slash"
    if key == "quotes":
        return f"the name has quotation marks around it in {where}"
    if key == "spaces":
        ends = [f"the name ends with a space in {where}" for text, where in sides if text.endswith(" ")]
        ends += [f"the name begins with a space in {where}" for text, where in sides if text.startswith(" ")]
        return ", and ".join(ends) or f"the spaces differ: {name!a} in {here}, {other!a} in {there}"
    character = next((c for c in text if rule(c) != c), text)
    if key == "invisible":
        return f"the name has the invisible character U+{ord(character):04X} in {where}"
    return f"{character!r} (U+{ord(character):04X}) in {where} only looks like {rule(character)!r}"


def _form(name: str) -> str:
    composed, decomposed = (unicodedata.normalize(form, name) == name for form in ("NFC", "NFD"))
    return "composed" if composed else "decomposed" if decomposed else "partly composed"

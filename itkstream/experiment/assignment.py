"""Rounds that tables are of, told by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from itkstream.errors import InputError, unknown_name

__all__ = ["assign_tables"]


def assign_tables(
    tables: Sequence[str | os.PathLike[str]] | Mapping[str, Any],
    rounds: Sequence[str],
    otherwise: str | None,
) -> dict[str, list[str]]:
    """Find the round of each table; those that name none are of `otherwise`, if that is one."""
    found: dict[str, list[str]] = {}
    if isinstance(tables, Mapping):
        for name, given in tables.items():
            if name not in rounds:
                raise unknown_name("round", name, rounds)
            some = [given] if isinstance(given, (str, os.PathLike)) else given
            found[name] = [os.fspath(path) for path in some]
    else:
        some = [tables] if isinstance(tables, (str, os.PathLike)) else tables
        named = dict(_named(os.fspath(path), rounds) for path in some)
        if otherwise is not None:
            named = {path: names or [otherwise] for path, names in named.items()}
        _refuse_unclear(named, rounds)
        for path, (name,) in named.items():
            found.setdefault(name, []).append(path)
    if not any(found.values()):
        raise InputError("there is no table of spots to move")
    return {name: found[name] for name in rounds if found.get(name)}


def _refuse_unclear(named: Mapping[str, Sequence[str]], rounds: Sequence[str]) -> None:
    """Refuse tables that name no round, or several."""
    unclear = [path for path, names in named.items() if len(names) != 1]
    if not unclear:
        return
    lines = [
        f"{len(unclear)} of {len(named)} tables do not tell which round they are of: say it, as in "
        f"{rounds[-1]}={unclear[0]}, or rename them",
        *(f"  {path}: {' or '.join(named[path]) or 'no round'}" for path in unclear),
        f"  the rounds are {', '.join(rounds)}",
    ]
    raise InputError("\n".join(lines))


def _named(given: str, rounds: Sequence[str]) -> tuple[str, list[str]]:
    """Path of a table, and the rounds it names: the one before an equals sign, if there is one."""
    name, sign, path = given.partition("=")
    if sign and name in rounds and not Path(given).exists():
        return path, [name]
    return given, _named_in(given, rounds)


def _named_in(path: str, rounds: Sequence[str]) -> list[str]:
    """Rounds whose name stands in the name of a file, or else in that of its folder.

    A longer name that holds another stands for itself: not round1 in round10, nor in round1-again.
    """
    parts = path.replace("\\", "/").rstrip("/").split("/")
    for part in (parts[-1].rsplit(".", 1)[0], *parts[-2:-1]):
        found = [name for name in rounds if _holds(part, name)]
        found = [n for n in found if not any(n != o and _holds(o, n) for o in found)]
        if found:
            return found
    return []


def _holds(text: str, name: str) -> bool:
    """Whether a text holds a name that does not go on with digits, nor with letters."""
    after = r"(?!\d)" if name[-1].isdigit() else r"(?![^\W\d_])"
    pattern = rf"(?<![^\W_]){re.escape(name)}{after}"
    return re.search(pattern, text, re.IGNORECASE) is not None

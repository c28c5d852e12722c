"""The channel of an image that is meant: by its number, by its name, or because it is plain."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from itkstream.errors import InputError, NoSuchPartError, UnstatedChannelError

__all__ = ["Channels", "choose_channel", "several_channels"]

Channels: TypeAlias = int | str | list[Any] | tuple[Any, ...] | None
"""A channel, by number or name, or several, each alone or with its weight."""

_NO_LIST = (
    "channels must be numbers counted from 0, or names, each alone or with a weight above 0: "
    "['DAPI', 'GFP'], [('DAPI', 2), ('GFP', 1)]; got {0!r}"
)

# Stains of nuclei alone. Words that are said of other channels too (nuclear, H2B, blue, 405) single
# none out: who is asked chooses better than who guesses.
_NUCLEAR_STAIN = re.compile(r"(?<![a-z])(dapi|hoechst|draq[57]|nuclei)(?![a-z])", re.IGNORECASE)


def several_channels(given: Any) -> tuple[tuple[int | str, float | None], ...]:
    """The channels of a list, each with its weight where it has one; none where one is given.

    An entry is a number or a name, or a pair of that and a weight above 0.
    """
    if given is None or isinstance(given, (int, str)):
        return ()
    try:
        entries = [(e, None) if isinstance(e, (int, str)) else tuple(e) for e in given]
        told = [(name, None if w is None else float(w)) for name, w in entries]
    except (TypeError, ValueError) as error:
        raise InputError(_NO_LIST.format(given)) from error
    sound = all(_is_channel(name) and (w is None or 0 < w < math.inf) for name, w in told)
    if not told or not sound:
        raise InputError(_NO_LIST.format(given))
    if len({name for name, _ in told}) < len(told):
        raise InputError(f"each channel may be named once; got {given!r}")
    return tuple(told)


def _is_channel(name: Any) -> bool:
    """A number counted from 0, or a name."""
    if isinstance(name, str):
        return bool(name.strip())
    return isinstance(name, int) and not isinstance(name, bool) and name >= 0


def choose_channel(wanted: int | str | None, names: Sequence[str], place: str) -> int:
    """Choose one of the channels of an image, whose names are "" where its file has none.

    Where none is wanted, it is the only channel, or the only one that is named after a stain of
    nuclei; else that is an `UnstatedChannelError` that lists them.
    """
    if isinstance(wanted, str):
        return _named(wanted, names, place)
    if wanted is not None:
        if not 0 <= wanted < len(names):
            raise NoSuchPartError(
                f"{place} has no channel {wanted}; it has {len(names)}, counted from 0"
            )
        return wanted
    stains = [number for number, name in enumerate(names) if _NUCLEAR_STAIN.search(name)]
    if len(names) == 1 or len(stains) == 1:
        return stains[0] if stains else 0
    raise UnstatedChannelError(
        f"{place} has {len(names)} channels, and nothing says which is meant: {_listed(names)}; "
        "pass channel=, a number or a name"
    )


def _named(wanted: str, names: Sequence[str], place: str) -> int:
    """Find the channel of a name; capitals count only where they tell two apart."""
    for same in (str.strip, lambda name: name.strip().casefold()):
        found = [number for number, name in enumerate(names) if name and same(name) == same(wanted)]
        if len(found) > 1:
            raise InputError(
                f"{place} has {len(found)} channels {wanted!r}: pass channel=, one of the numbers "
                f"{', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    raise NoSuchPartError(f"{place} has no channel {wanted!r}; it has {_listed(names)}")


def _listed(names: Sequence[str]) -> str:
    said = [f"{number} {name!r}" if name else str(number) for number, name in enumerate(names)]
    return ", ".join(said) if any(names) else f"{', '.join(said)} (without names)"

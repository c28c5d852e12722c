"""The channel of an image that is meant: by its number, by its name, or because it is plain."""

from __future__ import annotations

import re
from collections.abc import Sequence

from itkstream.errors import InputError, NoSuchPartError, UnstatedChannelError

__all__ = ["choose_channel"]

# Stains of nuclei alone. Words that are said of other channels too (nuclear, H2B, blue, 405) single
# none out: who is asked chooses better than who guesses.
_NUCLEAR_STAIN = re.compile(r"(?<![a-z])(dapi|hoechst|draq[57]|nuclei)(?![a-z])", re.IGNORECASE)


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

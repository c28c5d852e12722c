"""The exceptions itkstream raises, in one tree.

Every message says what was expected, what came, and what to do. Each exception also descends
from the builtin that fits, so callers may catch either.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "AccessError",
    "ExistingOutputError",
    "InputError",
    "ItkstreamError",
    "MissingDataError",
    "PlanError",
    "RegistrationError",
    "WorkersError",
    "unknown_name",
]


class ItkstreamError(Exception):
    """Base of everything itkstream raises on purpose."""


class InputError(ItkstreamError, ValueError):
    """An argument, an image or a file is not what the function can take."""


class MissingDataError(ItkstreamError, FileNotFoundError):
    """A path or a dataset inside a container does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AccessError(ItkstreamError, OSError):
    """A store cannot be reached or does not let us in."""


class ExistingOutputError(ItkstreamError, FileExistsError):
    """An output is already there and overwriting it was not asked for."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class PlanError(InputError, MemoryError):
    """What is asked for needs more memory than there is."""


class RegistrationError(ItkstreamError, RuntimeError):
    """The images are valid but no trustworthy transform was found between them."""


class WorkersError(ItkstreamError, RuntimeError):
    """Workers that should compute do not come."""


def unknown_name(what: str, name: Any, known: Iterable[str]) -> InputError:
    """An error for a name that is not known, with the nearest one that is.

    Parameters
    ----------
    what : str
        What the name stands for.
    name : object
        The one that came.
    known : iterable of str
        Those there are.

    Returns
    -------
    InputError
        To be raised.
    """
    names = list(known)
    near = get_close_matches(str(name), names, 1, 0.5)
    hint = f"did you mean {near[0]!r}? Known: " if near else "known: "
    return InputError(f"unknown {what} {name!r}; {hint}{', '.join(names)}")

"""The exceptions itkstream raises, in one tree.

Every message says what was expected, what came, and what to do. Each exception also descends
from the builtin that fits, so callers may catch either.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ExistingOutputError",
    "InputError",
    "ItkstreamError",
    "MissingDataError",
    "RegistrationError",
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


class RegistrationError(ItkstreamError, RuntimeError):
    """The images are valid but no trustworthy transform was found between them."""

"""What tells one computation from another beside its inputs: the package's code.

The graph builder names computations by their inputs, so that the same inputs give the same name
in another process and a run that was interrupted knows its results again.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

__all__ = ["code_version"]

_DIGEST_BYTES = 16

# Those that make results; how they are run, and what a command is called, changes no bit.
_ROOMS = ("geometry", "numerics", "io", "blocks", "estimate", "apply", "registration")


@cache
def code_version() -> str:
    """The version of this package and a digest of the sources that make its results.

    Returns
    -------
    str
        Another one after any change of the code; worked out once a process.
    """
    package = Path(__file__).parent.parent
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for file in sorted(file for room in _ROOMS for file in (package / room).rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return f"{version('itkstream')}-{digest.hexdigest()}"

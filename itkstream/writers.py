"""Who writes transforms to files: named by the package, asked by the transforms.

File formats lie floors above the transforms, which may not import them. So the package itself
says here, as it is imported, where its writer is; the formats are loaded when one is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["TransformWriter", "set_transform_writer", "transform_writer"]


class TransformWriter(Protocol):
    """What `itkstream.write_transform` is."""

    def __call__(
        self,
        path: str | os.PathLike[str],
        transform: Any,
        axes: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> float:
        """Write a transform, read it back, and return the largest difference."""


_finders: list[Callable[[], TransformWriter]] = []


def set_transform_writer(find: Callable[[], TransformWriter]) -> None:
    """Say where the writer of transforms is.

    Parameters
    ----------
    find : callable
        Imports and returns it; called when a transform is written.
    """
    _finders[:] = [find]


def transform_writer() -> TransformWriter:
    """The function that writes transforms to files.

    Returns
    -------
    TransformWriter
        `itkstream.write_transform`.
    """
    return _finders[0]()

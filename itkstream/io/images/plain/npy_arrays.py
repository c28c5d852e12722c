"""Arrays of numpy in files (.npy), which say nothing of their axes and spacing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, UnreadableDataError
from itkstream.geometry import default_axes
from itkstream.io.images.locate import Dataset
from itkstream.io.images.selection import Opened, Selection
from itkstream.io.storage.stored import StoredArray

__all__ = ["NpyArray", "open_npy"]


@dataclass(frozen=True)
class NpyArray(StoredArray):
    """A lazy array of a .npy file; a box is copied from the mapped file."""

    def read(self, start: tuple[int, ...], stop: tuple[int, ...]) -> NDArray[Any]:
        """Read a box."""
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.array(_mapped(self.path)[cut], self.dtype)


def open_npy(dataset: Dataset, selection: Selection) -> Opened:
    """Open a .npy file, axes y, x or z, y, x where they are not stated; its spacing has to be."""
    path = str(dataset.location)
    mapped = _mapped(path)
    if mapped.dtype.kind not in "biuf":
        raise InputError(f"images of real numbers are read; {path} holds {mapped.dtype}")
    if not mapped.size:
        raise InputError(f"{path} holds an empty image of shape {mapped.shape}")
    usual = default_axes(mapped.ndim)[::-1] if mapped.ndim in (2, 3) else ("",) * mapped.ndim
    if selection.axes is None and mapped.ndim not in (2, 3):
        raise InputError(
            f"{path} has {mapped.ndim} axes without names: pass axes= (--axes), slowest first, "
            "such as 'czyx'"
        )
    names = selection.planar(selection.axes_of(usual, path), mapped.shape)
    selection.choose_level([None], "micrometer", path)
    # In this machine's order of bytes.
    source = NpyArray(path, mapped.shape, np.dtype(mapped.dtype.name))
    return selection.image(source, names, None, path)


def _mapped(path: str) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UnreadableDataError(
            f"{path} cannot be read as an array of numpy ({error}): it is cut short, or holds "
            "something else. Restore it from its source"
        ) from error

"""Large arrays in memory, lent to workers: each travels once, whatever the number of tasks.

What stands in a graph goes to the scheduler in one message, and from there to a worker and on to
the next. Large arrays are taken out of it. Processes of this machine map a temporary file; others,
those that come later too, are handed the array when they come.
"""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar
from uuid import uuid4

import cloudpickle
import numpy as np
from distributed import Client, WorkerPlugin
from numpy.typing import NDArray

from itkstream.errors import InputError, OutputError
from itkstream.workers.dask_internals import stays_on_this_machine

__all__ = ["LENT_BYTES", "Parcel", "lent"]

LENT_BYTES = 2**20
"""An array of so many bytes is lent; smaller ones stay where they are."""

# A message of dask's holds no longer text.
_MESSAGE_BYTES = 2**32 - 2**20


class Parcel:
    """A value without its large arrays, which it finds again where it is opened.

    `content` is the value, pickled, with large arrays by name; `files` has the file of each, and
    those without one are held by the worker.
    """

    def __init__(self, content: bytes, files: Mapping[str, str]) -> None:
        self._content = content
        self._files = dict(files)
        self._lock = Lock()
        self._opened: list[Any] = []

    def open(self) -> Any:
        """Put the value together; the same one every time, so that what it keeps is kept."""
        with self._lock:
            if not self._opened:
                self._opened.append(_Unpickler(io.BytesIO(self._content), self._files).load())
            return self._opened[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self._content, self._files)

    def __sizeof__(self) -> int:
        return len(self._content)


@contextmanager
def lent(client: Client, values: Mapping[Any, Any]) -> Iterator[dict[Any, Parcel]]:
    """Lend the large arrays of some values, by key, to the workers of a client.

    Yields a `Parcel` for each value that holds large arrays; workers can open it as long as this
    lasts, and nothing is left behind. Raises `OutputError` where no temporary file can be written,
    and `InputError` where an array is too large for a message to distant workers.
    """
    arrays: dict[Any, tuple[str, NDArray[Any]]] = {}
    packed = {key: _pack(value, arrays) for key, value in values.items()}
    if not arrays:
        yield {}
        return
    # Processes of this machine see its temporary files.
    way = _in_files if stays_on_this_machine(client) else _in_messages
    with way(client, dict(arrays.values())) as files:
        yield {key: Parcel(content, files) for key, (content, held) in packed.items() if held}


def _pack(value: Any, arrays: dict[Any, tuple[str, NDArray[Any]]]) -> tuple[bytes, bool]:
    """A value pickled without its large arrays, which are added to those known."""
    content = io.BytesIO()
    pickler = _Pickler(content, arrays)
    pickler.dump(value)
    return content.getvalue(), pickler.lends


class _Pickler(cloudpickle.Pickler):
    """Leaves large arrays out."""

    def __init__(self, file: Any, arrays: dict[Any, tuple[str, NDArray[Any]]]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._arrays = arrays
        self.lends = False

    def persistent_id(self, value: Any) -> str | None:
        if not isinstance(value, np.ndarray) or value.nbytes < LENT_BYTES or value.dtype.hasobject:
            return None
        # Views of the same voxels are one array.
        place = value.__array_interface__["data"][0]
        name, _ = self._arrays.setdefault(
            (place, value.shape, value.strides, value.dtype.str), (uuid4().hex, value)
        )
        self.lends = True
        return name


class _Unpickler(pickle.Unpickler):
    """Puts large arrays in again."""

    def __init__(self, file: Any, files: Mapping[str, str]) -> None:
        super().__init__(file)
        self._files = files

    def persistent_load(self, name: str) -> NDArray[Any]:
        if name not in self._files:
            return _Held.arrays[name]
        # What is written to it stays in this process: compiled functions know no other arrays.
        return np.asarray(np.load(self._files[name], mmap_mode="c"))


@contextmanager
def _in_files(_: Client, arrays: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="itkstream-lent-") as folder:
        files = {name: str(Path(folder, f"{name}.npy")) for name in arrays}
        for name, array in arrays.items():
            try:
                np.save(files[name], array, allow_pickle=False)
            except OSError as error:
                raise OutputError(
                    f"workers need a temporary file of {array.nbytes / 1e6:.0f} MB for an array "
                    f"in memory, and {folder} does not take it ({error}): set TMPDIR to a folder "
                    "with room, or give a stored image"
                ) from error
        yield files


@contextmanager
def _in_messages(client: Client, arrays: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, str]]:
    largest = max(array.nbytes for array in arrays.values())
    if largest > _MESSAGE_BYTES:
        raise InputError(
            f"an array of {largest / 1e9:.1f} GB in memory is too large to be sent to workers of "
            f"other machines; at most {_MESSAGE_BYTES / 1e9:.1f} GB: give a stored image"
        )
    try:
        for name, array in arrays.items():
            client.register_plugin(_Held(name, array))
        yield {}
    finally:
        for name in arrays:
            # The workers, or their scheduler, may be gone.
            with suppress(Exception):
                client.unregister_worker_plugin(name)


class _Held(WorkerPlugin):
    """An array that every worker of a scheduler holds, from when it comes."""

    arrays: ClassVar[dict[str, NDArray[Any]]] = {}

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self.name = name
        self._array = array

    def setup(self, worker: Any) -> None:
        self.arrays[self.name] = self._array

    def teardown(self, worker: Any) -> None:
        self.arrays.pop(self.name, None)

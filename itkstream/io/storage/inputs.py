"""The inputs of a command, which nothing that it writes may touch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.io.storage.locations import Location, path_as_written

__all__ = ["check_apart"]

# Files whose headers may say that the data are in other files.
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")
_HEADER_BYTES = 4096
# Links in a folder are sought among so many names: not among millions of chunks.
_SEARCHED = 1000
_MOST_LINKS = 40


def check_apart(output: str | os.PathLike[str], *inputs: Any) -> None:
    """Refuse an output that is, holds or lies in an input of the same command.

    Inputs are paths, URLs, or values whose data are stored: images, transforms, lazy arrays with
    all that their graphs hold, and tuples, lists and dicts of these. Only headers are read.
    """
    place = Location.parse(output)
    for given in inputs:
        for read in _places(given):
            if place.overlaps(read):
                raise _touching(place, read)
        written = path_as_written(str(given)) if isinstance(given, (str, os.PathLike)) else None
        if written is not None:
            for link in _links_on_the_way(written):
                if Location(str(link.parent)).lies_in(place):
                    raise _touching(place, Location(str(link)))


def _touching(output: Location, read: Location) -> InputError:
    how = "is" if read.lies_in(output) and output.lies_in(read) else "lies in"
    if how != "is" and not output.lies_in(read):
        how = "holds"
    return InputError(
        f"the output {output} {how} what is read for it, {read}, and an input is never replaced: "
        "choose another output"
    )


def _places(given: Any) -> Iterator[Location]:
    """Yield the files and folders behind a path or a value."""
    if given is None:
        return
    if not isinstance(given, (str, os.PathLike)):
        yield from map(Location.parse, dict.fromkeys(_stored(given, set())))
        return
    place = Location.parse(given)
    yield place
    if place.is_local:
        path = place.path
        for file in _data_files(path):
            yield Location.parse(file)
        for link in _links_inside(path):
            yield Location.parse(link)


def _data_files(header: Path) -> Iterator[Path]:
    """Yield the files that an image's header names: lines, what is after their = or :, words."""
    if header.suffix.lower() not in _HEADERS or not os.access(header, os.R_OK):
        return
    if not header.is_file():
        return
    with header.open("rb") as file:
        lines = file.read(_HEADER_BYTES).decode("utf-8", "replace").splitlines()
    named: dict[str, None] = {}
    for line in lines:
        value = line.replace("=", ":", 1).partition(":")[2]
        named |= dict.fromkeys(part.strip() for part in (line, value, *line.split()))
    for name in filter(None, named):
        if "\0" not in name and os.path.isfile(header.parent / name):
            yield header.parent / name


def _links_on_the_way(path: Path) -> Iterator[Path]:
    """Yield the links that lead to a file, each by the true path of the folder that holds it."""
    todo = Path(os.path.abspath(path))
    for _ in range(_MOST_LINKS):
        ways = (*reversed(todo.parents), todo)
        link = next((way for way in ways if way.is_symlink()), None)
        if link is None:
            return
        yield link.parent.resolve() / link.name
        rest = todo.relative_to(link)
        todo = Path(os.path.abspath(link.parent / os.readlink(link) / rest))


def _links_inside(folder: Path) -> Iterator[Path]:
    """Yield links near the top of a folder: whole arrays that lie elsewhere."""
    folders, left, here = [folder], _SEARCHED, folder.resolve()
    for at in folders:
        # What may not be looked into is refused where it is read.
        with (
            suppress(NotADirectoryError, FileNotFoundError, PermissionError),
            os.scandir(at) as found,
        ):
            for entry in islice(found, left):
                left -= 1
                if entry.is_symlink():
                    # A link to a folder around this one leads to no data of its own.
                    if not here.is_relative_to(Path(entry.path).resolve()):
                        yield Path(entry.path)
                elif entry.is_dir():
                    folders.append(Path(entry.path))


def _stored(value: Any, seen: set[int]) -> Iterator[str | Location]:
    """Yield where the data of a value lie, as far as it and what it holds say so."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic, type)):
        return
    if isinstance(value, (tuple, list)):
        for inner in value:
            yield from _stored(inner, seen)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    yield from _own_files(value)
    for inner in _held(value):
        yield from _stored(inner, seen)


def _own_files(value: Any) -> Iterator[str | Location]:
    """Yield the files of a lazy array of this package, of Zarr, HDF5 or numpy."""
    kind = type(value).__module__.partition(".")[0]
    if isinstance(value, np.ndarray):
        if isinstance(value, np.memmap) and value.filename is not None:
            yield os.fspath(value.filename)
    elif kind == "itkstream":
        path = getattr(value, "path", None)
        files = value.files() if callable(getattr(value, "files", None)) else ()
        yield from (str(file) for file in files)
        if isinstance(path, str):
            yield path
    elif kind == "zarr" and hasattr(value, "store") and hasattr(value, "path"):
        place = Location.of_store(value.store)
        if place is not None:
            yield place.child(value.path)
    elif kind == "h5py" and hasattr(value, "file"):
        yield value.file.filename


def _held(value: Any) -> Iterator[Any]:
    """Yield what a value holds that may be stored."""
    if hasattr(value, "__dask_graph__"):
        yield from _nodes(value.__dask_graph__() or {})
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, np.ndarray):
        yield value.base
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, FunctionType):
        yield from _captured(value)
    elif type(value).__module__.partition(".")[0] == "itkstream":
        yield from vars(value).values() if hasattr(value, "__dict__") else ()
    elif type(value).__module__.startswith("dask"):
        # Nodes of a graph: a value, or a call.
        for name in ("value", "func", "args", "kwargs"):
            yield getattr(value, name, None)


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield what the nodes of a dask graph hold, without making those of every block."""
    for layer in getattr(graph, "layers", {0: graph}).values():
        if hasattr(layer, "indices"):
            yield from (layer.task, [given for given, _ in layer.indices], layer.io_deps)
            continue
        for node in layer.values():
            # Most by far are calls for a block, and refer to what stands elsewhere.
            arguments = getattr(node, "args", (node,))
            yield from (given for given in arguments if type(given).__name__ != "TaskRef")
            yield from (getattr(node, "func", None), getattr(node, "kwargs", None) or None)


def _captured(function: FunctionType) -> Iterator[Any]:
    """Yield a function's closure and the globals that it names."""
    for cell in function.__closure__ or ():
        # A cell may be empty still.
        with suppress(ValueError):
            yield cell.cell_contents
    for name in function.__code__.co_names:
        named = function.__globals__.get(name)
        if not isinstance(named, (FunctionType, ModuleType)):
            yield named

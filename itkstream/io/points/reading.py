"""Tables of spots, read piece by piece: CSV of several programs, Parquet, numpy arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import default_axes
from itkstream.io.points.columns import VOXEL, CoordinateColumns, find_columns, is_number
from itkstream.io.points.parquet import import_pyarrow
from itkstream.io.points.tables import on_this_disk
from itkstream.io.storage.locations import Location

__all__ = ["PIECE_ROWS", "SpotFile", "SpotPiece", "open_spots"]

PIECE_ROWS = 100_000
"""Rows of a table that are in memory at a time: some 100 MB of text."""

# Rows below the header that tell what a table is.
_PEEKED = 3
_DELIMITERS = ",;\t"


@dataclass(frozen=True, eq=False)
class SpotPiece:
    """Some rows of a table: coordinates (m, n) as stored, x first, and the other columns."""

    points: NDArray[np.float64]
    others: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class SpotFile:
    """A table of spots that was looked at, and not yet read.

    `names` are those of the columns of coordinates, x first; `others` those beside them, with their
    types where the file has types, None for text.
    """

    path: str
    columns: CoordinateColumns
    names: tuple[str, ...]
    others: dict[str, Any]
    read: Callable[[], Iterator[SpotPiece]]

    def pieces(self) -> Iterator[SpotPiece]:
        """Read it, some rows at a time; coordinates must be finite numbers."""
        first = 1
        for piece in self.read():
            bad = np.flatnonzero(~np.isfinite(piece.points).all(axis=1))
            if bad.size:
                raise InputError(f"{self.path}: row {first + bad[0]} has no finite coordinates")
            first += len(piece.points)
            yield piece


@contextmanager
def open_spots(path: str | os.PathLike[str], ndim: int) -> Iterator[SpotFile]:
    """Yield a table of spots of 2 or 3 coordinates, by the ending of its name.

    ``.csv``, ``.tsv`` and ``.txt`` with commas, semicolons or tabs in between; ``.parquet``;
    ``.npy``, an array (m, n) in the order x, y, z.
    """
    place = Location.parse(path)
    if not place.is_file():
        raise MissingDataError(f"there is no table of spots {path}")
    openers = {".npy": _open_numpy, ".parquet": _open_parquet}
    openers |= dict.fromkeys((".csv", ".tsv", ".txt"), _open_text)
    opener = openers.get(place.suffix.lower())
    if opener is None:
        raise InputError(f"spots are read from {', '.join(sorted(openers))} files; got {path}")
    with on_this_disk(place) as source:
        yield opener(source, ndim, str(path))


def _open_text(source: Path, ndim: int, name: str) -> SpotFile:
    """Look at a table in text: what stands between its cells, its header, the rows below."""
    with _opening(source, name) as file:
        first = file.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        file.seek(0)
        head = list(islice(_rows(file, delimiter), 1 + _PEEKED))
    if not head:
        raise InputError(f"{name} is empty; expected a header and a row per spot")
    header = [cell.strip() for cell in head[0]]
    bare = all(is_number(cell) for cell in header)
    if bare:
        header, columns = _of_big_fish(header, delimiter, ndim, name)
    else:
        columns = find_columns(header, head[1:], ndim, name)
    others = _others(header, columns.places, name)

    def read() -> Iterator[SpotPiece]:
        with _opening(source, name) as file:
            rows = _rows(file, delimiter)
            skipped = 0 if bare else 1 + columns.skipped
            for number, some in enumerate(_batches(islice(rows, skipped, None))):
                yield _piece_of(some, header, columns.places, (name, number * PIECE_ROWS))

    names = tuple(header[k] for k in columns.places)
    return SpotFile(name, columns, names, dict.fromkeys(others), read)


def _of_big_fish(
    cells: Sequence[str], delimiter: str, ndim: int, name: str
) -> tuple[list[str], CoordinateColumns]:
    """Header and columns of an array that Big-FISH wrote."""
    if delimiter != ";" or len(cells) < ndim:
        raise InputError(
            f"{name} has no header: only Big-FISH's tables have none, z;y;x with semicolons in "
            "between. Write a first line such as x_um,y_um,z_um"
        )
    header = [*"zyx"[-ndim:], *(f"column{k}" for k in range(ndim, len(cells)))]
    places = tuple(header.index(axis) for axis in default_axes(ndim))
    return header, CoordinateColumns(places, VOXEL, "Big-FISH")


@contextmanager
def _opening(source: Path, name: str) -> Iterator[TextIO]:
    try:
        # utf-8-sig: spreadsheets put a mark at the beginning of the file.
        with source.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no text in UTF-8") from error


def _rows(file: TextIO, delimiter: str) -> Iterator[list[str]]:
    return (row for row in csv.reader(file, delimiter=delimiter) if row)


def _batches(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    while some := list(islice(rows, PIECE_ROWS)):
        yield some


def _others(header: Sequence[str], places: Sequence[int], name: str) -> list[str]:
    """Names of the columns beside the coordinates; napari's has one without a name."""
    others = [column for k, column in enumerate(header) if k not in places]
    twice = sorted({column for column in others if others.count(column) > 1})
    if twice:
        raise InputError(f"{name} has two columns of one name: {', '.join(twice)}")
    return others


def _piece_of(
    rows: list[list[str]], header: Sequence[str], places: Sequence[int], at: tuple[str, int]
) -> SpotPiece:
    """Rows of text as numbers and columns; `at` names the file and the first row."""
    name, first = at
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"{name}: row {first + number + 1} has {len(row)} cells; the header has "
                f"{len(header)}"
            )
    columns = list(zip(*rows, strict=True))
    points = np.empty((len(rows), len(places)))
    for axis, place in enumerate(places):
        try:
            points[:, axis] = np.array(columns[place], float)
        except ValueError as error:
            bad = next(k for k, cell in enumerate(columns[place]) if not is_number(cell))
            raise InputError(
                f"{name}: row {first + bad + 1} has no number in column {header[place]}: "
                f"{columns[place][bad]!r}"
            ) from error
    others = {header[k]: cells for k, cells in enumerate(columns) if k not in places}
    return SpotPiece(points, others)


def _open_parquet(source: Path, ndim: int, name: str) -> SpotFile:
    """Look at a Parquet file."""
    arrow = import_pyarrow()
    try:
        schema = arrow.parquet.read_schema(source)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{name} is no Parquet file: {error}") from error
    columns = find_columns(schema.names, (), ndim, name)
    coordinates = tuple(schema.names[k] for k in columns.places)
    for column in coordinates:
        kind = schema.field(column).type
        if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            raise InputError(f"{name}: column {column} holds {kind}, not numbers")
    others = {key: schema.field(key).type for key in _others(schema.names, columns.places, name)}

    def read() -> Iterator[SpotPiece]:
        with arrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(PIECE_ROWS):
                numbers = [
                    batch.column(c).cast(arrow.float64()).to_numpy(False) for c in coordinates
                ]
                cells = {key: batch.column(key).to_pylist() for key in others}
                yield SpotPiece(np.stack(numbers, axis=1), cells)

    return SpotFile(name, columns, coordinates, others, read)


def _open_numpy(source: Path, ndim: int, name: str) -> SpotFile:
    """Look at an array of points."""
    try:
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{name} is no numpy array of numbers: {error}") from error
    shape = getattr(array, "shape", None)
    if array.ndim != 2 or array.shape[1] != ndim or array.dtype.kind not in "iuf":
        raise InputError(
            f"spots of {ndim} coordinates are an array (m, {ndim}) of numbers; {name} has shape "
            f"{shape} and type {array.dtype}"
        )

    def read() -> Iterator[SpotPiece]:
        for start in range(0, len(array), PIECE_ROWS):
            yield SpotPiece(np.array(array[start : start + PIECE_ROWS], float), {})

    return SpotFile(name, CoordinateColumns(tuple(range(ndim))), default_axes(ndim), {}, read)

"""Tables of points: CSV and Parquet with named columns, or numpy files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import default_axes
from itkstream.io.points.outputs import check_table
from itkstream.io.points.parquet import import_pyarrow
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file

__all__ = ["PointTable", "check_points_output", "on_this_disk", "read_points", "write_points"]

_OUTSIDE = "outside"
_WRITTEN = {".csv": None, ".parquet": import_pyarrow, ".npy": None}


@dataclass(frozen=True, eq=False)
class PointTable:
    """Points, (m, n) float64 in the order x, y, z, and the other columns of their file.

    `rows` are the cells of a CSV file, `columns` a pyarrow.Table of a Parquet file.
    """

    points: NDArray[np.float64]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    columns: Any = None


def read_points(path: str | os.PathLike[str], ndim: int) -> PointTable:
    """Read points of 2 or 3 coordinates from a ``.csv``, ``.parquet`` or ``.npy`` file.

    CSV with a header, or Parquet, that names columns x, y and z, in any order and case, among
    others; or a numpy array (m, n), its columns in the order x, y, z.
    """
    place = Location.parse(path)
    if not place.is_file():
        raise MissingDataError(f"there is no file of points {path}")
    with on_this_disk(place) as source:
        if source.suffix.lower() == ".npy":
            return PointTable(_read_numpy(source, ndim))
        if source.suffix.lower() == ".parquet":
            return _read_parquet(source, ndim)
        if source.suffix.lower() != ".csv":
            raise InputError(
                f"points are read from .csv, .parquet or .npy files; got {source.name}"
            )
        return _read_csv(source, ndim)


@contextmanager
def on_this_disk(place: Location) -> Iterator[Path]:
    """Yield the file on this machine: itself, or a copy for the time being."""
    if place.is_local:
        yield place.path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / place.name
        copy.write_bytes(place.read_bytes())
        yield copy


def write_points(
    path: str | os.PathLike[str],
    table: PointTable,
    points: NDArray[np.float64],
    outside: NDArray[np.bool_],
    *,
    overwrite: bool = False,
) -> None:
    """Write mapped points, in the format the file's ending names.

    ``.csv`` or ``.parquet``: the columns of `table`, coordinates (m, n) replaced, and a column
    ``outside`` of 0 and 1 (Parquet: of truth values) for points that the transform says nothing
    about; ``.npy``: the coordinates only, in the order x, y, z.
    """
    target = check_points_output(path, overwrite)
    kind = target.suffix.lower()
    with claim_file(target, overwrite) as partial:
        if kind == ".npy":
            np.save(partial, points)
            return
        if kind == ".parquet":
            import_pyarrow().parquet.write_table(_typed(table, points, outside), partial)
            return
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(_cells(table, points, outside))


def check_points_output(path: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether points can be written to a file, before they are read and mapped."""
    return check_table(path, "points", _WRITTEN, overwrite)


def _cells(
    table: PointTable, points: NDArray[np.float64], outside: NDArray[np.bool_]
) -> list[list[str]]:
    names = default_axes(points.shape[1])
    header = list(table.header or names)
    if table.columns is None:
        rows = [list(row) for row in table.rows] or [[""] * len(header) for _ in points]
    else:
        rows = [list(map(_cell, row.values())) for row in table.columns.to_pylist()]
    for axis, column in enumerate(_columns(header, names, "the table")):
        for row, value in zip(rows, points[:, axis], strict=True):
            # repr: the shortest text that gives the same double.
            row[column] = repr(float(value))
    # A table that was mapped before has the column already.
    if _OUTSIDE not in header:
        header.append(_OUTSIDE)
        rows = [[*row, ""] for row in rows]
    place = header.index(_OUTSIDE)
    for row, flag in zip(rows, outside, strict=True):
        row[place] = str(int(flag))
    return [header, *rows]


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _typed(table: PointTable, points: NDArray[np.float64], outside: NDArray[np.bool_]) -> Any:
    """Make a pyarrow table; columns of a CSV file other than coordinates are text."""
    arrow = import_pyarrow()
    names = default_axes(points.shape[1])
    header = list(table.header or names)
    columns: dict[str, Any]
    if table.columns is not None:
        columns = {name: table.columns.column(name) for name in header}
    else:
        columns = {name: [row[k] for row in table.rows] for k, name in enumerate(header)}
    for axis, column in enumerate(_columns(header, names, "the table")):
        columns[header[column]] = points[:, axis]
    return arrow.table({**columns, _OUTSIDE: outside})


def _read_parquet(source: Path, ndim: int) -> PointTable:
    arrow = import_pyarrow()
    try:
        table = arrow.parquet.read_table(source)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{source} is no Parquet file: {error}") from error
    header = table.column_names
    if len(set(header)) < len(header):
        raise InputError(f"{source} has two columns of one name: {', '.join(header)}")
    numbers = []
    for place in _columns(header, default_axes(ndim), str(source)):
        column = table.column(place)
        if not (arrow.types.is_integer(column.type) or arrow.types.is_floating(column.type)):
            raise InputError(f"{source}: column {header[place]} holds {column.type}, not numbers")
        numbers.append(column.cast(arrow.float64()).to_numpy())
    return PointTable(_finite(np.stack(numbers, axis=1), source), tuple(header), columns=table)


def _read_numpy(source: Path, ndim: int) -> NDArray[np.float64]:
    try:
        array = np.load(source, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{source} is no numpy array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != ndim:
        raise InputError(
            f"points of a {ndim}-D transform are an array (m, {ndim}); {source} has shape "
            f"{getattr(array, 'shape', None)}"
        )
    if array.dtype.kind not in "iuf":
        raise InputError(f"points are real numbers; {source} holds {array.dtype}")
    return _finite(array.astype(float), source)


def _read_csv(source: Path, ndim: int) -> PointTable:
    try:
        # utf-8-sig: spreadsheets put a mark at the beginning of the file.
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is no text in UTF-8") from error
    lines = [row for row in csv.reader(io.StringIO(text)) if row]
    if not lines:
        raise InputError(f"{source} is empty; expected a header with x, y, z and a line per point")
    header, rows = [cell.strip() for cell in lines[0]], lines[1:]
    columns = _columns(header, default_axes(ndim), str(source))
    points = np.empty((len(rows), ndim))
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"{source}: row {number + 1} has {len(row)} cells; the header has {len(header)}"
            )
        try:
            points[number] = [float(row[c]) for c in columns]
        except ValueError as error:
            raise InputError(f"{source}: row {number + 1} holds no number: {error}") from error
    return PointTable(_finite(points, source), tuple(header), tuple(map(tuple, rows)))


def _columns(header: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    lower = [name.lower() for name in header]
    for name in names:
        if lower.count(name) != 1:
            raise InputError(
                f"{where} needs one column {name}; its columns are {', '.join(header)}"
            )
    return [lower.index(name) for name in names]


def _finite(points: NDArray[np.float64], source: Path) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise InputError(
            f"{source}: {bad.size} points are not finite, the first in row {bad[0] + 1}"
        )
    return points

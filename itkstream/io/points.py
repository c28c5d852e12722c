"""Tables of points: CSV with named columns, or numpy files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import default_axes
from itkstream.io.locations import Location
from itkstream.io.outputs import claim_file

__all__ = ["PointTable", "read_points", "write_points"]

_OUTSIDE = "outside"


@dataclass(frozen=True, eq=False)
class PointTable:
    """Points and whatever else their file says of them.

    Parameters
    ----------
    points : ndarray, (m, n), float64
        Coordinates in the order x, y, z.
    header : tuple of str
        Names of all columns of a CSV file; empty for numpy files.
    rows : tuple of tuple of str
        The CSV file's cells.
    """

    points: NDArray[np.float64]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def read_points(path: str | os.PathLike[str], ndim: int) -> PointTable:
    """Read points from a ``.csv`` or ``.npy`` file.

    Parameters
    ----------
    path : path
        CSV with a header that names columns x, y and z, in any order and case, among others; or
        a numpy array (m, n), its columns in the order x, y, z.
    ndim : int
        How many coordinates a point has: 2 (x, y) or 3.

    Returns
    -------
    PointTable
        The points, and the other columns.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        Where a column lacks, a cell is no number, or the ending is another.
    """
    source = Location.parse(path).path
    if not source.is_file():
        raise MissingDataError(f"there is no file of points {path}")
    if source.suffix.lower() == ".npy":
        return PointTable(_read_numpy(source, ndim))
    if source.suffix.lower() != ".csv":
        raise InputError(f"points are read from .csv or .npy files; got {source.name}")
    return _read_csv(source, ndim)


def write_points(
    path: str | os.PathLike[str],
    table: PointTable,
    points: NDArray[np.float64],
    outside: NDArray[np.bool_],
    *,
    overwrite: bool = False,
) -> None:
    """Write mapped points, in the format the file's ending names.

    Parameters
    ----------
    path : path
        ``.csv``: the columns of `table`, coordinates replaced, and a column ``outside`` of 0 and
        1; ``.npy``: the coordinates only, in the order x, y, z.
    table : PointTable
        What was read.
    points : ndarray, (m, n)
        The new coordinates, in the order x, y, z.
    outside : ndarray, (m,), bool
        Points the transform says nothing about.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        For another ending.
    ExistingOutputError
        Where the file exists.
    """
    target = Location.parse(path)
    if target.suffix.lower() not in (".csv", ".npy"):
        raise InputError(f"points are written as .csv or .npy; got {target.name}")
    with claim_file(target, overwrite) as partial:
        if target.suffix.lower() == ".npy":
            np.save(partial, points)
            return
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(_cells(table, points, outside))


def _cells(
    table: PointTable, points: NDArray[np.float64], outside: NDArray[np.bool_]
) -> list[list[str]]:
    names = default_axes(points.shape[1])
    header = list(table.header or names)
    rows = [list(row) for row in table.rows] or [[""] * len(header) for _ in points]
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

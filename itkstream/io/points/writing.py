"""Tables of moved spots, written piece by piece as CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from itkstream.io.points.outputs import check_table
from itkstream.io.points.parquet import import_pyarrow
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file

__all__ = ["Columns", "check_spots_output", "writing_spots"]

_WRITTEN = {".csv": None, ".parquet": import_pyarrow}

Columns = Mapping[str, Sequence[Any]]
"""A piece of a table: cells by the names of their columns."""


def check_spots_output(path: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether a table can be written to a file, before anything is read for it."""
    return check_table(path, "tables of spots", _WRITTEN, overwrite)


@contextmanager
def writing_spots(
    path: str | os.PathLike[str], types: Mapping[str, Any], overwrite: bool
) -> Iterator[Callable[[Columns], None]]:
    """Yield what writes a piece of a table, which gets its name when all pieces are written.

    `types` are the columns in their order: `float`, `bool` or `str`, or a type of pyarrow. Cells
    of columns that a piece lacks are empty.
    """
    place = check_spots_output(path, overwrite)
    writing = _writing_parquet if place.suffix.lower() == ".parquet" else _writing_csv
    with claim_file(place, overwrite) as partial, writing(partial, types) as write:
        yield write


@contextmanager
def _writing_csv(path: Path, types: Mapping[str, Any]) -> Iterator[Callable[[Columns], None]]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(types)

        def write(columns: Columns) -> None:
            count = _length(columns)
            empty = [""] * count
            cells = [_as_text(columns.get(name, empty)) for name in types]
            writer.writerows(zip(*cells, strict=True))

        yield write


def _as_text(cells: Sequence[Any]) -> Sequence[Any]:
    """Cells as they are written: the shortest text that gives the same double, 0 and 1, text."""
    if isinstance(cells, np.ndarray):
        return (cells.astype(np.uint8) if cells.dtype == bool else cells).tolist()
    return ["" if cell is None else cell for cell in cells]


@contextmanager
def _writing_parquet(path: Path, types: Mapping[str, Any]) -> Iterator[Callable[[Columns], None]]:
    arrow = import_pyarrow()
    known = {float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}
    schema = arrow.schema([(name, known.get(kind, kind)) for name, kind in types.items()])
    with arrow.parquet.ParquetWriter(path, schema) as writer:

        def write(columns: Columns) -> None:
            empty = [None] * _length(columns)
            arrays = [
                arrow.array(_as_type(columns.get(field.name, empty), field.type, arrow), field.type)
                for field in schema
            ]
            writer.write_table(arrow.table(arrays, schema=schema))

        yield write


def _as_type(cells: Sequence[Any], kind: Any, arrow: Any) -> Sequence[Any]:
    """Cells of a column; numbers of another table become text where the column is text."""
    if kind != arrow.string() or isinstance(cells, np.ndarray):
        return cells
    return [cell if cell is None else str(cell) for cell in cells]


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values())))

"""Landmarks in CSV files: pairs under named columns, or the points of one image."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import array_axes, default_axes
from itkstream.io.landmarks.sides import VOXEL, Pairs, Side

__all__ = ["Table", "napari_text", "pairs_of", "pairs_text", "side_of"]

_FIXED = {"fixed", "fix", "f", "target", "reference", "ref", "template"}
_MOVING = {"moving", "mov", "m", "source", "src", "floating"}
_NAMES = {"name", "label", "landmark", "id", "point", "pt"}
_SIGMAS = {"sigma", "std", "sd", "deviation"}
_ACTIVE = {"active", "enabled", "use", "selected"}
_UNITS = {
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns"), "micrometer"),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), "micrometer"),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre"), "millimeter"),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), "nanometer"),
    **dict.fromkeys(("px", "pixel", "pixels", "vox", "voxel", "voxels", "index", "idx"), VOXEL),
}
_NO = {"false", "0", "no", "n", "off"}


@dataclass(frozen=True)
class Table:
    """A CSV file: its header, the rows below it, and what errors call it."""

    where: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, text: str, where: str) -> Table:
        """Take a text apart, separated by commas, semicolons or tabs; every row is as long."""
        first = next((line for line in text.splitlines() if line.strip()), "")
        # Spreadsheets of some countries write semicolons.
        separator = max(",;\t", key=first.count)
        rows = csv.reader(io.StringIO(text), delimiter=separator)
        lines = [tuple(cell.strip() for cell in row) for row in rows if any(map(str.strip, row))]
        if not lines:
            raise InputError(f"{where} is empty: expected a header and a line per landmark")
        for number, row in enumerate(lines[1:], 1):
            if len(row) != len(lines[0]):
                raise InputError(
                    f"{where}: row {number} has {len(row)} cells; the first line has "
                    f"{len(lines[0])}"
                )
        return cls(where, lines[0], tuple(lines[1:]))

    def numbers(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """Read some columns as numbers, (rows, columns)."""
        values = np.empty((len(self.rows), len(columns)))
        for number, row in enumerate(self.rows):
            try:
                values[number] = [float(row[c]) for c in columns]
            except ValueError as error:
                raise InputError(f"{self.where}: row {number + 1}: {error}") from error
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise InputError(
                f"{self.where}: {bad.size} landmarks are not finite, the first in row {bad[0] + 1}"
            )
        return values

    def without_inactive(self) -> Table:
        """Leave out the rows that a column says are not in use."""
        found = [c for c, title in enumerate(self.header) if set(_words(title)) & _ACTIVE]
        if not found:
            return self
        kept = tuple(row for row in self.rows if row[found[0]].lower() not in _NO)
        return Table(self.where, self.header, kept)

    def names(self) -> tuple[tuple[str, ...], bool]:
        """Names of the rows, and whether a column gives them."""
        found = [
            c
            for c, title in enumerate(self.header)
            if set(_words(title)) & _NAMES and _column(title) is None
        ]
        if not found:
            return tuple(str(k + 1) for k in range(len(self.rows))), False
        return tuple(row[found[0]] for row in self.rows), True


@dataclass(frozen=True)
class _Column:
    """A column of coordinates: image, axis, unit where the header says it."""

    side: str
    axis: str
    unit: str | None


def _words(title: str) -> list[str]:
    """Take a column's title apart: ``fixedX (um)``, ``Fixed x`` and ``fx`` are alike."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", title)
    words = re.findall(r"[^\W\d_]+", apart.lower())
    return [part for word in words for part in _short(word)]


def _short(word: str) -> list[str]:
    """Two words out of ``fx``, ``my``, ``xf``."""
    if re.fullmatch(r"[fm][xyz]|[xyz][fm]", word):
        return list(word)
    return [word]


def _column(title: str) -> _Column | None:
    words = _words(title)
    axes = [word for word in words if word in ("x", "y", "z")]
    if len(axes) != 1:
        return None
    sides = [
        side
        for side, known in (("fixed", _FIXED), ("moving", _MOVING))
        if any(word in known for word in words)
    ]
    units = [_UNITS[word] for word in words if word in _UNITS]
    return _Column(sides[0] if len(sides) == 1 else "", axes[0], units[0] if units else None)


def pairs_of(table: Table) -> Pairs | None:
    """Read pairs under columns such as ``fixed_x`` and ``moving_x``; None where there are none."""
    columns = {c: found for c, title in enumerate(table.header) if (found := _column(title))}
    if not any(column.side for column in columns.values()):
        return None
    table = table.without_inactive()
    fixed, moving = (_side(table, columns, side) for side in ("fixed", "moving"))
    if len(fixed.axes) != len(moving.axes):
        raise InputError(
            f"{table.where}: the fixed landmarks have the coordinates {', '.join(fixed.axes)} and "
            f"the moving ones {', '.join(moving.axes)}"
        )
    deviations = [c for c, title in enumerate(table.header) if set(_words(title)) & _SIGMAS]
    if not deviations:
        return Pairs(fixed, moving)
    sigma, title = table.numbers(deviations[:1])[:, 0], table.header[deviations[0]]
    units = [_UNITS[word] for word in _words(title) if word in _UNITS]
    return Pairs(fixed, moving, sigma, units[0] if units else None)


def side_of(table: Table) -> Side:
    """Read the points of one image: columns x, y, z, or axis-0 and so on as napari writes them."""
    axes = [c for c, title in enumerate(table.header) if re.fullmatch(r"axis-\d", title)]
    if axes:
        # napari's points are indices along the axes of the array it shows.
        names = tuple(str(k + 1) for k in range(len(table.rows)))
        order = _array_axes(axes, table)
        return Side(table.numbers(axes), names, order, labelled=False, usual=VOXEL)
    columns = {c: found for c, title in enumerate(table.header) if (found := _column(title))}
    return _side(table.without_inactive(), columns, "")


def _array_axes(columns: Sequence[int], table: Table) -> tuple[str, ...]:
    if len(columns) not in (2, 3):
        raise InputError(
            f"{table.where} has points of {len(columns)} axes: save points of a layer with 2 or 3"
        )
    return array_axes(len(columns))


def _side(table: Table, columns: dict[int, _Column], side: str) -> Side:
    own = {column.axis: c for c, column in columns.items() if column.side == side}
    count = sum(column.side == side for column in columns.values())
    axes = tuple(axis for axis in default_axes(3) if axis in own)
    if count != len(own) or axes not in (default_axes(2), default_axes(3)):
        what = f"{side}_x, {side}_y, {side}_z" if side else "x, y, z"
        raise InputError(
            f"{table.where} needs one column each of {what}; its columns are "
            f"{', '.join(table.header)}"
        )
    units = {columns[c].unit for c in own.values()}
    if len(units) > 1:
        raise InputError(f"{table.where}: the columns of one image are in different units")
    names, labelled = table.names()
    return Side(table.numbers([own[a] for a in axes]), names, axes, units.pop(), labelled)


def pairs_text(pairs: Pairs, unit: str) -> str:
    """Write pairs under the columns that `pairs_of` reads."""
    ending = "um" if unit == "micrometer" else unit
    titles = [f"{side}_{a}_{ending}" for side in ("fixed", "moving") for a in pairs.fixed.axes]
    sigma = [] if pairs.sigma is None else [f"sigma_{ending}"]
    rows: list[list[str]] = [["name", *titles, *sigma]]
    for k, name in enumerate(pairs.fixed.names):
        values = [*pairs.fixed.points[k], *pairs.moving.points[k]]
        values += [] if pairs.sigma is None else [pairs.sigma[k]]
        rows.append([name, *(repr(float(v)) for v in values)])
    return _text(rows)


def napari_text(side: Side) -> str:
    """Write the points of one image as napari's points layer does."""
    rows = [["index", *(f"axis-{k}" for k in range(len(side.axes)))]]
    rows += [[str(float(k)), *(repr(float(v)) for v in p)] for k, p in enumerate(side.points)]
    return _text(rows)


def _text(rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()

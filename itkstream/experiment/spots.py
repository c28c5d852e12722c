"""Tables of spots of an experiment, moved into the space of its reference, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from attrs import asdict, frozen
from numpy.typing import NDArray

from itkstream.apply.points import InverseMap, MappedPoints, apply_to_points, nearest_values
from itkstream.errors import InputError, RegistrationError
from itkstream.experiment.assignment import assign_tables
from itkstream.experiment.sources import Source, is_experiment, read_sources, reference_of
from itkstream.geometry import Grid, Image, default_axes
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io import open_image
from itkstream.io.points.columns import VOXEL, read_unit
from itkstream.io.points.reading import SpotFile, open_spots
from itkstream.io.points.writing import Columns, check_spots_output, writing_spots
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.registration.folder import REPORT

__all__ = ["SPOTS", "MovedRound", "MovedSpots", "in_micrometers", "map_spots", "move_spots"]

SPOTS = "spots"
"""Folder of the moved tables."""

_JOINED = "joined.csv"
_SURE = {"outside": bool, "error_um": float}
_WHENCE = {"round": str, "table": str}
# A round's image that holds less of its spots is not in the unit that the table was taken for.
_FEW = 0.5

PointMap = Callable[[NDArray[np.float64]], MappedPoints]


@frozen
class MovedRound:
    """The spots of one round, and where they went.

    Parameters
    ----------
    name : str
        The round.
    tables : tuple of str
        Files of its spots.
    units : tuple of str
        Unit in which the coordinates of each were taken.
    spots : int
        Rows in all of them.
    within : int
        Spots that lie in the image of their round; where these are few, the unit is another.
    outside : int
        Spots of which the transform says nothing.
    error_um : float
        Mean of the errors that are known, in µm; NaN where none is, 0 for the reference.
    left_out : str
        Why the spots of the round were not moved; empty where they were.

    Examples
    --------
    >>> tables = ["examples/spots/round2.csv"]
    >>> moved = itkstream.move_spots("rounds", tables, "second.csv", overwrite=True)
    >>> moved.rounds[0].spots > 0
    True
    """

    name: str
    tables: tuple[str, ...]
    units: tuple[str, ...] = ()
    spots: int = 0
    within: int = 0
    outside: int = 0
    error_um: float = float("nan")
    left_out: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON has it: no number where there is none."""
        known = asdict(self)
        return known if self.error_um == self.error_um else known | {"error_um": None}

    def describe(self) -> str:
        """Say it in a line.

        Returns
        -------
        str
            Numbers, and what looks wrong.

        Examples
        --------
        >>> moved = itkstream.move_spots(
        ...     "rounds", ["examples/spots/round2.csv"], "described.csv", overwrite=True
        ... )
        >>> print(moved.rounds[0].describe())
        round2: ... spots, ...
        """
        if self.left_out:
            return f"{self.name}: left out: {self.left_out}"
        files = f" in {len(self.tables)} tables" if len(self.tables) > 1 else ""
        error = f", within {self.error_um:.2g} µm on average" if self.error_um > 0 else ""
        units = " and ".join(sorted({f"{unit}s" for unit in self.units}))
        text = f"{self.name}: {self.spots} spots{files}, read in {units}, {self.outside} outside"
        if self.within < _FEW * self.spots:
            share = f"{self.within / self.spots:.0%}"
            text += f"; only {share} lie in its image: is that the unit? See --voxels and --unit"
            return text
        return text + error


@frozen
class MovedSpots:
    """Result of `move_spots`.

    Parameters
    ----------
    joined : Location
        The table of all spots.
    rounds : tuple of MovedRound
        What became of the tables of each round.

    Examples
    --------
    >>> tables = ["examples/spots/round2.csv"]
    >>> moved = itkstream.move_spots("rounds", tables, "second.csv", overwrite=True)
    >>> moved.joined.name
    'second.csv'
    """

    joined: Location
    rounds: tuple[MovedRound, ...]


@frozen(eq=False)
class _Table:
    """A table of spots, and the unit in which its coordinates are taken."""

    file: SpotFile
    unit: str

    @property
    def name(self) -> str:
        """Name of its file without the ending."""
        return Location.parse(self.file.path).name.rsplit(".", 1)[0]


@frozen(eq=False)
class _Mover:
    """The way of points of an image, x first and in µm, and how sure it is.

    The map of the error lies in the space that the points are moved to; that they come from, where
    they go `forward`, from fixed to moving. Without a `lattice` nothing is known of the image.
    """

    lattice: Grid | None
    way: PointMap
    errors: Image | None
    forward: bool = False

    def move(
        self, table: _Table, whence: Mapping[str, str]
    ) -> Iterator[tuple[dict[str, Any], NDArray[np.bool_]]]:
        """Move a table piece by piece: columns to write, and which spots lie in the image."""
        for piece in table.file.pieces():
            points = in_micrometers(piece.points, table.unit, self.lattice)
            mapped = self.way(points)
            lengths = (f"{axis}_um" for axis in default_axes(points.shape[1]))
            columns: dict[str, Any] = {
                **piece.others,
                **dict(zip(lengths, mapped.points.T, strict=True)),
                **{name: [cell] * len(points) for name, cell in whence.items()},
                "outside": mapped.outside,
                "error_um": self._certainty(points if self.forward else mapped.points),
            }
            everywhere = np.ones(len(points), bool)
            yield columns, everywhere if self.lattice is None else self.lattice.contains(points)

    def _certainty(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radius of the error at places, in µm; NaN where nothing says it."""
        if self.errors is None:
            return np.full(len(places), np.nan)
        radii, missed = nearest_values(self.errors, places)
        return np.where(missed, np.nan, radii.astype(float))


def in_micrometers(
    points: NDArray[np.float64], unit: str, lattice: Grid | None
) -> NDArray[np.float64]:
    """Coordinates of points in µm; those in voxels count from the first of a lattice."""
    if unit == VOXEL and lattice is None:
        raise InputError(
            "index coordinates need the image they count the voxels of: name the folder of a "
            "registration or of an experiment, not a transform alone"
        )
    if unit == VOXEL and lattice is not None:
        return lattice.to_physical(points)
    return points * MICROMETERS_PER_UNIT[unit]


def move_spots(
    folder: str | os.PathLike[str],
    tables: Sequence[str | os.PathLike[str]] | Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    *,
    unit: str | None = None,
    overwrite: bool = False,
) -> MovedSpots:
    """Move the spots of all rounds of an experiment into its reference.

    Tables are read by their headers, some rows at a time: those of RS-FISH, Big-FISH, napari and
    TrackMate, and any with columns such as ``x_um``, ``x (µm)``, ``x_nm``, ``POSITION_X``,
    ``centroid_x`` or ``x``. Spots go back through the transform of their round.

    Writes ``spots/NAME.csv`` into the folder for each round, and the joined table, with the columns

    - ``x_um``, ``y_um``, ``z_um``: the place in the reference, in µm;
    - all others of the tables;
    - ``round`` and ``table``: the round, and the name of the file without its ending;
    - ``outside``: 1 (Parquet: true) where the transform says nothing about a spot;
    - ``error_um``: the radius around it in which the true place lies with 95 % probability, in µm,
      from the error map; NaN where nothing is known, and 0 for the reference itself.

    Parameters
    ----------
    folder : path
        What `register_rounds` wrote. A folder of `register` counts as two rounds, `fixed`, the
        reference, and `moving`; tables that name neither are of `moving`.
    tables : sequence of path, or mapping
        Tables with the name of their round in their own, as ``spots/round2_GeneA.csv``, or in that
        of their folder, or before it, as in ``round2=spots.csv``; or by the names of the rounds, a
        path or a list of paths each. CSV, TSV, Parquet, or numpy arrays (m, 3), x first.
    out : path, optional
        The joined table, ``.csv`` or ``.parquet`` (columns of CSV files stay text); default
        ``spots/joined.csv`` in the folder.
    unit : str, optional
        Unit of coordinates where the header does not state it: "um", "nm", "mm" or "voxel", which
        counts from 0 on the finest level of the round's image. Default µm; voxels for tables of
        RS-FISH, Big-FISH and napari.
    overwrite : bool
        Replace tables that are there.

    Returns
    -------
    MovedSpots
        How many spots of each round were moved, and how sure it is.

    Raises
    ------
    InputError
        Where a table cannot be read, has no columns of coordinates or two sets of them, states
        another unit, or is of no round or of several: the message lists them all.
    MissingDataError
        Where a table, the folder or an image is not there.
    ExistingOutputError
        Where a table to be written is there.
    RegistrationError
        Where the registrations of all rounds that have tables failed.

    Examples
    --------
    >>> tables = ["examples/spots/round1.csv", "examples/spots/round2.csv"]
    >>> moved = itkstream.move_spots("rounds", tables, overwrite=True)
    >>> [one.name for one in moved.rounds]
    ['round1', 'round2']
    """
    sources = read_sources(folder)
    given = assign_tables(tables, list(sources), None if is_experiment(folder) else "moving")
    place = Location.parse(folder) / SPOTS
    joined = place / _JOINED if out is None else Location.parse(out)
    outputs = {name: place / f"{name}.csv" for name in given if not sources[name].failed}
    paths = [path for some in given.values() for path in some]
    for target in (joined, *outputs.values()):
        check_apart(target, *paths)
        check_spots_output(target, overwrite)
    if joined in outputs.values():
        raise InputError(
            f"{joined} is the table of a round: choose another name for the table of all spots"
        )
    if not outputs:
        reasons = "; ".join(f"{name}: {sources[name].failed}" for name in given)
        raise RegistrationError(f"no round with spots has a result. {reasons}")
    with ExitStack() as stack:
        ndim = reference_of(sources).open().ndim
        files = {
            name: [_opened(stack, path, ndim, unit) for path in given[name]] for name in outputs
        }
        types = _types(list(chain.from_iterable(files.values())), ndim, _WHENCE)
        write = stack.enter_context(writing_spots(joined, types, overwrite))
        moved = []
        for name, some in given.items():
            if sources[name].failed:
                left = MovedRound(name, tuple(map(str, some)), left_out=sources[name].failed)
                moved.append(left)
                continue
            with writing_spots(outputs[name], _types(files[name], ndim, _WHENCE), overwrite) as own:
                moved.append(_move_round(sources[name], files[name], (own, write)))
    return MovedSpots(joined, tuple(moved))


def map_spots(
    transform: str | os.PathLike[str],
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inverse: bool = False,
    unit: str | None = None,
    overwrite: bool = False,
) -> MovedRound:
    """Map a table through any transform, fixed to moving or back; columns as of `move_spots`."""
    check_apart(out, transform, table)
    check_spots_output(out, overwrite)
    axes = default_axes(read_transform(transform).ndim)
    opened, place = read_transform(transform, axes), Location.parse(transform)
    side = "moving" if inverse else "fixed"
    sources = read_sources(transform) if (place / REPORT).is_file() else None
    way = InverseMap.of(opened) if inverse else partial(apply_to_points, opened)
    errors = None if sources is None else _errors_of(sources["moving"].error, axes)
    tally = _Tally()
    with ExitStack() as stack:
        given = _opened(stack, os.fspath(table), len(axes), unit)
        lattice = None
        if sources is not None and given.unit == VOXEL:
            lattice = _lattice_of(sources[side])
        mover = _Mover(lattice, way, errors, not inverse)
        types = _types([given], len(axes), {})
        write = stack.enter_context(writing_spots(out, types, overwrite))
        for columns, inside in mover.move(given, {}):
            write(columns)
            tally.add(columns, inside)
    return tally.of(side, [given])


def _opened(stack: ExitStack, path: str, ndim: int, unit: str | None) -> _Table:
    """Look at a table, and settle its unit."""
    file = stack.enter_context(open_spots(path, ndim))
    columns, said = file.columns, "" if unit is None else read_unit(unit)
    assumed = columns.program in ("RS-FISH", "Big-FISH", "napari")
    if said and columns.unit and said != columns.unit and not assumed:
        raise InputError(
            f"{path} states {columns.unit}s in its header, and {said}s were asked for: leave the "
            "unit out for this table"
        )
    return _Table(file, said or columns.unit or "micrometer")


def _types(tables: Sequence[_Table], ndim: int, whence: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the table that is written of some, with their types."""
    lengths = tuple(f"{axis}_um" for axis in default_axes(ndim))
    others: dict[str, Any] = {}
    for table in tables:
        for name, kind in table.file.others.items():
            kind = str if kind is None else kind
            same = name not in others or others[name] == kind
            others[name] = kind if same else str
    first, last = dict.fromkeys(lengths, float), {**whence, **_SURE}
    return first | {n: kind for n, kind in others.items() if n not in first | last} | last


def _move_round(
    source: Source, tables: Sequence[_Table], writers: Sequence[Callable[[Columns], None]]
) -> MovedRound:
    """Move all tables of a round into the files that they go to."""
    mover, tally = _mover_of(source), _Tally()
    for table in tables:
        for columns, inside in mover.move(table, {"round": source.name, "table": table.name}):
            for write in writers:
                write(columns)
            tally.add(columns, inside)
    return tally.of(source.name, tables)


class _Tally:
    """Numbers of spots as they are moved."""

    def __init__(self) -> None:
        self._counts = np.zeros(4, np.int64)
        self._error = 0.0

    def add(self, columns: Columns, inside: NDArray[np.bool_]) -> None:
        """Count a piece: all spots, those in their image, outside, and of known error."""
        errors = np.asarray(columns["error_um"])
        errors = errors[~np.isnan(errors)]
        outside = np.asarray(columns["outside"])
        self._counts += [len(inside), inside.sum(), outside.sum(), len(errors)]
        self._error += float(errors.sum())

    def of(self, name: str, tables: Sequence[_Table]) -> MovedRound:
        """Sum up the spots of a round."""
        spots, within, outside, known = self._counts.tolist()
        files = tuple(table.file.path for table in tables)
        error = self._error / known if known else float("nan")
        units = tuple(table.unit for table in tables)
        return MovedRound(name, files, units, spots, within, outside, error)


def _mover_of(source: Source) -> _Mover:
    """Open what moves the points of a round into the reference."""
    lattice = _lattice_of(source)
    if source.transform is None:
        return _Mover(lattice, partial(_stay, lattice), _nowhere_wrong(lattice))
    way = InverseMap.of(read_transform(source.transform, lattice.axes))
    return _Mover(lattice, way, _errors_of(source.error, lattice.axes))


def _lattice_of(source: Source) -> Grid:
    """Voxels of an image, x first and in µm."""
    grid = source.open().grid
    return grid.reorder(default_axes(grid.ndim)).in_unit("micrometer")


def _errors_of(place: Location | None, axes: Sequence[str]) -> Image | None:
    """Open a map of errors, if there is one."""
    return None if place is None else open_image(place).reorder(axes).in_unit("micrometer")


def _stay(lattice: Grid, points: NDArray[np.float64]) -> MappedPoints:
    """Leave points of the reference where they are."""
    return MappedPoints(points, ~lattice.contains(points))


def _nowhere_wrong(lattice: Grid) -> Image:
    """An error map of zeros over a lattice, which is one voxel."""
    one = lattice.shrink(lattice.shape)
    return Image(np.zeros(one.shape, np.float32), one)

"""Tables of spots of an experiment, moved into the space of its reference, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.apply.points import InverseMap, MappedPoints, nearest_values
from itkstream.errors import InputError, RegistrationError
from itkstream.experiment.assignment import assign_tables
from itkstream.experiment.folder import EXPERIMENT, read_experiment
from itkstream.geometry import Grid, Image, default_axes
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io import ImageOptions, open_image
from itkstream.io.points.columns import VOXEL, read_unit
from itkstream.io.points.reading import SpotFile, open_spots
from itkstream.io.points.writing import check_spots_output, writing_spots
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.files import read_transform
from itkstream.registration.folder import ERROR, TRANSFORM, read_report

__all__ = ["SPOTS", "MovedRound", "MovedSpots", "is_experiment", "move_spots"]

SPOTS = "spots"
"""Folder of the moved tables."""

_JOINED = "joined.csv"
_ADDED = ("round", "table", "outside", "error_um")
_TOLD = ("unit", "axes", "channel", "time", "level")
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
    """

    name: str
    tables: tuple[str, ...]
    units: tuple[str, ...] = ()
    spots: int = 0
    within: int = 0
    outside: int = 0
    error_um: float = float("nan")
    left_out: str = ""

    def describe(self) -> str:
        """Say it in a line.

        Returns
        -------
        str
            Numbers, and what looks wrong.
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
    """

    joined: Location
    rounds: tuple[MovedRound, ...]


@frozen(eq=False)
class _Source:
    """A round: its image, and the way from it to the reference; no transform for that one."""

    name: str
    open: Callable[[], Image]
    transform: Location | None
    error: Location | None
    failed: str = ""


@frozen(eq=False)
class _Mover:
    """The way of points of a round, x first and in µm, into the reference, and how sure it is."""

    lattice: Grid
    way: PointMap
    errors: Image | None

    def lengths(self, points: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
        """Coordinates in µm; those of voxels count from the first of the image."""
        if unit == VOXEL:
            return self.lattice.to_physical(points)
        return points * MICROMETERS_PER_UNIT[unit]

    def certainty(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Radius of the error at places in the reference, in µm; NaN where nothing says it."""
        if self.errors is None:
            return np.full(len(places), np.nan)
        radii, missed = nearest_values(self.errors, places)
        return np.where(missed, np.nan, radii.astype(float))


def is_experiment(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of an experiment."""
    return (Location.parse(folder) / EXPERIMENT).is_file()


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
    ``centroid_x`` or ``x``. Each goes to the inverse of its round's transform.

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
        of their folder; or by the names of the rounds, a path or a list of paths each. CSV, TSV,
        Parquet, or numpy arrays (m, 3), x first.
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
    """
    sources = _sources_of(folder)
    given = assign_tables(tables, list(sources), None if is_experiment(folder) else "moving")
    place = Location.parse(folder) / SPOTS
    joined = place / _JOINED if out is None else Location.parse(out)
    outputs = {name: place / f"{name}.csv" for name in given if not sources[name].failed}
    paths = [path for some in given.values() for path in some]
    for target in (joined, *outputs.values()):
        check_apart(target, *paths)
        check_spots_output(target, overwrite)
    if not outputs:
        reasons = "; ".join(f"{name}: {sources[name].failed}" for name in given)
        raise RegistrationError(f"no round with spots has a result. {reasons}")
    with ExitStack() as stack:
        ndim = _reference(sources).open().ndim
        files = {
            name: [_opened(stack, path, ndim, unit) for path in given[name]] for name in outputs
        }
        types = _types(list(chain.from_iterable(files.values())), ndim)
        write = stack.enter_context(writing_spots(joined, types, overwrite))
        moved = []
        for name, some in given.items():
            if sources[name].failed:
                left = MovedRound(name, tuple(map(str, some)), left_out=sources[name].failed)
                moved.append(left)
                continue
            with writing_spots(outputs[name], _types(files[name], ndim), overwrite) as own:
                moved.append(_move_round(sources[name], files[name], (own, write)))
    return MovedSpots(joined, tuple(moved))


def _sources_of(folder: str | os.PathLike[str]) -> dict[str, _Source]:
    """The rounds of an experiment, or the two images of a registration, by name."""
    place = Location.parse(folder)
    if not is_experiment(folder):
        return _sides_of(place)
    facts = read_experiment(folder)
    found = {}
    for entry in facts["rounds"]:
        name = entry["name"]
        transform, error = (place / entry[n] if entry[n] else None for n in ("transform", "error"))
        opening = partial(_finest(ImageOptions(**entry["options"])).open, entry["image"])
        failed = "" if name == facts["reference"] else _failure(entry)
        found[name] = _Source(name, opening, transform, error, failed)
    return found


def _finest(options: ImageOptions) -> ImageOptions:
    """The whole of an image, whose voxels are counted; a stated spacing is that of its level."""
    whole = replace(options, crop=None)
    return whole if whole.spacing is not None else replace(whole, level=None)


def _failure(entry: Mapping[str, Any]) -> str:
    """Why a round has no transform to be trusted; empty where it has."""
    verdict = entry["verdict"] or {}
    if entry["failed"]:
        return f"its registration has no result: {entry['failed']}"
    if verdict.get("outcome") == "failed":
        return f"its registration failed: {'; '.join(verdict.get('reasons', ()))}"
    return "" if entry["transform"] else "it is not registered yet"


def _sides_of(place: Location) -> dict[str, _Source]:
    """The two images of a registration as rounds."""
    report = read_report(str(place))
    opening = {}
    for side in ("fixed", "moving"):
        told = report[side].get("opened") or {"path": report[side]["name"]}
        options = ImageOptions(
            spacing=told.get("voxel_spacing"),
            **{
                key: told[key]
                for key in ("unit", "axes", "channel", "time", "level")
                if key in told
            },
        )
        opening[side] = partial(_finest(options).open, told["path"])
    error = place / ERROR if (place / ERROR).exists() else None
    failed = _failure({"verdict": report.get("verdict"), "failed": "", "transform": TRANSFORM})
    moving = _Source("moving", opening["moving"], place / TRANSFORM, error, failed)
    return {"fixed": _Source("fixed", opening["fixed"], None, None), "moving": moving}


def _reference(sources: Mapping[str, _Source]) -> _Source:
    """The round that has no transform, as it needs none."""
    return next(s for s in sources.values() if s.transform is None and not s.failed)


@frozen(eq=False)
class _Table:
    """A table of spots, and the unit in which its coordinates are taken."""

    file: SpotFile
    unit: str

    @property
    def name(self) -> str:
        """Name of its file without the ending."""
        return Location.parse(self.file.path).name.rsplit(".", 1)[0]


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


def _types(tables: Sequence[_Table], ndim: int) -> dict[str, Any]:
    """Columns of the table that is written of some, with their types."""
    lengths = tuple(f"{axis}_um" for axis in default_axes(ndim))
    others: dict[str, Any] = {}
    for table in tables:
        for name, kind in table.file.others.items():
            kind = str if kind is None else kind
            same = name not in others or others[name] == kind
            others[name] = kind if same else str
    kept = {name: kind for name, kind in others.items() if name not in (*lengths, *_ADDED)}
    added = dict(zip(_ADDED, (str, str, bool, float), strict=True))
    return {**dict.fromkeys(lengths, float), **kept, **added}


def _move_round(source: _Source, tables: Sequence[_Table], writers: Sequence[Any]) -> MovedRound:
    """Move all tables of a round into both files that it goes to."""
    mover = _mover_of(source)
    spots = within = outside = known = 0
    total = 0.0
    for table in tables:
        for columns, inside in _moved(mover, table, source.name):
            for write in writers:
                write(columns)
            errors = columns["error_um"][~np.isnan(columns["error_um"])]
            spots, within = spots + len(inside), within + int(inside.sum())
            outside += int(columns["outside"].sum())
            known, total = known + len(errors), total + float(errors.sum())
    return MovedRound(
        source.name,
        tuple(table.file.path for table in tables),
        tuple(table.unit for table in tables),
        spots,
        within,
        outside,
        total / known if known else float("nan"),
    )


def _moved(
    mover: _Mover, table: _Table, name: str
) -> Iterator[tuple[dict[str, Any], NDArray[np.bool_]]]:
    """Pieces of a table as they are written, and which spots lie in the image of the round."""
    for piece in table.file.pieces():
        points = mover.lengths(piece.points, table.unit)
        mapped = mover.way(points)
        lengths = (f"{axis}_um" for axis in default_axes(points.shape[1]))
        columns: dict[str, Any] = {
            **piece.others,
            **dict(zip(lengths, mapped.points.T, strict=True)),
            "round": [name] * len(points),
            "table": [table.name] * len(points),
            "outside": mapped.outside,
            "error_um": mover.certainty(mapped.points),
        }
        yield columns, mover.lattice.contains(points)


def _mover_of(source: _Source) -> _Mover:
    """Open what moves the points of a round."""
    axes = default_axes(source.open().ndim)
    lattice = source.open().grid.reorder(axes).in_unit("micrometer")
    if source.transform is None:
        return _Mover(lattice, partial(_stay, lattice), _nowhere_wrong(lattice))
    way = InverseMap.of(read_transform(source.transform, axes))
    errors = None
    if source.error is not None:
        errors = open_image(source.error).reorder(axes).in_unit("micrometer")
    return _Mover(lattice, way, errors)


def _stay(lattice: Grid, points: NDArray[np.float64]) -> MappedPoints:
    """Leave points of the reference where they are."""
    return MappedPoints(points, ~lattice.contains(points))


def _nowhere_wrong(lattice: Grid) -> Image:
    """An error map of zeros over a lattice, which is one voxel."""
    one = lattice.shrink(lattice.shape)
    return Image(np.zeros(one.shape, np.float32), one)

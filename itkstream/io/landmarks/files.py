"""Files of landmarks of any kind, read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid, Image, Landmarks, array_axes, default_axes
from itkstream.io.images.units import itk_unit
from itkstream.io.landmarks.bigwarp import (
    bigwarp_pairs,
    bigwarp_text,
    is_bigwarp,
    is_bigwarp_json,
    json_pairs,
)
from itkstream.io.landmarks.sides import (
    UNITS,
    VOXEL,
    Pairs,
    Side,
    from_micrometers,
    joined,
    paired,
    to_micrometers,
)
from itkstream.io.landmarks.slicer import (
    fcsv_side,
    fcsv_text,
    is_markups,
    markups_side,
    markups_text,
)
from itkstream.io.landmarks.tables import Table, napari_text, pairs_of, pairs_text, side_of
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_file, claim_file

__all__ = ["read_landmarks", "write_landmarks"]

Path: TypeAlias = str | os.PathLike[str]
Kind: TypeAlias = Literal["csv", "bigwarp", "slicer", "napari"]

_SLICER = (".mrk.json", ".fcsv")


def read_landmarks(
    path: Path,
    moving_path: Path | None = None,
    *,
    fixed: Image | Grid | None = None,
    moving: Image | Grid | None = None,
    unit: str | None = None,
) -> Landmarks:
    """Read pairs of landmarks from one file, or from one file per image.

    - CSV with named columns: ``fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z``, in any
      order and many spellings (``fix x``, ``fx``, ``FixedX (mm)``, ``target_x`` and ``source_x``),
      and, if there are, ``name``, ``sigma`` (see `Landmarks`) and ``active``;
    - BigWarp's CSV (name, active, moving x, y, z, fixed x, y, z, without a header) and JSON, of
      which active rows count;
    - 3D Slicer's ``.mrk.json`` and ``.fcsv``, LPS or RAS as the file says, one file per image;
    - CSV with columns x, y, z, or a points layer of napari (``axis-0``, ...), one file per image.

    Points in a file per image are paired by their labels where these are the same, else by their
    order.

    Parameters
    ----------
    path : path
        The pairs; or the points of the fixed image.
    moving_path : path, optional
        The points of the moving image.
    fixed, moving : Image or Grid, optional
        The images, where coordinates are indices, and for the files of Slicer, whose numbers are
        millimeters where an image is in millimeters, as NIfTI.
    unit : str, optional
        Unit of the coordinates, such as ``"millimeter"``; or ``"voxel"`` for indices. Default what
        a CSV file's columns say (``fixed_x_mm``), ITK's unit of the image for Slicer, indices for
        napari, else µm.

    Returns
    -------
    Landmarks
        In µm, their axes x, y, z.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        Where a file cannot be understood, counts or labels do not pair, a coordinate is not
        finite, or the unit is unknown or contradicts the file.

    Examples
    --------
    >>> marks = read_landmarks("fixed.mrk.json", "moving.mrk.json")  # doctest: +SKIP
    """
    if unit is not None and unit not in UNITS:
        raise InputError(f"unknown unit of landmarks {unit!r}; known: {', '.join(UNITS)}")
    pairs = _read_pairs(path, moving_path)
    grids = _grid(fixed), _grid(moving)
    slicer = str(path).lower().endswith(_SLICER)
    units, points = [], []
    for which, side, grid in zip(
        ("fixed", "moving"), (pairs.fixed, pairs.moving), grids, strict=True
    ):
        if slicer and grid is not None:
            side = replace(side, usual=itk_unit(grid))
        units.append(_unit(side, unit, str(path)))
        points.append(to_micrometers(side, grid, units[-1], which))
    source = tuple(str(p) for p in (path, moving_path) if p is not None)
    return replace(joined(pairs, (points[0], points[1]), units[0]), source=source)


def _unit(side: Side, given: str | None, where: str) -> str:
    """The unit of a file's points: what it states, what is given, what is usual."""
    if None not in (given, side.unit) and given != side.unit:
        raise InputError(f"{where} states that it is in {side.unit}s, and unit={given!r} is given")
    return given or side.unit or side.usual


def _grid(image: Image | Grid | None) -> Grid | None:
    return image.grid if isinstance(image, Image) else image


def _read_pairs(path: Path, moving_path: Path | None) -> Pairs:
    if moving_path is None:
        found = _read(path)
        if isinstance(found, Side):
            raise InputError(
                f"{path} holds the points of one image: give those of the other too, fixed first, "
                "or columns fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z"
            )
        return found
    sides = []
    for place in (path, moving_path):
        found = _read(place)
        if isinstance(found, Pairs):
            raise InputError(f"{place} holds pairs: give it alone, without a second file")
        sides.append(found)
    if sides[0].points.shape[1] != sides[1].points.shape[1]:
        raise InputError(f"{path} and {moving_path} hold points of different dimensions")
    return paired(sides[0], sides[1], (str(path), str(moving_path)))


def _read(path: Path) -> Pairs | Side:
    """Read a file, whose kind its content tells."""
    place = Location.parse(path)
    if not place.is_file():
        raise MissingDataError(f"there is no file of landmarks {path}")
    where = str(path)
    try:
        # utf-8-sig: spreadsheets put a mark at the beginning of the file.
        text = place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no text in UTF-8") from error
    if place.name.lower().endswith(".json"):
        return _read_json(text, where)
    if place.name.lower().endswith(".fcsv"):
        return fcsv_side(text, where)
    if is_bigwarp(text):
        return bigwarp_pairs(text, where)
    table = Table.read(text, where)
    return pairs_of(table) or side_of(table)


def _read_json(text: str, where: str) -> Pairs | Side:
    try:
        known = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON file: {error}") from error
    if is_markups(known):
        return markups_side(known, where)
    if is_bigwarp_json(known):
        return json_pairs(known, where)
    raise InputError(f"{where} holds neither a point list of Slicer nor landmarks of BigWarp")


def write_landmarks(
    path: Path,
    landmarks: Landmarks,
    moving_path: Path | None = None,
    *,
    kind: Kind | None = None,
    fixed: Image | Grid | None = None,
    moving: Image | Grid | None = None,
    overwrite: bool = False,
) -> None:
    """Write pairs of landmarks as a program reads them.

    Parameters
    ----------
    path : path
        ``.csv``; for Slicer ``.mrk.json`` or ``.fcsv``, of the fixed points.
    landmarks : Landmarks
        What is written; their axes must be known.
    moving_path : path, optional
        The file of the moving points, for Slicer and napari.
    kind : {'csv', 'bigwarp', 'slicer', 'napari'}, optional
        What reads it; default ``'slicer'`` for its endings, else ``'csv'``: named columns in µm.
    fixed, moving : Image or Grid, optional
        The images: needed for napari, which has indices; files of Slicer are in millimeters where
        an image is, else in µm.
    overwrite : bool
        Replace files that are there.

    Raises
    ------
    InputError
        Where kind, files and endings do not fit each other, or axes are unknown.
    ExistingOutputError
        Where a file is there.

    Examples
    --------
    >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
    >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
    >>> itkstream.write_landmarks("marks.csv", marks)
    >>> len(itkstream.read_landmarks("marks.csv"))
    4
    """
    kind = kind or ("slicer" if str(path).lower().endswith(_SLICER) else "csv")
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    apart = kind in ("slicer", "napari")
    if apart != (moving_path is not None):
        raise InputError(
            f"{kind} files hold the points of one image each: give path and moving_path"
            if apart
            else f"{kind} files hold pairs: leave moving_path out"
        )
    if landmarks.axes is None:
        raise InputError("nothing says which coordinate of the landmarks is x: give axes")
    pairs = _pairs_for(landmarks, kind, (_grid(fixed), _grid(moving)))
    for place, text in zip((path, moving_path), _texts(pairs, kind, path), strict=False):
        with claim_file(check_file(Location.parse(str(place)), overwrite), overwrite) as partial:
            partial.write_text(text, encoding="utf-8")


def _pairs_for(landmarks: Landmarks, kind: Kind, grids: tuple[Grid | None, Grid | None]) -> Pairs:
    """Bring landmarks to the units and axes of a kind of file."""
    known = landmarks.reorder(default_axes(landmarks.ndim))
    axes = array_axes(known.ndim) if kind == "napari" else default_axes(known.ndim)
    sides = []
    for which, points, grid in zip(
        ("fixed", "moving"), (known.fixed, known.moving), grids, strict=True
    ):
        usual = itk_unit(grid) if kind == "slicer" and grid is not None else "micrometer"
        unit = VOXEL if kind == "napari" else usual
        sides.append(Side(from_micrometers(points, grid, unit, axes, which), known.names, axes))
    return Pairs(sides[0], sides[1], known.sigma_um)


def _texts(pairs: Pairs, kind: Kind, path: Path) -> list[str]:
    """The files' contents, as many as there are files."""
    if kind == "csv":
        return [pairs_text(pairs, "micrometer")]
    if kind == "bigwarp":
        return [bigwarp_text(replace(pairs, sigma=None))]
    write: Callable[[Side], str] = napari_text
    if kind == "slicer":
        write = fcsv_text if str(path).lower().endswith(".fcsv") else markups_text
    return [write(pairs.fixed), write(pairs.moving)]

"""The commands of tables: points mapped, spots of an experiment moved, spots counted in cells."""

from __future__ import annotations

import sys
from typing import Any

import click

from itkstream.cli.exit_codes import NOT_ALIGNED
from itkstream.cli.options import (
    collect_image_options,
    name_options,
    with_image_options,
    with_overwrite,
)
from itkstream.cli.verb import Verb, tell, with_out

__all__ = ["count", "points"]

_PLAIN = ("x", "y", "z")


@click.command(
    cls=Verb,
    examples=(
        "itkstream points registered cells.csv --out moved.csv",
        "itkstream points registered spots.csv --inverse --voxels --out in_round1.csv",
        "itkstream points experiment spots/*.csv",
    ),
)
@click.argument("transform", type=click.Path())
@click.argument("tables", type=click.Path(), nargs=-1, required=True, metavar="POINTS...")
@with_out(
    "File to write; of an experiment, the table of all spots, .csv or .parquet. [default: "
    "spots/joined.csv in the folder of the experiment]",
    required=False,
)
@click.option("--inverse", is_flag=True, help="Map moving points to fixed ones.")
@click.option("--voxels", is_flag=True, help="Coordinates count voxels of the image, from 0.")
@click.option(
    "--unit",
    metavar="UNIT",
    help="Unit of coordinates where the header states none: um, nm, mm or voxel. [default: um]",
)
@with_overwrite
def points(transform: str, tables: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Map the POINTS of a file through TRANSFORM, or move the spots of an experiment.

    POINTS is a CSV or Parquet file with columns x, y, z (others are kept), or a numpy array
    (m, 3) in this order; in µm. TRANSFORM is a registration folder, a
    transform.ome.zarr, an ITK transform file or a displacement image; points go from fixed to
    moving. The CSV file written has a column `outside`: 1 where the transform says nothing about a
    point.

    Columns and units of RS-FISH, Big-FISH, napari and TrackMate are known, and such as x_um,
    'x (µm)', x_nm, POSITION_X or centroid_x; of these, and with --voxels or --unit, the file
    written has columns x_um, y_um, z_um, and error_um, from the map of the error.

    If TRANSFORM is the folder of an experiment, each of the POINTS, as spots/*.csv, is a table of
    the round whose name is in its own (or NAME=FILE), and is moved into the reference:
    spots/NAME.csv in the folder, and all in one, with columns `round`, `table`, `outside` and
    `error_um`. The exit code is 4 where a round was left out as its registration failed.
    """
    from itkstream.experiment.sources import is_experiment

    unit = _unit(options)
    if is_experiment(transform):
        if options["inverse"]:
            raise click.UsageError("spots of an experiment always go to its reference")
        _move(transform, tables, out, unit, options["overwrite"])
        return
    if len(tables) > 1:
        raise click.UsageError(
            f"{transform} is no folder of an experiment, and one transform takes one table; got "
            f"{len(tables)}"
        )
    if out is None:
        raise click.UsageError("say where to write: --out OUT")
    if unit is None and _is_plain(transform, tables[0]):
        _map_plain(transform, tables[0], out, options)
    else:
        _map_known(transform, tables[0], out, options | {"unit": unit})


def _unit(options: dict[str, Any]) -> str | None:
    from itkstream.io.points.columns import VOXEL, read_unit

    unit = None if options["unit"] is None else read_unit(options["unit"])
    if options["voxels"] and unit not in (None, VOXEL):
        raise click.UsageError(f"--voxels and --unit {options['unit']} exclude each other")
    return VOXEL if options["voxels"] else unit


def _move(
    folder: str, tables: tuple[str, ...], out: str | None, unit: str | None, overwrite: bool
) -> None:
    """Move the spots of an experiment, and say what became of each round's."""
    from itkstream.experiment.spots import move_spots

    moved = move_spots(folder, tables, out, unit=unit, overwrite=overwrite)
    lines = [found.describe() for found in moved.rounds]
    facts = {"moved": str(moved.joined), "rounds": [found.facts for found in moved.rounds]}
    tell(facts, *lines, f"moved: {moved.joined}")
    if any(found.left_out for found in moved.rounds):
        sys.exit(NOT_ALIGNED)


def _is_plain(transform: str, table: str) -> bool:
    """Whether a table has columns x, y and z and says no unit, or is none that can be read."""
    from itkstream.errors import ItkstreamError
    from itkstream.io.points.reading import open_spots
    from itkstream.io.transforms.files import read_transform

    try:
        with open_spots(table, read_transform(transform).ndim) as file:
            named = all(name.lower() in _PLAIN for name in file.names)
            return named and file.columns.program != "Big-FISH"
    except ItkstreamError:
        return True


def _map_known(transform: str, table: str, out: str, options: dict[str, Any]) -> None:
    """Map a table by what its header tells."""
    from itkstream.experiment.spots import map_spots

    given = {name: options[name] for name in ("inverse", "unit", "overwrite")}
    mapped = map_spots(transform, table, out, **given)
    units = " and ".join(mapped.units)
    facts = {"written": out, "points": mapped.spots, "outside": mapped.outside, "unit": units}
    line = f"{mapped.spots} points mapped, read in {units}s, {mapped.outside} outside: {out}"
    tell(facts, line)


def _map_plain(transform: str, table: str, out: str, options: dict[str, Any]) -> None:
    """Map a table of x, y and z in µm, which keeps its columns."""
    from itkstream.geometry import default_axes
    from itkstream.io.points import check_points_output, read_points, write_points
    from itkstream.io.storage.inputs import check_apart
    from itkstream.io.transforms.files import read_transform
    from itkstream.registration.folder import registered_places
    from itkstream.transform import apply_to_points

    overwrite = options["overwrite"]
    check_apart(out, transform, table, *registered_places(transform))
    check_points_output(out, overwrite)
    stored = read_transform(transform)
    opened = read_transform(transform, default_axes(stored.ndim))
    given = read_points(table, opened.ndim)
    mapped = apply_to_points(opened, given.points, inverse=options["inverse"])
    write_points(out, given, mapped.points, mapped.outside, overwrite=overwrite)
    number, outside = len(mapped.points), int(mapped.outside.sum())
    facts = {"written": out, "points": number, "outside": outside}
    tell(facts, f"{number} points mapped, {outside} outside: {out}")


@click.command(
    cls=Verb,
    examples=(
        "itkstream count experiment cells.ome.zarr",
        "itkstream count moved.csv cells.tif --gene gene --out cells.h5ad",
    ),
)
@click.argument("spots", type=click.Path())
@click.argument("labels")
@with_out(
    "Table to write, .csv or .h5ad. [default: cells.csv in the folder of the experiment]",
    required=False,
)
@click.option(
    "--gene",
    metavar="COLUMN",
    help="Column that names the gene. [default: gene; else round and channel; else table; else "
    "round]",
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    metavar="UM",
    help="Leave out spots whose error may be larger than so many µm, or is not known.",
)
@with_overwrite
@with_image_options("labels", common=False)
def count(spots: str, labels: str, out: str | None, **options: Any) -> None:
    """Count the spots of each gene in each cell of the segmentation LABELS.

    SPOTS is the folder of an experiment whose spots were moved by `itkstream points`, or any table
    of spots in the space of LABELS: an image of whole numbers, 0 between cells, on the reference.
    The table written has a row for each cell, those without spots too, and a column for each gene.
    Spots outside of the transform are not counted.
    """
    from itkstream.errors import ItkstreamError
    from itkstream.experiment.cells import count_spots
    from itkstream.experiment.sources import is_experiment

    if out is None and not is_experiment(spots):
        raise click.UsageError("say where to write the counts of a table: --out FILE")
    try:
        found = count_spots(
            spots,
            labels,
            out,
            gene=options["gene"],
            options=collect_image_options(options, "labels", common=False),
            max_error_um=options["max_error"],
            overwrite=options["overwrite"],
        )
    except ItkstreamError as error:
        raise type(error)(name_options(str(error), "labels-")) from error
    facts = {
        "written": str(found.out),
        "inside": found.inside,
        "background": found.background,
        "beyond": found.beyond,
        "unsure": found.unsure,
        "cells": len(found.cells),
        "genes": [*map(str, found.genes)],
    }
    tell(
        facts,
        f"{found.inside} spots of {len(found.genes)} genes in {len(found.cells)} cells; "
        f"{found.background} between cells, {found.beyond} beyond the labels, {found.unsure} not "
        "counted as their place is not sure",
        f"counted: {found.out}",
    )

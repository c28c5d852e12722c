"""Regions of an annotation: their names, their volumes, and what the brain shows in them."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.blocks.sources import readable
from itkstream.compute.execute import compute
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Block, Image
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.workers import Resources

__all__ = ["Names", "Region", "Tally", "list_regions", "read_names", "tally", "write_regions"]

_BACKGROUND = 0
_UM3_PER_MM3 = 1e9
_BLOCK = 128  # voxels per axis


@frozen
class Region:
    """A region of an atlas in a brain.

    Parameters
    ----------
    id : int
        Its number in the annotation.
    name, acronym : str
        What it is called; "" where that is not known.
    voxels : int
        Voxels of the brain that lie in it.
    volume_mm3 : float
        Their volume, in mm³.
    template_volume_mm3 : float
        The volume of the region in the template, in mm³.
    means : tuple of float
        Mean of each channel of the brain in it; NaN where no voxel has a value.

    Examples
    --------
    >>> region = itkstream.Region(8, "grey matter", "GM", 1000, 0.5, 0.52, (120.0,))
    >>> region.volume_mm3 / region.template_volume_mm3 < 1
    True
    """

    id: int
    name: str
    acronym: str
    voxels: int
    volume_mm3: float
    template_volume_mm3: float
    means: tuple[float, ...]


class Name(NamedTuple):
    """The name of a region, and its acronym."""

    name: str
    acronym: str = ""


Names = Mapping[int, Name]
"""Names of regions by their ids."""


class Tally(NamedTuple):
    """Voxels of a region; of each channel the sum of its values, and how many there are."""

    voxels: int
    sums: NDArray[np.float64]
    numbers: NDArray[np.int64]


def read_names(path: str | os.PathLike[str]) -> dict[int, Name]:
    """Read names of regions from a CSV file with columns id and name, perhaps acronym.

    As brainglobe's structures.csv. Other columns, and the order of all, do not matter.
    """
    place = Location.parse(path)
    if not place.is_file():
        raise MissingDataError(f"there is no file of names {path}")
    try:
        rows = csv.DictReader(io.StringIO(place.read_bytes().decode("utf-8-sig")))
        keys = {str(key).strip().lower(): key for key in rows.fieldnames or ()}
        if not {"id", "name"} <= keys.keys():
            raise InputError(
                f"{path} has columns {', '.join(map(str, keys)) or 'none'}; names of regions are a "
                "CSV file with columns id and name, and perhaps acronym, as brainglobe's "
                "structures.csv"
            )
        found: dict[int, Name] = {}
        for row in rows:
            number = _read_id(row[keys["id"]], f"{path}, line {rows.line_num}")
            acronym = (row[keys["acronym"]] or "") if "acronym" in keys else ""
            name = Name((row[keys["name"]] or "").strip(), acronym.strip())
            if found.setdefault(number, name) != name:
                raise InputError(f"{path} names region {number} twice: {found[number]}, {name}")
        return found
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: {error}") from error


def _read_id(text: str | None, where: str) -> int:
    try:
        return int(str(text).strip())
    except ValueError as error:
        raise InputError(f"{where}: an id is a whole number; got {text!r}") from error


def tally(
    labels: Image, channels: Sequence[Image] = (), resources: Resources | None = None
) -> dict[int, Tally]:
    """Count the voxels of every region, and add up the channels in it, block by block.

    Channels lie on the voxels of the labels. Sums are of whole numbers where a channel holds such,
    and blocks are added in their order: the same bits whoever computes.
    """
    labels = readable(labels)
    seen = tuple(readable(channel).reorder(labels.grid.axes) for channel in channels)
    blocks = block_grid(labels.shape, (_BLOCK,) * labels.ndim, 0)
    result = Result(np.dtype(object), (), "block")
    lazy = map_blocks(_tally_block, blocks, labels.data, {"channels": seen}, result)
    found: dict[int, Tally] = {}
    for ids, voxels, sums, numbers in compute(lazy, resources).ravel():
        for k, label in enumerate(ids.tolist()):
            here = Tally(int(voxels[k]), sums[:, k], numbers[:, k])
            known = found.get(label)
            found[label] = here if known is None else _added(known, here)
    found.pop(_BACKGROUND, None)
    return found


def _added(first: Tally, second: Tally) -> Tally:
    return Tally(
        first.voxels + second.voxels, first.sums + second.sums, first.numbers + second.numbers
    )


def _tally_block(
    part: NDArray[Any], block: Block, *, channels: tuple[Image, ...]
) -> NDArray[np.object_]:
    """The ids of a block with their voxels, and of every channel sums and numbers of values."""
    ids, places = np.unique(part, return_inverse=True)
    places, count = places.ravel(), len(ids)
    sums = np.zeros((len(channels), count))
    numbers = np.zeros((len(channels), count), np.int64)
    for k, channel in enumerate(channels):
        values = np.asarray(channel[block.core].read(), np.float64).ravel()
        known = np.isfinite(values)
        sums[k] = np.bincount(places[known], values[known], count)
        numbers[k] = np.bincount(places[known], minlength=count)
    out = np.empty((1,) * part.ndim, object)
    out.flat[0] = (ids, np.bincount(places, minlength=count), sums, numbers)
    return out


def list_regions(
    brain: tuple[Image, Mapping[int, Tally]],
    template: tuple[Image, Mapping[int, Tally]],
    names: Names,
) -> tuple[Region, ...]:
    """List all regions of the annotation by their ids, those too that the brain does not show.

    Each side is its labels and their tally.
    """
    volumes = [math.prod(labels.spacing) / _UM3_PER_MM3 for labels, _ in (brain, template)]
    channels = max((len(found.sums) for found in brain[1].values()), default=0)
    nothing = Tally(0, np.zeros(channels), np.zeros(channels, np.int64))
    regions = []
    for number in sorted(template[1].keys() | brain[1].keys()):
        here, there = brain[1].get(number, nothing), template[1].get(number, nothing)
        called = names.get(number, Name(""))
        sizes = here.voxels * volumes[0], there.voxels * volumes[1]
        regions.append(Region(number, *called, here.voxels, *sizes, _means(here)))
    return tuple(regions)


def _means(found: Tally) -> tuple[float, ...]:
    pairs = zip(found.sums.tolist(), found.numbers.tolist(), strict=True)
    return tuple(total / number if number else math.nan for total, number in pairs)


def write_regions(place: Location, regions: Iterable[Region], channels: Sequence[str]) -> None:
    """Write the table of regions as CSV; a mean that is not known is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sizes = ("voxels", "volume_mm3", "template_volume_mm3")
    writer.writerow(["id", "name", "acronym", *sizes, *(f"mean_{name}" for name in channels)])
    for region in regions:
        means = ["" if math.isnan(mean) else f"{mean:.6g}" for mean in region.means]
        volumes = f"{region.volume_mm3:.6g}", f"{region.template_volume_mm3:.6g}"
        writer.writerow([region.id, region.name, region.acronym, region.voxels, *volumes, *means])
    write_text(place, text.getvalue())

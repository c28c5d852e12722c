"""Spots of an experiment counted in the cells of a segmentation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from scipy import sparse

from itkstream.apply.points import nearest_values
from itkstream.blocks.inputs import block_grid
from itkstream.errors import InputError, MissingDataError, UnknownSpacingError
from itkstream.experiment.sources import is_experiment, reference_grid
from itkstream.experiment.spots import SPOTS, in_micrometers
from itkstream.geometry import Block, Image, array_axes, default_axes
from itkstream.io import ImageOptions
from itkstream.io.points.counts import CellTable, check_counts_output, write_counts
from itkstream.io.points.reading import SpotFile, SpotPiece, open_spots
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.numerics.threads import get_threads

__all__ = ["CELLS", "SpotCounts", "count_spots"]

CELLS = "cells.csv"
"""The table of cells in the folder of an experiment."""

_TABLES = ("joined.csv", "joined.parquet")
# Voxels of a segmentation that are read at a time, or a chunk where that has more.
_PART_VOXELS = 2**22
# Genes that a table may have.
_MOST_GENES = 2**20
_NAMELESS = "(none)"


@frozen(eq=False)
class SpotCounts:
    """Result of `count_spots`.

    Parameters
    ----------
    out : Location or None
        The table that was written, if any.
    cells : ndarray, (k,)
        Labels of all cells of the segmentation, in order; not 0, which is between cells.
    genes : tuple of str
        Names of the genes, sorted.
    counts : scipy.sparse.csr_array, (k, g)
        Spots of each gene in each cell.
    centres : ndarray, (k, n)
        Centres of the cells in µm, x first.
    voxels : ndarray, (k,)
        Their sizes in voxels.
    background : int
        Spots between cells.
    beyond : int
        Spots that lie beyond the segmentation.
    unsure : int
        Spots that were not counted as the transform says nothing about them, or as their error is
        larger than was asked for.

    Examples
    --------
    >>> counts = itkstream.count_spots("examples/spots/round1.csv", "examples/labels.ome.zarr")
    >>> counts.counts.shape == (len(counts.cells), len(counts.genes))
    True
    """

    out: Location | None
    cells: NDArray[np.int64]
    genes: tuple[str, ...]
    counts: Any
    centres: NDArray[np.float64]
    voxels: NDArray[np.int64]
    background: int
    beyond: int
    unsure: int

    @property
    def inside(self) -> int:
        """Spots in cells."""
        return int(self.counts.sum())


def count_spots(
    spots: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    gene: str | None = None,
    options: ImageOptions | None = None,
    max_error_um: float | None = None,
    overwrite: bool = False,
) -> SpotCounts:
    """Count the spots of each gene in each cell of a segmentation.

    A spot belongs to the label of the voxel it lies in. Labels are read part by part, the table
    some rows at a time; cells without spots are rows of zeros.

    Parameters
    ----------
    spots : path
        The folder of an experiment whose spots were moved by `move_spots`, or a table of spots in
        the space of the labels.
    labels : path
        An image of whole numbers, 0 between cells, in the space of the reference, in any format
        that `itkstream.open_image` opens. One of two axes counts spots of all depths. Where it says
        no spacing and has as many voxels as the reference of the experiment, it is taken to lie on
        these.
    out : path, optional
        The table to write: ``.csv``, a column ``cell`` and one of each gene; or ``.h5ad``, which
        needs anndata. Default ``cells.csv`` in the folder of an experiment, and none for a table.
    gene : str, optional
        The column that names the gene. Default ``gene``; else ``channel``, with the round before
        it, as in ROUND:CHANNEL; else ``table``, the file of the spots; else ``round``; else all
        spots count as one.
    options : ImageOptions, optional
        What the file of the labels does not state.
    max_error_um : float, optional
        Leave out spots whose ``error_um`` is larger or not known.
    overwrite : bool
        Replace a table that is there.

    Returns
    -------
    SpotCounts
        Cells, genes and counts.

    Raises
    ------
    InputError
        Where the labels are no whole numbers or hold no cell, and where the table has no such
        column or no coordinates.
    MissingDataError
        Where the folder has no moved spots, or a file is not there.
    ExistingOutputError
        Where the table is there.

    Examples
    --------
    >>> counts = itkstream.count_spots(
    ...     "examples/spots/round1.csv", "examples/labels.ome.zarr", gene="gene"
    ... )
    >>> counts.genes
    ('GeneA', 'GeneB')
    """
    folder = Location.parse(spots) if is_experiment(spots) else None
    table = Location.parse(spots) if folder is None else _joined_in(folder)
    place = None if out is None else Location.parse(out)
    if place is None and folder is not None:
        place = folder / CELLS
    if place is not None:
        check_apart(place, table, labels)
        check_counts_output(place, overwrite)
    image = _open_labels(labels, options or ImageOptions(), folder)
    with open_spots(table, image.ndim) as file:
        naming = _Naming.of(file, gene)
        sure = _judge(file, max_error_um)
        cells = _measure_cells(image)
        found = _count(file, naming, sure, image, cells.cells)
    counts = SpotCounts(
        place, cells.cells, *found.sorted(), cells.centres, cells.voxels, *found.left
    )
    if place is not None:
        told = CellTable(counts.cells, counts.genes, counts.counts, counts.centres, counts.voxels)
        write_counts(place, told, overwrite)
    return counts


def _joined_in(folder: Location) -> Location:
    """The table of all spots of an experiment."""
    for name in _TABLES:
        if (folder / SPOTS / name).is_file():
            return folder / SPOTS / name
    raise MissingDataError(
        f"{folder} has no {SPOTS}/{_TABLES[0]}: move the spots first, by `itkstream points`, or "
        "name the joined table instead of the folder"
    )


def _open_labels(
    path: str | os.PathLike[str], options: ImageOptions, folder: Location | None
) -> Image:
    """Open a segmentation, x first and in µm; on the voxels of the reference if it says none."""
    try:
        image = options.open(path)
    except UnknownSpacingError:
        if folder is None:
            raise
        grid = reference_grid(folder)
        axes = array_axes(grid.ndim)
        unit = ImageOptions(spacing=1.0, channel=options.channel, axes=options.axes)
        bare = unit.open(path).reorder(axes)
        if bare.shape != grid.reorder(axes).shape:
            raise
        image = Image(bare.data, grid.reorder(axes), str(path))
    if image.dtype.kind not in "iu":
        raise InputError(
            f"{path} holds {image.dtype}; a segmentation is an image of whole numbers, one per cell"
        )
    return image.reorder(default_axes(image.ndim)).in_unit("micrometer")


@frozen(eq=False)
class _Cells:
    """Labels of a segmentation, their centres and sizes."""

    cells: NDArray[np.int64]
    centres: NDArray[np.float64]
    voxels: NDArray[np.int64]


def _measure_cells(image: Image) -> _Cells:
    """Find all labels, reading a segmentation part by part, as it is stored."""
    blocks = block_grid(image.shape, _part_size(image), 0)
    with ThreadPoolExecutor(get_threads()) as pool:
        parts = list(pool.map(partial(_measure_block, image), blocks))
    labels, sums = (np.concatenate(some) for some in zip(*parts, strict=True))
    cells, which = np.unique(labels, return_inverse=True)
    if not len(cells):
        raise InputError(f"{image.name} holds no cell: all voxels are 0")
    total = np.zeros((len(cells), sums.shape[1]))
    np.add.at(total, which.ravel(), sums)
    voxels = total[:, 0]
    return _Cells(cells, image.grid.to_physical(total[:, 1:] / voxels[:, None]), voxels.astype(int))


def _part_size(image: Image) -> list[int]:
    """Voxels per axis of parts of whole chunks, as near to cubes as these let them be."""
    chunks = image.chunk_shape or (1,) * image.ndim
    size = [min(c, n) for c, n in zip(chunks, image.shape, strict=True)]
    growing = list(range(image.ndim))
    while growing:
        axis = min(growing, key=lambda k: size[k])
        longer = min(2 * size[axis], image.shape[axis])
        if size[axis] == longer or math.prod(size) // size[axis] * longer > _PART_VOXELS:
            growing.remove(axis)
        else:
            size[axis] = longer
    return size


def _measure_block(image: Image, block: Block) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels in a block, and of each the number of its voxels and the sums of their indices."""
    voxels = np.asarray(image.data[block.core])
    index = np.nonzero(voxels)
    labels, which = np.unique(voxels[index], return_inverse=True)
    sums = [np.bincount(which.ravel(), minlength=len(labels))]
    for axis, places in enumerate(index):
        own = places + block.core[axis].start
        sums.append(np.bincount(which.ravel(), own, len(labels)))
    return labels.astype(np.int64), np.stack(sums, axis=1).astype(float)


@frozen
class _Naming:
    """Columns whose cells, with a colon between, name the gene of a spot; none for all as one."""

    columns: tuple[str, ...]

    @classmethod
    def of(cls, file: SpotFile, gene: str | None) -> _Naming:
        """Choose the columns of a table."""
        known = {name.lower(): name for name in file.others}
        if gene is not None:
            if gene not in file.others:
                listed = ", ".join(file.others) or "none"
                raise InputError(
                    f"{file.path} has no column {gene}; beside the coordinates it has {listed}"
                )
            return cls((gene,))
        for wanted in (("gene",), ("round", "channel"), ("channel",), ("table",), ("round",)):
            if all(name in known for name in wanted):
                return cls(tuple(known[name] for name in wanted))
        return cls(())

    def names(self, piece: SpotPiece) -> list[str]:
        """Name the gene of each spot."""
        if not self.columns:
            return ["spots"] * len(piece.points)
        cells = (map(_named, piece.others[name]) for name in self.columns)
        return [":".join(some) for some in zip(*cells, strict=True)]


def _named(cell: Any) -> str:
    return _NAMELESS if cell is None or cell == "" else str(cell)


def _judge(file: SpotFile, max_error_um: float | None) -> Callable[[SpotPiece], NDArray[np.bool_]]:
    """Tell which spots are sure enough to be counted."""
    if max_error_um is not None and "error_um" not in file.others:
        raise InputError(
            f"{file.path} has no column error_um, so that no largest error can be asked for: "
            "`itkstream points` adds it where the registration has a map of its error"
        )

    def sure(piece: SpotPiece) -> NDArray[np.bool_]:
        kept = np.ones(len(piece.points), bool)
        if "outside" in piece.others:
            kept &= ~np.array(
                [str(cell).lower() in ("1", "true") for cell in piece.others["outside"]]
            )
        if max_error_um is not None:
            errors = np.array([float(c or "nan") for c in piece.others["error_um"]], float)
            kept &= errors <= max_error_um
        return kept

    return sure


class _Tally:
    """Counts by cell and gene as pieces of a table come in, and the spots of no cell."""

    def __init__(self, cells: NDArray[np.int64]) -> None:
        self.cells = cells
        self.genes: dict[str, int] = {}
        self.left = [0, 0, 0]
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)

    def add(self, labels: NDArray[Any], names: Sequence[str]) -> None:
        """Count spots in cells."""
        genes = np.array([self.genes.setdefault(n, len(self.genes)) for n in names], np.int64)
        if len(self.genes) > _MOST_GENES:
            raise InputError(f"more than {_MOST_GENES} names of genes: is that the right column?")
        rows = np.searchsorted(self.cells, labels.astype(np.int64))
        keys = np.concatenate([self._keys, rows * _MOST_GENES + genes])
        weights = np.concatenate([self._counts, np.ones(len(genes), np.int64)])
        self._keys, which = np.unique(keys, return_inverse=True)
        self._counts = np.zeros(len(self._keys), np.int64)
        np.add.at(self._counts, which.ravel(), weights)

    def sorted(self) -> tuple[tuple[str, ...], Any]:
        """The names of the genes in their order, and the counts."""
        names = sorted(self.genes)
        place = np.empty(len(names), np.int64)
        place[[self.genes[name] for name in names]] = np.arange(len(names))
        rows, columns = np.divmod(self._keys, _MOST_GENES)
        shape = (len(self.cells), len(names))
        entries = (self._counts, (rows, place[columns] if names else columns))
        return tuple(names), sparse.csr_array(entries, shape=shape)


def _count(
    file: SpotFile,
    naming: _Naming,
    sure: Callable[[SpotPiece], NDArray[np.bool_]],
    image: Image,
    cells: NDArray[np.int64],
) -> _Tally:
    """Count the spots of a table, piece by piece."""
    tally = _Tally(cells)
    for piece in file.pieces():
        kept = sure(piece)
        unit = file.columns.unit or "micrometer"
        labels, missed = nearest_values(image, in_micrometers(piece.points, unit, image.grid))
        inside = kept & ~missed & (labels != 0)
        tally.left[0] += int((kept & ~missed & (labels == 0)).sum())
        tally.left[1] += int((kept & missed).sum())
        tally.left[2] += int((~kept).sum())
        names = naming.names(piece)
        tally.add(labels[inside], [names[k] for k in np.flatnonzero(inside)])
    return tally

"""Tables of counts, cells by genes: CSV, and AnnData as an h5ad file."""

from __future__ import annotations

import csv
import os
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.io.points.outputs import check_table
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import claim_file

__all__ = ["CellTable", "check_counts_output", "write_counts"]


@frozen(eq=False)
class CellTable:
    """Counts of cells by genes, a sparse matrix (k, g), and the cells.

    `cells` are their labels; `centres` (k, n) in µm, x first, and `voxels` say where and how large.
    """

    cells: NDArray[np.int64]
    genes: tuple[str, ...]
    counts: Any
    centres: NDArray[np.float64]
    voxels: NDArray[np.int64]


def check_counts_output(path: str | os.PathLike[str], overwrite: bool) -> Location:
    """See whether a table of counts can be written to a file, before anything is read for it."""
    return check_table(path, "tables of cells", {".csv": None, ".h5ad": _anndata}, overwrite)


def write_counts(path: str | os.PathLike[str], table: CellTable, overwrite: bool) -> None:
    """Write counts: as CSV a column `cell` and one per gene; as AnnData with places and sizes."""
    place = check_counts_output(path, overwrite)
    with claim_file(place, overwrite) as partial:
        if place.suffix.lower() == ".h5ad":
            _as_anndata(table).write_h5ad(partial)
            return
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["cell", *table.genes])
            for number, cell in enumerate(table.cells.tolist()):
                writer.writerow([cell, *table.counts[[number]].toarray()[0].tolist()])


def _as_anndata(table: CellTable) -> Any:
    made = _anndata().AnnData(
        table.counts, obs={"voxels": table.voxels}, obsm={"spatial": table.centres}
    )
    made.obs_names = [str(cell) for cell in table.cells]
    made.var_names = list(table.genes)
    return made


def _anndata() -> Any:
    try:
        import anndata
    except ImportError as error:
        raise InputError(
            ".h5ad files need anndata: pip install 'itkstream[anndata]', or write a .csv"
        ) from error
    return anndata

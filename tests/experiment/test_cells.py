"""Spots are counted in the cells they lie in, whatever the format of labels and tables."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from spot_rounds import GRID, make_rounds

import itkstream
from itkstream.cli.app import commands
from itkstream.errors import ExistingOutputError, InputError, MissingDataError, UnknownSpacingError
from itkstream.experiment import cells
from itkstream.experiment.cells import count_spots
from itkstream.io import create_ome_zarr
from itkstream.io.points import reading

# Labels beyond 32 bits, and one that no spot may be in.
NUMBERS = np.array([0, 4, 7, 7 + 2**33, 12], np.uint64)


def draw_labels(seed: int = 0) -> np.ndarray:
    """Random labels in boxes of some voxels; the last is a single voxel in a corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (6, 5, 6))
    index = np.kron(coarse, np.ones((3, 4, 4), int))
    index[0, 0, 0] = 4
    return NUMBERS[index]


def draw_spots(count: int = 500, seed: int = 1) -> np.ndarray:
    """Points, z, y, x, in the image and somewhat beyond."""
    low, high = GRID.outer_corners()[[0, -1]]
    return np.random.default_rng(seed).uniform(low - 2, high + 2, (count, 3))


def write_table(path: Path, points: np.ndarray, **more) -> Path:
    columns = {f"{axis}_um": points[:, k].tolist() for k, axis in ((2, "x"), (1, "y"), (0, "z"))}
    columns |= more
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def expected(labels: np.ndarray, points: np.ndarray, genes: list[str]) -> tuple[Counter, int, int]:
    """Count one by one: cells and genes, spots between cells, and spots beyond the image."""
    found, background, beyond = Counter(), 0, 0
    for point, gene in zip(points, genes, strict=True):
        index = np.floor(GRID.to_index(point) + 0.5).astype(int)
        if (index < 0).any() or (index >= GRID.shape).any():
            beyond += 1
        elif labels[tuple(index)] == 0:
            background += 1
        else:
            found[int(labels[tuple(index)]), gene] += 1
    return found, background, beyond


def as_counter(counts) -> Counter:
    rows, columns = counts.counts.nonzero()
    entries = zip(rows, columns, strict=True)
    return Counter(
        {(int(counts.cells[r]), counts.genes[c]): int(counts.counts[r, c]) for r, c in entries}
    )


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "labels.ome.zarr"
    create_ome_zarr(path, GRID, np.uint64, chunks=(5, 7, 6))[...] = draw_labels()
    return path


def test_counts_are_those_of_each_spot_alone(stored, tmp_path) -> None:
    points = draw_spots()
    genes = list(np.random.default_rng(2).choice(["Fos", "Npy", "a, b"], len(points)))
    table = write_table(tmp_path / "p.csv", points, gene=genes)
    counts = count_spots(table, stored, tmp_path / "cells.csv")
    found, background, beyond = expected(draw_labels(), points, genes)
    assert as_counter(counts) == found
    assert (counts.background, counts.beyond, counts.unsure) == (background, beyond, 0)
    assert counts.inside + background + beyond == len(points)
    with (tmp_path / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Cells without spots are rows of zeros, and nothing is lost in numbers beyond 2^33.
    assert [int(row["cell"]) for row in rows] == sorted(int(n) for n in NUMBERS[1:])
    assert list(rows[0]) == ["cell", "Fos", "Npy", "a, b"]
    for row in rows:
        for gene in counts.genes:
            assert int(row[gene]) == found[int(row["cell"]), gene]
    assert {row[g] for row in rows if row["cell"] == "12" for g in counts.genes} == {"0"}


def test_pieces_and_parts_change_nothing(stored, tmp_path, monkeypatch) -> None:
    points = draw_spots()
    genes = [f"g{k % 7}" for k in range(len(points))]
    table = write_table(tmp_path / "p.csv", points, gene=genes)
    whole = count_spots(table, stored)
    monkeypatch.setattr(reading, "PIECE_ROWS", 11)
    monkeypatch.setattr(cells, "_PART_VOXELS", 500)
    parts = count_spots(table, stored)
    assert as_counter(parts) == as_counter(whole)
    assert parts.genes == whole.genes
    np.testing.assert_array_equal(parts.cells, whole.cells)
    np.testing.assert_array_equal(parts.voxels, whole.voxels)
    np.testing.assert_allclose(parts.centres, whole.centres, rtol=1e-12)


def test_cells_are_measured(stored, tmp_path) -> None:
    counts = count_spots(write_table(tmp_path / "p.csv", draw_spots(3)), stored)
    labels = draw_labels()
    for cell, centre, voxels in zip(counts.cells, counts.centres, counts.voxels, strict=True):
        index = np.argwhere(labels == np.uint64(cell))
        assert voxels == len(index)
        np.testing.assert_allclose(centre[::-1], GRID.to_physical(index).mean(axis=0), rtol=1e-12)


def test_parts_of_a_segmentation_are_read_and_never_the_whole(
    stored, tmp_path, monkeypatch
) -> None:
    read = []
    measure = cells._measure_block
    monkeypatch.setattr(cells, "_PART_VOXELS", 1000)
    monkeypatch.setattr(
        cells, "_measure_block", lambda i, b: read.append(b.core_shape) or measure(i, b)
    )
    count_spots(write_table(tmp_path / "p.csv", draw_spots(3)), stored)
    # Slivers at the end of an axis join the part before them.
    assert max(np.prod(shape) for shape in read) <= 1000 * 1.5**3
    assert sum(np.prod(shape) for shape in read) == GRID.size


@pytest.mark.parametrize(
    ("columns", "gene", "names"),
    [
        ({"gene": "A", "channel": "c", "round": "r"}, None, "A"),
        ({"gene": "A", "channel": "c", "round": "r"}, "channel", "c"),
        ({"channel": "c", "round": "r", "table": "t"}, None, "r:c"),
        ({"Channel": "c"}, None, "c"),
        ({"table": "t", "round": "r"}, None, "t"),
        ({"round": "r"}, None, "r"),
        ({}, None, "spots"),
        ({"gene": ""}, None, "(none)"),
    ],
)
def test_gene_is_the_column_that_names_it(stored, tmp_path, columns, gene, names) -> None:
    points = GRID.to_physical(np.argwhere(draw_labels())[:2])
    more = {name: [cell] * 2 for name, cell in columns.items()}
    counts = count_spots(write_table(tmp_path / "p.csv", points, **more), stored, gene=gene)
    assert counts.genes == (names,)


def test_spots_that_are_not_sure_are_not_counted(stored, tmp_path) -> None:
    points = GRID.to_physical(np.argwhere(draw_labels())[:5])
    more = {"outside": [0, 1, 0, 0, 0], "error_um": [0.5, 0.5, 2.5, "nan", ""]}
    table = write_table(tmp_path / "p.csv", points, **more)
    assert (count_spots(table, stored).inside, count_spots(table, stored).unsure) == (4, 1)
    strict = count_spots(table, stored, max_error_um=1.0)
    assert (strict.inside, strict.unsure) == (1, 4)
    bare = write_table(tmp_path / "q.csv", points)
    with pytest.raises(InputError, match="no column error_um"):
        count_spots(bare, stored, max_error_um=1.0)


def test_labels_of_any_format_and_of_two_axes(tmp_path) -> None:
    labels = (draw_labels() % np.uint64(100)).astype(np.uint16)
    points, genes = draw_spots(), ["A"] * 500
    table = write_table(tmp_path / "p.csv", points, gene=genes)
    image = itkstream.Image(labels, GRID)
    sitk = pytest.importorskip("SimpleITK")
    file = sitk.GetImageFromArray(image.data)
    file.SetSpacing(GRID.spacing[::-1])
    file.SetOrigin(GRID.origin[::-1])
    sitk.WriteImage(file, str(tmp_path / "labels.nrrd"))
    counts = count_spots(table, tmp_path / "labels.nrrd")
    assert as_counter(counts) == expected(labels, points, genes)[0]
    flat = tmp_path / "flat.ome.zarr"
    lattice = itkstream.Grid(GRID.shape[1:], GRID.spacing[1:], GRID.origin[1:], axes=("y", "x"))
    create_ome_zarr(flat, lattice, np.uint16, chunks=(8, 8))[...] = labels[5]
    seen = count_spots(table, flat)
    index = np.floor(lattice.to_index(points[:, 1:]) + 0.5).astype(int)
    inside = ((index >= 0) & (index < lattice.shape)).all(axis=1)
    assert seen.inside == (labels[5][tuple(index[inside].T)] > 0).sum()


def test_labels_without_spacing_lie_on_the_reference(tmp_path) -> None:
    folder = make_rounds(tmp_path)
    (folder / "spots").mkdir()
    points, genes = draw_spots(), ["A"] * 500
    write_table(folder / "spots" / "joined.csv", points, gene=genes)
    labels = (draw_labels() % np.uint64(100)).astype(np.uint16)
    path = tmp_path / "labels.tif"
    tifffile.imwrite(path, labels, metadata={"axes": "ZYX"})
    counts = count_spots(folder, path)
    assert as_counter(counts) == expected(labels, points, genes)[0]
    assert str(counts.out) == str(folder / "cells.csv")
    with pytest.raises(ExistingOutputError):
        count_spots(folder, path)
    tifffile.imwrite(path, labels[:-1], metadata={"axes": "ZYX"})
    with pytest.raises(UnknownSpacingError):
        count_spots(folder, path, overwrite=True)


def test_what_cannot_be(stored, tmp_path) -> None:
    table = write_table(tmp_path / "p.csv", draw_spots(4), snr=[1, 2, 3, 4])
    with pytest.raises(InputError, match=r"no column gene; beside the coordinates it has snr"):
        count_spots(table, stored, gene="gene")
    with pytest.raises(InputError, match="never replaced"):
        count_spots(table, stored, table, overwrite=True)
    with pytest.raises(InputError, match=r"written as \.csv or \.h5ad"):
        count_spots(table, stored, tmp_path / "cells.txt")
    for name, voxels, text in (
        ("float", np.ones(GRID.shape, np.float32), "whole numbers"),
        ("empty", np.zeros(GRID.shape, np.uint8), "holds no cell"),
    ):
        create_ome_zarr(tmp_path / f"{name}.ome.zarr", GRID, voxels.dtype, chunks=(8, 8, 8))[
            ...
        ] = voxels
        with pytest.raises(InputError, match=text):
            count_spots(table, tmp_path / f"{name}.ome.zarr")
    with pytest.raises(MissingDataError, match="move the spots first"):
        count_spots(make_rounds(tmp_path), stored)


def test_command(stored, tmp_path) -> None:
    points = draw_spots()
    table = write_table(tmp_path / "p.csv", points, gene=["A"] * 500)
    words = ["count", str(table), str(stored)]
    assert "say where to write" in CliRunner().invoke(commands, words).output
    done = CliRunner().invoke(commands, [*words, "--out", str(tmp_path / "c.csv")])
    assert done.exit_code == 0, done.output
    found, background, beyond = expected(draw_labels(), points, ["A"] * 500)
    assert f"{sum(found.values())} spots of 1 genes in 4 cells; {background} between cells" in (
        done.output
    )
    assert f"{beyond} beyond the labels" in done.output

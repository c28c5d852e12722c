"""A synthetic experiment: its rounds, cells and spots are as it says, and lie where it says."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import itkstream
from itkstream.errors import ExistingOutputError, InputError
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import ExperimentSettings, PhantomSettings, make_experiment

SMALL = ExperimentSettings(
    rounds=3,
    tissue=replace(ExperimentSettings().tissue, shape=(64, 56, 32)),
)


@pytest.fixture(scope="module")
def made():
    return make_experiment(SMALL)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def test_same_settings_same_bits_on_any_threads(made) -> None:
    with using_threads(3):
        again = make_experiment(SMALL)
    np.testing.assert_array_equal(made.labels.data, again.labels.data)
    for one, other in zip(made.rounds, again.rounds, strict=True):
        assert one.truth == other.truth
        np.testing.assert_array_equal(one.spots.points, other.spots.points)
        for a, b in zip(one.channels, other.channels, strict=True):
            np.testing.assert_array_equal(a.data, b.data)


def test_true_maps_align_the_nuclei_of_every_round(made) -> None:
    points = made.labels.grid.positions()[made.tissue]
    fixed = made.rounds[0].channels[0].data[made.tissue].astype(float)
    for each in made.rounds[1:]:
        image = each.channels[0]
        index = image.grid.to_index(each.truth(points))
        seen = ((index >= 0) & (index <= np.subtract(image.shape, 1))).all(axis=1)
        there = map_coordinates(image.data.astype(float), index[seen].T, order=1)
        # As in a pair: nuclei change brightness, some are missing, and the camera is bent.
        assert correlation(fixed[seen], there) > 0.7


def test_last_round_overlaps_by_half_and_the_one_before_is_turned(made) -> None:
    grid = made.labels.grid
    points = grid.positions().reshape(-1, 3)
    inside = [grid.contains(each.truth(points)).mean() for each in made.rounds]
    assert inside[0] == 1
    # Shifts of up to 4 % of the extent per axis, and corners that a turn takes out.
    assert inside[1] > 0.7
    assert 0.4 < inside[2] < 0.6
    turn = np.asarray(made.rounds[1].truth.matrix)[:2, :2]
    # Another 3 degrees, stretch and shear at most.
    assert np.degrees(np.arctan2(turn[1, 0], turn[0, 0])) == pytest.approx(20, abs=4.5)


def test_spots_lie_in_their_cells_and_shine(made) -> None:
    for each in made.rounds:
        spots = each.spots
        np.testing.assert_allclose(each.truth(spots.reference), spots.points, atol=1e-9)
        inside = made.labels.grid.contains(spots.reference) & (spots.cells > 0)
        index = np.rint(made.labels.grid.to_index(spots.reference[inside])).astype(int)
        top = np.subtract(made.labels.shape, 1)
        found = made.labels.data[tuple(np.clip(index, 0, top).T)]
        # Spots keep half a voxel off the border across the optical axis, where voxels are longer.
        assert (found == spots.cells[inside]).mean() > 0.985
        assert 0.02 < (spots.cells == 0).mean() < 0.08
        for channel in (1, 2):
            image = each.channels[channel]
            some = spots.points[spots.channels == channel]
            nearest = np.clip(np.rint(image.grid.to_index(some)).astype(int), 0, top)
            bright = image.data[tuple(nearest.T)]
            assert (bright > np.percentile(image.data, 90)).mean() > 0.98


def test_some_nuclei_are_missing_and_so_are_their_spots() -> None:
    half = replace(SMALL, tissue=replace(SMALL.tissue, missing=0.5), rounds=2, overlap=1.0)
    made = make_experiment(half)
    first, second = (set(each.spots.cells) - {0} for each in made.rounds)
    # Half of the cells are gone, and each gene is in half of the rest.
    assert len(second) < 0.7 * len(first)


def test_is_written_as_images_with_names_and_tables(made, tmp_path) -> None:
    folder = made.write(tmp_path / "experiment")
    for each in made.rounds:
        for name, image in zip(("DAPI", "GeneA", "GeneB"), each.channels, strict=True):
            stored = itkstream.open_image(folder / f"{each.name}.ome.zarr", channel=name)
            assert stored.grid == image.grid.reorder(("z", "y", "x"))
            np.testing.assert_array_equal(stored.read(), image.data.T)
        with (folder / "spots" / f"{each.name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        points = [[float(row[f"{axis}_um"]) for axis in "xyz"] for row in rows]
        np.testing.assert_array_equal(points, each.spots.points)
        assert {row["gene"] for row in rows} == {"GeneA", "GeneB"}
        with (folder / "truth" / f"{each.name}.csv").open() as file:
            assert [int(row["cell"]) for row in csv.DictReader(file)] == each.spots.cells.tolist()
    labels = itkstream.open_image(folder / "labels.ome.zarr")
    np.testing.assert_array_equal(labels.read(), made.labels.data.T)
    with pytest.raises(ExistingOutputError):
        made.write(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": 1}, "at least 2 rounds"),
        ({"overlap": 0.0}, "overlap is a part"),
        ({"rim_um": 3.0}, "rim_um is a part of cytoplasm_um"),
        ({"spots_per_cell": float("nan")}, "spots_per_cell must be"),
        ({"tissue": PhantomSettings((64, 64), (1, 1))}, "same three axes"),
    ],
)
def test_refuses_what_cannot_be(change, says) -> None:
    with pytest.raises(InputError, match=says):
        ExperimentSettings(**change)

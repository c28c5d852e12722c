"""Rounds along a chain: registered onto the neighbour that shows more, one map to the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from round_files import QUICK, STEPS, write_round

import itkstream
from itkstream.experiment.register import register_rounds
from itkstream.experiment.rounds.chain import Overlap, arms_outwards
from itkstream.phantoms import Motion, PhantomSettings, make_pair

pytestmark = pytest.mark.slow


def test_rounds_are_taken_outwards_from_the_reference():
    assert arms_outwards(5, 2, True) == [[(3, 2), (4, 3)], [(1, 2), (0, 1)]]
    assert arms_outwards(3, 0, True) == [[(1, 0), (2, 1)], []]
    assert arms_outwards(5, 2, False) == [[(3, 2)], [(4, 3)], [(1, 2)], [(0, 1)]]


@pytest.mark.parametrize(
    ("by", "direct", "worth"),
    [
        (0.9, 0.5, True),
        (0.55, 0.5, False),
        (0.4, None, True),
        (None, None, False),
        (None, 0, False),
    ],
)
def test_a_neighbour_must_show_clearly_more(by, direct, worth):
    assert Overlap(by).is_worth(Overlap(direct)) is worth


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """Three windows along a tissue; the last lies a quarter in the first, in true coordinates."""
    folder = tmp_path_factory.mktemp("chain")
    motion = Motion(rotation_deg=2, stretch=0.01, shear=0.0, shift=0.01, warp_um=0.5)
    pair = make_pair(
        PhantomSettings((108, 52, 44), (1.0, 1.0, 1.2), 3, radii_um=(2.5, 5.0), motion=motion)
    )
    windows = (pair.fixed[0:60], pair.moving[22:84], pair.fixed[44:104])
    paths = [
        write_round(folder / f"r{k}.ome.zarr", image, f"gene{k}")
        for k, image in enumerate(windows, 1)
    ]
    settings = replace(QUICK, error_map=True)
    found = register_rounds(
        paths, folder / "out", chain=True, channel="DAPI", steps=STEPS, settings=settings
    )
    return found, pair


def test_the_last_round_goes_by_its_neighbour(chained):
    found, _ = chained
    assert [entry["onto"] for entry in found.facts["rounds"]] == [None, "r1", "r2"]
    assert found.rounds[2].transform.name == "to_reference.ome.zarr"
    assert found.rounds[1].transform.name == "transform.ome.zarr"


def test_its_map_from_the_reference_is_that_of_both(chained):
    found, _ = chained
    points = np.random.default_rng(0).uniform((46, 8, 8), (58, 44, 40), (300, 3))
    whole = itkstream.read_transform(found.rounds[2].transform, ("x", "y", "z"))
    first, second = (
        itkstream.read_transform(found.out / f"rounds/r{k}/transform.ome.zarr", ("x", "y", "z"))
        for k in (2, 3)
    )
    np.testing.assert_allclose(whole.apply(points), second.apply(first.apply(points)), atol=0.1)
    # Both windows are of one image, so that the truth is the identity; the warp there and back is
    # half a µm each, of which affines know nothing.
    assert np.median(np.linalg.norm(whole.apply(points) - points, axis=1)) < 1.5


def test_the_joined_image_is_interpolated_once_through_it(chained):
    found, pair = chained
    voxels = itkstream.open_image(found.joined, channel="r3:DAPI").reorder(("x", "y", "z")).read()
    seen = (slice(47, 57), slice(8, 44), slice(8, 36))
    truth = pair.fixed.read()[seen]
    assert np.corrcoef(voxels[seen].ravel(), truth.ravel())[0, 1] > 0.85


def test_its_error_is_that_of_both_together(chained):
    found, _ = chained
    near, own, whole = (
        itkstream.open_image(path)
        for path in (
            found.rounds[1].error,
            found.out / "rounds/r3/error.ome.zarr",
            found.rounds[2].error,
        )
    )
    assert found.rounds[2].error.name == "to_reference_error.ome.zarr"
    assert whole.grid == near.grid
    known = np.isfinite(whole.read())
    assert known.any()
    assert (whole.read() >= near.read())[known].all()
    assert np.nanmin(whole.read()) >= np.nanmin(near.read()) + np.nanmin(own.read()) - 1e-6

"""Planes, levels, places and drawings, against fields and images that are formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.geometry import AffineTransform, DisplacementField, Grid, Image
from itkstream.geometry.chains import FieldChain
from itkstream.io import open_image, write_n5
from itkstream.io.storage.locations import Location
from itkstream.report.drawings import inverse_errors, lying, warped_grid
from itkstream.report.places import worst_places
from itkstream.report.planes import cut_planes
from itkstream.report.sources import Sources, View, view_of

QUARTER_TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def blobs(grid: Grid, seed: int = 0) -> np.ndarray:
    """Texture everywhere, and tissue in the middle half of every axis."""
    image = np.random.default_rng(seed).uniform(0, 20, grid.shape)
    middle = tuple(slice(n // 4, n - n // 4) for n in grid.shape)
    image[middle] += np.random.default_rng(seed + 1).uniform(100, 200, image[middle].shape)
    return image.astype(np.float32)


def sources(grid: Grid, field: Any = None, **others: Any) -> Sources:
    """A registration of an image with itself; the field is given by a function of points."""
    image = Image(blobs(grid), grid, "tissue")
    nodes = grid.shrink((2,) * grid.ndim)
    vectors = np.zeros((*nodes.shape, grid.ndim)) if field is None else field(nodes.positions())
    moved = FieldChain(
        DisplacementField(vectors.astype(np.float32), nodes), AffineTransform(np.eye(grid.ndim + 1))
    )
    view = View(image)
    known: dict[str, Any] = {"facts": {}, "pair": (image, image), "transform": moved, "error": None}
    known |= {"fixed": view, "moving": view, "aligned": view}
    return Sources(folder=Location.parse("nowhere"), **(known | others))


def stretched(points: np.ndarray) -> np.ndarray:
    """10 % along the first coordinate."""
    moves = np.zeros(points.shape)
    moves[..., 0] = 0.1 * points[..., 0]
    return moves


def test_planes_lie_in_the_middle_of_the_tissue() -> None:
    grid = Grid((64, 48, 40), (1.0, 1.0, 2.0), axes=("x", "y", "z"))
    planes = cut_planes(sources(grid))
    assert [plane.name for plane in planes] == ["xy", "xz", "yz"]
    middles = {"z": 40.0, "y": 24.0, "x": 32.0}
    for plane in planes:
        assert abs(plane.position_um - middles[plane.across]) <= 4
        # Square pixels, as fine as the finer voxels; x lies along rows of pixels.
        assert plane.pixel_um == 1.0
    assert [plane.fixed.shape for plane in planes] == [(48, 64), (80, 64), (80, 48)]
    tissue = planes[0].tissue
    assert tissue[20:28, 28:36].all()
    assert not tissue[:4].any()


def test_a_picture_is_the_plane_of_the_array() -> None:
    grid = Grid((20, 24, 30), (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), QUARTER_TURN, ("z", "y", "x"))
    seen = sources(grid)
    plane = cut_planes(seen)[0]
    assert plane.name == "xy"
    expected = seen.pair[0].read()[plane.cut.at]
    np.testing.assert_allclose(plane.fixed, expected, rtol=1e-5)


def test_a_flat_image_is_one_plane() -> None:
    (plane,) = cut_planes(sources(Grid((60, 50), (0.5, 0.5), axes=("y", "x"))))
    assert (plane.name, plane.across, plane.fixed.shape) == ("xy", "", (60, 50))


@pytest.mark.parametrize("turned", [False, True])
def test_a_stretch_is_drawn_as_one(turned: bool) -> None:
    """Also where axes and coordinates differ: x of the space is then the second axis."""
    direction = QUARTER_TURN if turned else ()
    grid = Grid((64, 48, 40), (1.0, 1.0, 1.0), (0, 0, 0), direction, ("x", "y", "z"))
    plane = cut_planes(sources(grid, stretched))[0]
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(plane.jacobian[inner], 1.1, rtol=1e-3)
    positions = plane.grid.positions()[:, :, 0]
    moves = 0.1 * np.abs(positions[..., 0]).T
    np.testing.assert_allclose(plane.size_um[inner], moves[inner], atol=0.01)
    # Outwards from the first voxel: along the columns of the picture, or along its rows.
    along, across = plane.moves_um[..., 1], plane.moves_um[..., 0]
    if turned:
        along, across = across, along
    np.testing.assert_allclose(along[inner], moves[inner], atol=0.01)
    np.testing.assert_allclose(across[inner], 0, atol=1e-6)


def test_lines_are_bent_as_the_field_bends_them() -> None:
    plane = cut_planes(sources(Grid((64, 48, 40), (1.0, 1.0, 1.0)), stretched))[0]
    drawing = warped_grid(plane)
    bent = re.search(r'class="bent" d="([^"]+)"', drawing)
    assert bent is not None
    lines = [
        np.array([point.split(",") for point in line.split()], float)
        for line in bent[1].split("M")[1:]
    ]
    upright = [line for line in lines if np.ptp(line[:, 1]) > np.ptp(line[:, 0])]
    starts = np.array([line[10, 0] for line in upright])
    np.testing.assert_allclose(np.diff(starts), 1.1 * np.round(np.diff(starts) / 1.1), atol=0.05)
    assert len(lines) == 64 // 2 + 48 // 2


def test_boxes_and_points_lie_where_they_are() -> None:
    grid = Grid((100, 50, 20), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    shift = np.eye(4)
    shift[:3, 3] = (10, 0, 0)
    drawings = lying(grid, grid, AffineTransform(shift), {"agree": [[0.0, 0.0, 0.0]], "differ": []})
    boxes = {
        name: np.array([p.split(",") for p in d.strip("M").split()], float)
        for name, d in re.findall(r'class="box (\w+)" d="([^"]+)"', drawings[0])
    }
    low = {name: box.min(axis=0) for name, box in boxes.items()}
    np.testing.assert_allclose(low["moving"] - low["fixed"], (10, 0), atol=0.01)
    np.testing.assert_allclose(np.ptp(boxes["fixed"], axis=0), (100, 50), atol=0.01)
    circle = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawings[0])
    assert circle is not None
    np.testing.assert_allclose(np.array(circle.groups(), float) - low["fixed"], 0.5, atol=0.01)


def test_errors_of_the_inverse_lie_where_they_are_by_their_size() -> None:
    grid = Grid((100, 50, 20), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    worst = [
        {"point": (10.0, 40.0, 5.0), "error_vox": 0.2},
        {"point": (30.0, 20.0, 5.0), "error_vox": 0.05},
    ]
    drawings = inverse_errors(grid, worst)
    assert len(drawings) == 3
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawings[0])
    first, second = np.array(found, float)
    np.testing.assert_allclose(second[:2] - first[:2], (20, -20), atol=0.01)
    # From 1 for no error to 5 times as wide for the largest.
    assert first[2] / second[2] == pytest.approx(5 / 2, rel=0.01)
    assert inverse_errors(grid, [{"point": (1.0, 1.0, 1.0), "error_vox": 0.0}]) == []
    assert inverse_errors(grid, []) == []


def test_where_the_images_are_least_alike_is_a_worst_place() -> None:
    grid = Grid((72, 72, 72), (1.0, 1.0, 1.0))
    tissue = np.random.default_rng(0).uniform(100, 200, grid.shape).astype(np.float32)
    other = tissue.copy()
    other[48:60, 12:24, 36:48] = np.random.default_rng(1).uniform(100, 200, (12, 12, 12))
    images = Image(tissue, grid), Image(other, grid)
    first, *others = worst_places(
        sources(grid, pair=images, fixed=View(images[0]), aligned=View(images[1]))
    )
    assert first.box == ((48, 60), (12, 24), (36, 48))
    assert first.what.startswith("local correlation 0.")
    corners = np.array([[start for start, _ in place.box] for place in (first, *others)])
    distances = np.abs(corners[:, None] - corners).max(axis=-1)
    assert len(corners) > 1
    assert distances[~np.eye(len(corners), dtype=bool)].min() > 24


def test_what_lies_outside_the_moving_image_is_no_worst_place() -> None:
    grid = Grid((72, 72, 72), (1.0, 1.0, 1.0))
    tissue = Image(np.random.default_rng(0).uniform(100, 200, grid.shape).astype(np.float32), grid)
    filled = tissue.read().copy()
    filled[36:] = 0  # the background beyond a moving image of half the size
    half = tissue[:36]
    found = worst_places(
        sources(grid, pair=(tissue, half), fixed=View(tissue), aligned=View(Image(filled, grid)))
    )
    assert found
    assert all(place.box[0][1] <= 36 for place in found)


@pytest.mark.parametrize(("voxels", "decimated"), [(1e6, False), (3e3, False), (1e3, True)])
def test_a_level_is_read_and_a_huge_image_is_not(
    tmp_path: Path, voxels: float, decimated: bool
) -> None:
    """Of an image without levels, some 8 times the voxels that are wanted are averaged."""
    grid = Grid((32, 28, 24), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    ramp = grid.positions().sum(axis=-1).astype(np.float32)
    write_n5(tmp_path / "ramp.n5", "s0", ramp, grid)
    view = view_of(open_image(tmp_path / "ramp.n5/s0"), voxels)
    assert view.decimated is decimated
    # Whichever voxels are shown, they lie where they are.
    values = view.level.read()
    np.testing.assert_allclose(values, view.grid.positions().sum(axis=-1), atol=1e-3)


def test_a_level_that_the_run_kept_is_taken(tmp_path: Path) -> None:
    import zarr

    grid = Grid((32, 28, 24), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    image = Image(blobs(grid), grid)
    kept = zarr.create_array(str(tmp_path / "fixed.zarr"), shape=(16, 14, 12), dtype=np.float32)
    kept[:] = 7
    view = view_of(image, 3e3, Location.parse(tmp_path / "fixed.zarr"))
    assert not view.decimated
    assert (view.level.read() == 7).all()

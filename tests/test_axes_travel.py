"""The names of axes stay with a transform, from images to files and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from itkstream import register
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    LandmarkSpline,
    compose,
    with_axes,
)
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.numerics.sampling.mapping import affine_part, map_on
from itkstream.phantoms import PhantomPair
from itkstream.registration.steps import IntensityAffine, RegisterSettings

ORDERS = list(permutations("xyz"))
ZYX = ("z", "y", "x")


def shift(by: tuple[float, ...], axes: tuple[str, ...] | None = None) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return AffineTransform(matrix, axes)


@given(st.sampled_from(ORDERS), st.integers(0, 2**32 - 1))
def test_affines_keep_their_axes(axes: tuple[str, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3] += rng.uniform(-0.2, 0.2, (3, 4))
    affine = AffineTransform(matrix, axes)
    back = affine.inverse()
    assert back.axes == compose(affine, back).axes == affine_part(affine).axes == axes
    assert compose(affine, AffineTransform(np.eye(4))).axes == axes
    for wanted in ORDERS:
        turned = affine.reorder(axes, wanted)
        order = [axes.index(a) for a in wanted]
        points = rng.uniform(-9, 9, (5, 3))
        np.testing.assert_allclose(
            turned.apply(points[:, order]), affine.apply(points)[:, order], atol=1e-12
        )
        assert turned.axes == wanted
        assert f"({''.join(wanted)} " in repr(turned)
        if wanted != axes:
            with pytest.raises(InputError, match="cannot follow each other"):
                compose(affine, turned)
            with pytest.raises(InputError, match="has points with the axes"):
                with_axes(affine, wanted)


def test_grids_know_whether_their_axes_were_said() -> None:
    said, assumed = Grid((4, 5, 6), (1, 1, 1), axes=ZYX), Grid((4, 5, 6), (1, 1, 1))
    zeros = np.zeros((4, 5, 6, 3))
    for kind in (DisplacementField, BSplineTransform):
        assert kind(zeros, said).axes == ZYX
        assert kind(zeros, assumed).axes is None
        assert with_axes(kind(zeros, assumed), ZYX).grid == said
    for grid, stated in ((said, True), (assumed, False)):
        cut = grid.crop((slice(1, 3),) * 3)
        turned = grid.reorder(("y", "x", "z"))
        for made in (cut, turned, grid.shrink((2, 2, 2)), grid.in_unit("nanometer")):
            assert made.axes_stated is stated
    assert assumed == Grid((4, 5, 6), (1, 1, 1), axes=("x", "y", "z"))


GUESSED = [
    shift((1, 2, 3)),
    DisplacementField(np.ones((4, 5, 6, 3)), Grid((4, 5, 6), (1, 1, 1))),
    BSplineTransform(np.ones((5, 5, 6, 3)), Grid((5, 5, 6), (1, 1, 1))),
    CompositeTransform(
        (DisplacementField(np.ones((4, 5, 6, 3)), Grid((4, 5, 6), (1, 1, 1))), shift((1, 2, 3)))
    ),
]


@pytest.mark.parametrize("transform", GUESSED, ids=lambda t: type(t).__name__)
def test_nothing_is_written_by_a_guess(tmp_path: Path, transform: AffineTransform) -> None:
    with pytest.raises(InputError, match=r"pass axes=\('z', 'y', 'x'\)"):
        transform.write(tmp_path / "t.h5")
    assert not list(tmp_path.iterdir())
    for axes in (ZYX, ("x", "y", "z")):
        transform.write(tmp_path / "t.h5", axes, overwrite=True)
        inside = np.array([[2.1, 2.3, 2.6]])
        wanted = transform.apply(inside)
        found = read_transform(tmp_path / "t.h5", axes)
        assert found.axes == axes
        np.testing.assert_allclose(found.apply(inside), wanted, atol=1e-9)
        itk = sitk.ReadTransform(str(tmp_path / "t.h5"))
        order = [axes.index(a) for a in "xyz"]
        mapped = itk.TransformPoint(inside[0, order].tolist())
        np.testing.assert_allclose(mapped, wanted[0, order], atol=1e-9)


def test_no_image_is_written_by_a_guess(tmp_path: Path) -> None:
    image = Image(np.zeros((4, 5, 6), np.uint8), Grid((4, 5, 6), (1, 1, 1)))
    with pytest.raises(InputError, match="which axis of this image is x"):
        write_itk(tmp_path / "i.nrrd", image)
    with pytest.raises(InputError, match="which axis of the fixed image is x"):
        register(image, image, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_affine_acts_on_images_with_its_axes_only() -> None:
    grid = Grid((4, 5, 6), (1, 1, 1), axes=ZYX)
    with pytest.raises(InputError, match="cannot act on an image with the axes z, y, x"):
        map_on(shift((1, 2, 3), ("x", "y", "z")), grid)
    for axes in (ZYX, None):
        np.testing.assert_array_equal(map_on(shift((1, 2, 3), axes), grid).affine[:3, 3], (1, 2, 3))


@pytest.mark.parametrize("axes", [("x", "y", "z"), ZYX, ("y", "z", "x")], ids="".join)
@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.nrrd", "t.ome.zarr"])
def test_files_and_back(
    odd_grid: Callable[..., Grid],
    smooth_transform: Callable[..., CompositeTransform],
    tmp_path: Path,
    axes: tuple[str, ...],
    name: str,
) -> None:
    transform = smooth_transform(odd_grid(3, axes=axes))
    if name == "t.tfm":
        transform = AffineTransform(transform.transforms[1].matrix, axes)
    write_transform(tmp_path / name, transform)
    default = read_transform(tmp_path / name)
    # Stores of this package keep the order; other files are read as arrays of images are.
    assert default.axes == (axes if name == "t.ome.zarr" else ZYX)
    for wanted in ORDERS:
        assert read_transform(tmp_path / name, wanted).axes == wanted


def test_a_run_and_its_folder_say_the_same(pair: PhantomPair, tmp_path: Path) -> None:
    steps = (IntensityAffine("translation", iterations=(5, 5)),)
    matrix = np.asarray(pair.truth.matrix)
    points = pair.fixed.grid.to_physical([[20.0, 21.0, 22.0], [30.0, 25.0, 12.0]])
    for axes in (("x", "y", "z"), ZYX):
        order = [("x", "y", "z").index(a) for a in axes]
        images = (pair.fixed.reorder(axes), pair.moving.reorder(axes))
        start = AffineTransform(matrix, ("x", "y", "z")).reorder(("x", "y", "z"), axes)
        place, settings = tmp_path / "".join(axes), RegisterSettings(error_map=False, report=False)
        result = register(*images, place, steps, settings, initial_transform=start)
        again = read_transform(result.out)
        assert result.transform.axes == again.axes == axes
        wanted = result.transform.apply(points[:, order])
        np.testing.assert_array_equal(again.apply(points[:, order]), wanted)
        itk = sitk.ReadTransform(str(result.out / "itk" / "composite.h5"))
        mapped = np.array([itk.TransformPoint(p.tolist()) for p in points])
        np.testing.assert_allclose(mapped[:, order], wanted, atol=1e-6)
        with pytest.raises(InputError, match="the initial transform has points with the axes"):
            register(
                *images, tmp_path / "no", steps, initial_transform=shift((0, 0, 0), axes[::-1])
            )


def test_landmark_splines_keep_theirs() -> None:
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [5, 5, 5]])
    assert LandmarkSpline(corners, corners + 1).axes is None
    assert with_axes(LandmarkSpline(corners, corners + 1), ZYX).axes == ZYX
    with pytest.raises(InputError, match="permutation"):
        LandmarkSpline(corners, corners + 1, axes=("z", "y"))

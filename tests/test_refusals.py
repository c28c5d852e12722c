"""What no second run can cure is refused before anything is computed, in words of ours."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.affine import intensity_affine, prepare_piecewise_ransac_affine, ransac_affine
from itkstream.align import prepare_piecewise_align
from itkstream.compute.execute import compute, execute
from itkstream.deform import deformable_align, prepare_piecewise_deformable_align
from itkstream.errors import BlockErrors, InputError, RegistrationError, UnreadableDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.geometry.itk_bridge import quiet_itk, what_itk_says
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import plan, register
from itkstream.registration.steps import Deformable, IntensityAffine, LocalAffines, RansacAffine
from itkstream.workers.jobs import _exports

AXES = ("x", "y", "z")

FEW: dict[str, Any] = {
    "cc_radius": 3,
    "iterations": (2,),
    "shrink_factors": (1,),
    "smooth_sigmas": (0.0,),
}
BLOBS: dict[str, Any] = {"min_radius": 2, "max_radius": 6, "match_threshold": 0.4, "cc_radius": 6}
SIZE = (32, 28, 24)


def away(pair: PhantomPair, kind: str) -> Any:
    """A start that leads outside the moving image."""
    shift = np.eye(4)
    shift[0, 3] = 500
    if kind == "affine":
        return shift
    grid = Grid((2, 2, 2), (60.0, 60.0, 60.0), axes=AXES)
    field = DisplacementField(np.full((2, 2, 2, 3), 500, np.float32), grid)
    return field if kind == "field" else CompositeTransform((field, AffineTransform(np.eye(4))))


@pytest.mark.parametrize("kind", ["affine", "field", "composite", "file"])
def test_a_start_outside_the_moving_image(pair: PhantomPair, tmp_path: Path, kind: str) -> None:
    start = away(pair, "affine" if kind == "file" else kind)
    if kind == "file":
        moves = sitk.AffineTransform(3)
        moves.SetTranslation((500.0, 0, 0))
        start = tmp_path / "start.tfm"
        sitk.WriteTransform(moves, str(start))
    out = tmp_path / "out"
    with pytest.raises(RegistrationError, match="through the transform to start from"):
        register(pair.fixed, pair.moving, out, initial_transform=start)
    assert not out.exists()


def test_a_start_outside_is_refused_by_every_door(pair: PhantomPair) -> None:
    images, start = (pair.fixed, pair.moving, None, None), away(pair, "affine")
    with pytest.raises(RegistrationError, match="outside the moving image"):
        prepare_piecewise_deformable_align(
            *images, SIZE, global_affine=start, mov_is="original", **FEW
        )
    with pytest.raises(RegistrationError, match="outside the moving image"):
        prepare_piecewise_align(*images, [RansacAffine()], SIZE, initial_transform=start)


def test_images_apart_are_brought_together_by_key_points_only(
    pair: PhantomPair, tmp_path: Path
) -> None:
    grid = Grid(pair.moving.shape, pair.moving.spacing, (500.0, 0.0, 0.0), axes=AXES)
    apart = Image(pair.moving.data, grid)
    steps = [RansacAffine(radii=((2, 6),), match_threshold=0.5, cc_radius=6)]
    assert register(pair.fixed, apart, tmp_path / "a", steps).transform is not None
    with pytest.raises(RegistrationError, match="lies outside the moving image"):
        register(pair.fixed, apart, tmp_path / "b", [Deformable()])


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_another_unit_is_noticed(pair: PhantomPair, tmp_path: Path, factor: float) -> None:
    spacing = tuple(factor * h for h in pair.moving.spacing)
    moving = Image(pair.moving.data, Grid(pair.moving.shape, spacing, axes=AXES))
    larger = (
        "moving image is some 1,000 times as large as the fixed"
        if factor > 1
        else ("fixed image is some 1,000 times as large as the moving")
    )
    with pytest.raises(InputError, match=re.escape(larger)):
        register(pair.fixed, moving, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    images = (pair.fixed, moving, None, None)
    for door in (
        lambda: ransac_affine(*images, **BLOBS),
        lambda: intensity_affine(*images),
        lambda: deformable_align(*images, **FEW),
        lambda: prepare_piecewise_ransac_affine(*images, **BLOBS, blocksize=SIZE),
        lambda: prepare_piecewise_deformable_align(*images, SIZE, **FEW),
        lambda: prepare_piecewise_align(*images, [IntensityAffine()], SIZE),
    ):
        with pytest.raises(InputError, match="the unit it is in"):
            door()


def test_millimeters_that_are_stated_are_taken(pair: PhantomPair) -> None:
    spacing = tuple(h / 1000 for h in pair.moving.spacing)
    grid = Grid(pair.moving.shape, spacing, axes=AXES, unit="millimeter")
    images = pair.fixed, Image(pair.moving.data, grid)
    found = ransac_affine(*images, None, None, **BLOBS)
    expected = ransac_affine(
        pair.fixed,
        Image(pair.moving.data, Grid(pair.moving.shape, pair.moving.spacing, axes=AXES)),
        None, None, **BLOBS,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "value"),
    [("lcc", np.inf), ("lcc", -np.inf), ("demons", np.inf), ("bspline", np.inf)],
)
def test_infinite_voxels_count_as_nan_does(pair: PhantomPair, value: float, method: Any) -> None:
    images = {"inf": value, "nan": np.nan}
    found = {}
    for name, bad in images.items():
        fixed, moving = (i.read().astype(np.float32) for i in (pair.fixed, pair.moving))
        fixed[20, 20, 20] = moving[30, 12, 14] = bad
        steps = Deformable(method, iterations=(1,), shrink_factors=(2,))
        given = (fixed, moving, pair.fixed.spacing, pair.moving.spacing)
        settings = steps.settings_for(pair.fixed.spacing)
        found[name] = deformable_align(*given, settings=settings)
        few = IntensityAffine("translation", iterations=(2, 1)).settings_for(pair.fixed.spacing)
        found[name + "affine"] = intensity_affine(*given, settings=few)
        found[name + "points"] = ransac_affine(*given, **BLOBS)
    for name in ("", "affine", "points"):
        np.testing.assert_array_equal(found["inf" + name], found["nan" + name])
        assert np.isfinite(found["inf" + name]).all()


@pytest.mark.parametrize("size", [0, -4, 7, 8, 15, 17, 32.5, "64", None, np.nan], ids=str)
def test_impossible_blocks_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match="blocksize must be"):
        Deformable(blocksize=size)
    if size not in (32.5, "64", None) and size == size:
        with pytest.raises(InputError, match="blocksize must be"):
            LocalAffines(blocksize=size)


@pytest.mark.parametrize(
    ("blocksize", "overlap"),
    [((0, 8, 8), None), ((8, 8), None), ((-8, 8, 8), None), ((32, 32, 32), 9), ((32,) * 3, -1),
     ((12.5, 8, 8), None), (("a", 8, 8), None), (None, None), ((np.nan, 8, 8), None)],
)  # fmt: skip
def test_impossible_blocks_of_doors(pair: PhantomPair, blocksize: Any, overlap: Any) -> None:
    images = (pair.fixed, pair.moving, None, None)
    for door in (
        lambda: prepare_piecewise_ransac_affine(
            *images, **BLOBS, blocksize=blocksize, overlap=overlap
        ),
        lambda: prepare_piecewise_deformable_align(*images, blocksize, overlap=overlap, **FEW),
        lambda: prepare_piecewise_align(*images, [IntensityAffine()], blocksize, overlap=overlap),
    ):
        with pytest.raises(InputError, match=r"blocksize|overlap"):
            door()


def test_blocks_too_small_for_the_blobs(pair: PhantomPair) -> None:
    given = {**BLOBS, "max_radius": 20, "blocksize": (16, 14, 14)}
    with pytest.raises(InputError, match="cannot show blobs of radius 20: take smaller radii"):
        prepare_piecewise_ransac_affine(pair.fixed, pair.moving, None, None, **given)


@pytest.mark.slow
def test_small_blocks_take_the_radii_they_hold(
    pair: PhantomPair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [RansacAffine(radii=((2, 20),), match_threshold=0.5), LocalAffines(blocksize=32)]
    with caplog.at_level(logging.INFO):
        report = register(pair.fixed, pair.moving, tmp_path / "out", steps).facts
    assert "cannot show blobs" not in caplog.text
    assert report["steps"][2]["blocks_with_matches"] >= 6


@pytest.mark.parametrize("fill", [True, False])
def test_affines_that_all_fail_are_an_error(pair: PhantomPair, fill: bool) -> None:
    flat = Image(np.full(pair.moving.shape, 7, np.uint16), pair.moving.grid)
    lazy = prepare_piecewise_ransac_affine(
        pair.fixed, flat, None, None, **BLOBS, blocksize=SIZE, fill=fill
    )
    with pytest.raises((RegistrationError, BlockErrors), match="all 8 blocks failed"):
        compute(lazy)
    steps = [RansacAffine(radii=((2, 6),))]
    with pytest.raises(BlockErrors, match="all 8 blocks failed"):
        compute(prepare_piecewise_align(pair.fixed, flat, None, None, steps, SIZE))


@pytest.mark.parametrize("coarse_voxels", [0, 4096])
def test_deformations_that_all_fail_are_an_error(
    pair: PhantomPair, tmp_path: Path, coarse_voxels: float
) -> None:
    flat = Image(np.full(pair.moving.shape, 7, np.uint16), pair.moving.grid)
    for _ in range(2):
        lazy = prepare_piecewise_deformable_align(
            pair.fixed, flat, None, None, SIZE, coarse_voxels=coarse_voxels, **FEW
        )
        with pytest.raises(BlockErrors, match="no deformation could be found") as caught:
            execute(lazy, tmp_path / "out")
        assert "a second run would fail alike" in str(caught.value)
        assert "run the same again" not in str(caught.value)
    with pytest.raises(RegistrationError, match="holds texture"):
        lazy.compute()


def test_blocks_that_failed_are_counted_in_one_line(
    pair: PhantomPair, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = pair.moving.read().copy()
    voxels[36:] = 0
    half = Image(voxels, pair.moving.grid)
    images = (pair.fixed, half, None, None)
    compute(prepare_piecewise_deformable_align(*images, (16, 14, 12), coarse_voxels=0, **FEW))
    (said,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert re.match(r"\d+ of 64 blocks have no deformation of their own", said.getMessage())
    assert "texture" in said.getMessage()
    caplog.clear()
    compute(prepare_piecewise_ransac_affine(*images, **BLOBS, blocksize=SIZE))
    (said,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    assert re.match(r"\d of 8 blocks have no affine of their own", said.getMessage())


def test_only_what_may_go_better_is_to_be_run_again(tmp_path: Path) -> None:
    def failing(error: Exception) -> str:
        def fail(block: np.ndarray) -> np.ndarray:
            raise error

        array = da.zeros((8, 8), chunks=4).map_blocks(fail, meta=np.empty((0, 0)))
        with pytest.raises(BlockErrors) as caught:
            execute(array, tmp_path / type(error).__name__)
        return str(caught.value)

    for lasting in (InputError("a"), RegistrationError("b")):
        assert "run the same again" not in failing(lasting)
    for passing in (OSError("c"), UnreadableDataError("d"), MemoryError("e")):
        assert "run the same again" in failing(passing)


def test_the_log_has_a_line_a_block(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    array = da.zeros((8, 8), chunks=4).map_blocks(np.exp)
    with caplog.at_level(logging.INFO, "itkstream"):
        execute(array, tmp_path / "out")
    lines = [m for m in caplog.messages if re.search(r"\((0|1), (0|1)\) took \d+\.\d\d s", m)]
    assert len(lines) == 4


def test_jobs_log_their_blocks() -> None:
    from itkstream.workers import Resources

    lines = _exports(Resources(), 1)
    assert any(line.startswith("export DASK_LOGGING__ITKSTREAM=") for line in lines)


def test_itk_is_quiet_and_put_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    with quiet_itk(), quiet_itk():
        assert not sitk.ProcessObject.GetGlobalWarningDisplay()
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before
    start = np.eye(4)
    start[:3, 3] = 70
    images = [np.random.default_rng(k).random((32, 32, 32)) for k in (0, 1)]
    start[0, 3] = 31.2
    intensity_affine(*images, (1, 1, 1), (1, 1, 1), start)
    assert capfd.readouterr().err == ""


def test_what_itk_says_is_told_in_our_words() -> None:
    error = RuntimeError(
        "Exception thrown in SimpleITK: /a/b.cxx:92:\nITK ERROR: X(0x1): "
        "All samples map outside moving image buffer. There are 0 of 9"
    )
    assert what_itk_says(error) == "too few voxels that count lie on each other in both images"
    assert what_itk_says(RuntimeError("a.cxx:1:\nITK ERROR: X(0x1): odd")) == "ITK says: odd"


def test_a_plan_refuses_blocks_too(pair: PhantomPair) -> None:
    with pytest.raises(InputError, match="overlap"):
        plan(pair.fixed, pair.moving, [Deformable(blocksize=32, overlap=9)])

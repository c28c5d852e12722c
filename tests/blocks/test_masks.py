"""Masks of every kind: which voxels count, and that no others do, in every function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from itkstream.affine import intensity_affine, prepare_piecewise_ransac_affine, ransac_affine
from itkstream.align import prepare_piecewise_align
from itkstream.blocks.masks import masked
from itkstream.compute.execute import compute
from itkstream.deform import deformable_align, prepare_piecewise_deformable_align
from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Grid, Image
from itkstream.io import create_ome_zarr
from itkstream.numerics.itk.settings import DemonsSettings, IntensitySettings
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import register
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    RansacAffine,
    RegisterSettings,
)

SHAPE = (12, 10, 9)


@pytest.fixture
def image(odd_grid: Callable[..., Grid]) -> Image:
    voxels = np.random.default_rng(0).integers(0, 6, SHAPE).astype(np.uint16)
    return Image(voxels, odd_grid(4, shape=SHAPE))


def counts(image: Image, mask: Any) -> np.ndarray:
    """Where voxels count; the others must be NaN and these untouched."""
    found = masked(image, mask).read()
    assert found.dtype == np.float32
    known = np.isfinite(found)
    np.testing.assert_array_equal(found[known], image.read()[known])
    return known


def half(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2] = True
    return mask


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 2), (4, 5, 3)])
def test_an_array_may_be_coarser(image: Image, factors: tuple[int, ...]) -> None:
    small = image.grid.shrink(factors)
    mask = np.random.default_rng(1).random(small.shape) < 0.5
    groups = np.ix_(*(np.arange(n) // f for n, f in zip(SHAPE, factors, strict=True)))
    np.testing.assert_array_equal(counts(image, mask), mask[groups])
    np.testing.assert_array_equal(counts(image, Image(mask * 7.5, small)), mask[groups])


def test_an_array_may_be_finer(image: Image) -> None:
    fine = np.repeat(np.random.default_rng(1).random(SHAPE) < 0.5, 3, axis=0)
    np.testing.assert_array_equal(counts(image, fine), fine[1::3])


def test_an_image_lies_where_its_grid_says(image: Image) -> None:
    box = (slice(3, 8), slice(2, 9), slice(0, 4))
    mask = Image(np.ones((5, 7, 4)), image.grid.crop(box))
    expected = np.zeros(SHAPE, bool)
    expected[box] = True
    np.testing.assert_array_equal(counts(image, mask), expected)
    turned = mask.reorder(("z", "x", "y")).in_unit("nanometer")
    np.testing.assert_array_equal(counts(image, turned), expected)


def placed(image: Image, **changes: Any) -> Image:
    """A mask of the image's shape on its grid, but for some changes."""
    return Image(half(image.shape), replace(image.grid, **changes))


def test_a_mask_without_a_place_of_its_own_is_the_images(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = Image(half(SHAPE), Grid(SHAPE, (1, 1, 1), axes=image.grid.axes))
    np.testing.assert_array_equal(counts(image, nameless), half(SHAPE))
    (said,) = caplog.messages
    assert "the image mask has 12 x 10 x 9 voxels of 1 x 1 x 1 µm" in said
    caplog.clear()
    in_mm = replace(nameless.grid, unit="millimeter")
    np.testing.assert_array_equal(counts(image, Image(half(SHAPE), in_mm)), half(SHAPE))
    assert len(caplog.messages) == 1
    caplog.clear()
    nearly = tuple(v + 1e-4 for v in image.grid.origin)
    np.testing.assert_array_equal(counts(image, placed(image, origin=nearly)), half(SHAPE))
    assert not caplog.messages


@pytest.mark.parametrize("factor", [1e-3, 0.4, 2.5, 1e3])
def test_a_mask_of_the_images_shape_and_another_spacing_is_refused(
    image: Image, factor: float
) -> None:
    spacing = tuple(factor * h for h in image.spacing)
    with pytest.raises(InputError, match="the fixed mask has the image's shape and another spac"):
        masked(image, placed(image, spacing=spacing), "fixed")


def test_a_mask_beside_its_image_is_refused(image: Image) -> None:
    with pytest.raises(InputError, match="the moving mask lies outside the image: it has 12 x 10"):
        masked(image, placed(image, origin=(9e5, 0.0, 0.0)), "moving")
    small = image.grid.crop((slice(0, 4),) * 3)
    away = Image(np.ones((4, 4, 4)), replace(small, origin=(-9e5, 0.0, 0.0)))
    with pytest.raises(InputError, match="Check its unit, origin and direction"):
        masked(image, away, "moving")
    plane = Image(np.ones((40, 60)), Grid((40, 60), (1.0, 1.0)))
    beside = Image(np.ones((40, 60)), Grid((40, 60), (1.0, 1.0), (0.0, -300.0)))
    with pytest.raises(InputError, match="lies outside"):
        masked(plane, beside)


def test_a_mask_partly_on_its_image_is_warned_of(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    shifted = image.grid.to_physical((4, 0, 0))
    mask = placed(image, origin=tuple(shifted.tolist()))
    assert counts(image, mask).sum() == 6 * 90
    assert "the image mask covers 67 % of the image and has 67 % of itself" in caplog.text
    caplog.clear()
    turned = placed(image, direction=-np.asarray(image.grid.direction))
    masked(image, turned)
    assert "check its unit, origin and direction" in caplog.text.lower()
    caplog.clear()
    tiny = replace(image.grid, shape=(6, 5, 4), spacing=tuple(h / 1e3 for h in image.spacing))
    masked(image, Image(np.ones(tiny.shape), tiny))
    assert "check its unit" in caplog.text.lower()


def test_a_mask_of_another_shape_that_says_nothing_of_its_place_is_warned_of(
    image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    """Half as many voxels, written without their spacing: it reaches too far, or not far enough."""
    grid = Grid(SHAPE, (0.4, 0.4, 0.4), axes=image.grid.axes)
    fixed = Image(image.data, grid)
    small = Image(np.ones((6, 5, 5)), Grid((6, 5, 5), (1.0, 1.0, 1.0), axes=grid.axes))
    masked(fixed, small, "fixed")
    assert "the fixed mask covers 1e+02 % of the image and has" in caplog.text
    caplog.clear()
    masked(fixed, Image(small.data, replace(small.grid, spacing=(0.8, 0.8, 0.8))))
    masked(fixed, Image(np.ones((7, 6, 6)), Grid((7, 6, 6), (0.9, 0.9, 0.9), axes=grid.axes)))
    assert not caplog.text


def test_a_transposed_array_is_no_mask(image: Image) -> None:
    with pytest.raises(InputError, match=r"the fixed mask has shape .*transpose it"):
        masked(image, half(SHAPE).T, "fixed")


def test_a_function_may_return_nan(image: Image) -> None:
    found = counts(image, lambda v: np.where(v > 2, 1.0, np.nan))
    np.testing.assert_array_equal(found, image.read() > 2)


def test_labels_values_and_functions(image: Image) -> None:
    labels = np.random.default_rng(2).integers(0, 2**40, SHAPE)
    labels.flat[:300] = 2**40 + 1
    chosen = labels == 2**40 + 1
    np.testing.assert_array_equal(counts(image, (labels, [2**40 + 1, 5])), chosen)
    voxels = image.read()
    np.testing.assert_array_equal(counts(image, [0, 4]), ~np.isin(voxels, (0, 4)))
    np.testing.assert_array_equal(counts(image, np.array([3])), voxels != 3)
    np.testing.assert_array_equal(counts(image, lambda v: v > 2), voxels > 2)


def test_nan_in_a_mask_does_not_count(image: Image) -> None:
    mask = np.where(half(SHAPE), 1.0, np.nan)
    np.testing.assert_array_equal(counts(image, mask), half(SHAPE))


class Watched:
    """A stored array that remembers what was read of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype
        self.read = np.zeros(data.shape, bool)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.read[key] = True
        return self.data[key]


def test_a_stored_mask_is_read_where_the_image_is(image: Image) -> None:
    mask = Watched(half(SHAPE))
    source = masked(image, mask).data
    assert not mask.read.any()
    box = (slice(4, 8), slice(0, 3), slice(5, 9))
    np.testing.assert_array_equal(np.isfinite(source[box]), half(SHAPE)[box])
    # The part, and the voxels next to it.
    assert mask.read[box].all()
    assert mask.read.sum() <= 8 * 7 * 8
    assert not mask.read[10:].any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((4, 4)), "has shape"),
        ("tissue", "must be an array"),
        ([], "must be an array"),
        ([[1, 2], [3]], "must be an array"),
        ({"a": 1}, "must be an array"),
    ],
)
def test_what_is_no_mask_is_refused(image: Image, mask: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"the fixed mask {message}"):
        masked(image, mask, "fixed")
    plane = Image(np.ones((4, 4)), Grid((4, 4), (1.0, 1.0)))
    with pytest.raises(InputError, match="the moving mask has 2 axes and the image 3"):
        masked(image, plane, "moving")
    with pytest.raises(InputError, match="array of the shape of its argument"):
        masked(image, lambda v: v[0]).read()


BLOBS: dict[str, Any] = {"min_radius": 2, "max_radius": 6, "match_threshold": 0.4, "cc_radius": 6}
SIZE = (32, 28, 24)
FEW = {"iterations": (3, 2), "shrink_factors": (4, 2), "smooth_sigmas": (0.0, 0.0)}


def _ransac(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    return ransac_affine(fixed, moving, None, None, **BLOBS, **masks)


def _intensity(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    few = IntensitySettings("translation", iterations=(3, 2))
    return intensity_affine(fixed, moving, None, None, settings=few, **masks)


def _deform(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    few = {"cc_radius": 4, "iterations": (3, 2), "smooth_sigmas": (1.5, 0.5)}
    return deformable_align(fixed, moving, None, None, **few, **masks)


def _demons(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    return deformable_align(fixed, moving, None, None, settings=DemonsSettings(**FEW), **masks)


def _piecewise_affine(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    return compute(
        prepare_piecewise_ransac_affine(
            fixed, moving, None, None, **BLOBS, blocksize=SIZE, overlap=6, **masks
        )
    )


def _piecewise_deform(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    few = Deformable(iterations=(2, 1), shrink_factors=(2, 1)).settings_for(fixed.spacing)
    return compute(
        prepare_piecewise_deformable_align(
            fixed, moving, None, None, SIZE, settings=few, overlap=(8, 7, 6), **masks
        )
    )


def _steps(fixed: Image, moving: Image, **masks: Any) -> np.ndarray:
    steps = [IntensityAffine("translation", iterations=(3, 2))]
    return compute(
        prepare_piecewise_align(fixed, moving, None, None, steps, SIZE, overlap=(8, 7, 6), **masks)
    )


DOORS = [_ransac, _intensity, _deform, _demons, _piecewise_affine, _piecewise_deform, _steps]


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.__name__.strip("_"))
@pytest.mark.parametrize("side", ["fix", "mov"])
def test_voxels_that_do_not_count_change_nothing(
    pair: PhantomPair, door: Callable[..., np.ndarray], side: str
) -> None:
    images = {"fix": pair.fixed, "mov": pair.moving}
    voxels = images[side].read().copy()
    mask = np.ones(voxels.shape, bool)
    mask[:12, :20] = False
    noise = np.random.default_rng(0).integers(0, 60_000, voxels.shape).astype(voxels.dtype)
    spoiled = Image(np.where(mask, voxels, noise), images[side].grid)
    free = door(*images.values())
    one = door(*images.values(), **{f"{side}_mask": mask})
    other = door(*{**images, side: spoiled}.values(), **{f"{side}_mask": mask})
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, free)


def test_flags_turn_stored_masks_too(pair: PhantomPair) -> None:
    mask = half(pair.fixed.shape)
    straight = _piecewise_affine(pair.fixed, pair.moving, fix_mask=mask)
    lazy = prepare_piecewise_ransac_affine(
        pair.fixed.read().T, pair.moving.read().T, pair.fixed.spacing, pair.moving.spacing,
        **BLOBS, blocksize=SIZE, overlap=6, transpose=(True, True), fix_mask=mask.T,
    )  # fmt: skip
    np.testing.assert_array_equal(compute(lazy), straight)


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("kind", ["zeros", "intensities", "function", "image"])
def test_a_mask_that_leaves_nothing_is_named(
    pair: PhantomPair, tmp_path: Any, side: str, kind: str
) -> None:
    image = getattr(pair, side)
    zeros = np.zeros(image.shape, np.uint8)
    masks = {
        "zeros": zeros,
        "intensities": np.unique(image.read()).tolist(),
        "function": lambda v: np.zeros(v.shape, bool),
        "image": Image(zeros, image.grid),
    }
    with pytest.raises(
        RegistrationError, match=f"no voxel of the {side} image .* by the {side} mask"
    ):
        register(pair.fixed, pair.moving, tmp_path / "out", **{f"{side}_mask": masks[kind]})
    short = {"fixed": "fix", "moving": "mov"}[side]
    for door in (_ransac, _intensity, _deform, _demons):
        with pytest.raises((InputError, RegistrationError), match=f"{side}.* mask"):
            door(pair.fixed, pair.moving, **{f"{short}_mask": masks[kind]})


def test_a_mask_without_tissue_is_named(pair: PhantomPair, tmp_path: Any) -> None:
    mask = np.zeros(pair.fixed.shape, np.uint8)
    mask[:14, :14, :14] = 1
    steps = [RansacAffine(search="never")]
    with pytest.raises(
        RegistrationError, match=r"0\.\d+ of the fixed image counts.* left out by the fixed mask"
    ):
        register(pair.fixed, pair.moving, tmp_path / "out", steps, fixed_mask=mask)


@pytest.mark.slow
def test_register_leaves_out_what_does_not_count(pair: PhantomPair, tmp_path: Any) -> None:
    """One mask in four forms, over an image of which a third is saturated."""
    voxels = pair.fixed.read().copy()
    mask = np.ones(voxels.shape, bool)
    mask[:20] = False
    voxels[~mask] = 65_535
    spoiled = Image(voxels, pair.fixed.grid)
    store = tmp_path / "mask.ome.zarr"
    create_ome_zarr(store, pair.fixed.grid, np.dtype(np.uint8), chunks=(16, 16, 16))[:] = mask
    steps = [RansacAffine(radii=((2, 6),), match_threshold=0.5, cc_radius=6)]
    settings = RegisterSettings(error_map=False, report=False)
    found: list[np.ndarray] = []
    told: list[Any] = []
    for number, given in enumerate((mask, store, [65_535], lambda v: v < 65_535)):
        place = tmp_path / str(number)
        result = register(spoiled, pair.moving, place, steps, settings, fixed_mask=given)
        found.append(result.transform.transforms[1].matrix)
        told.append(result.facts["fixed_mask"])
    assert told == ["ndarray", str(store), [65_535], "function"]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    error = pair.error(result.transform.apply).summary()
    assert error["median_um"] < 1.0

"""2-D images through every function: against the truth, and never together with 3-D ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.affine import intensity_affine, prepare_piecewise_ransac_affine, ransac_affine
from itkstream.align import prepare_piecewise_align
from itkstream.apply.resampling import prepare_apply_transform, prepare_field
from itkstream.compute.execute import compute
from itkstream.deform import deformable_align, prepare_piecewise_deformable_align
from itkstream.errors import InputError
from itkstream.estimate.deformation import prepare_displacement
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.pipelines import register
from itkstream.registration.steps import Deformable, IntensityAffine, LocalAffines, RansacAffine
from itkstream.transform import (
    apply_global_affine,
    apply_to_points,
    invert_transform,
    prepare_apply_local_affines,
    prepare_apply_position_field,
    prepare_invert,
)

BLOBS: dict[str, Any] = {"min_radius": 2, "max_radius": 6, "match_threshold": 0.5, "cc_radius": 8}
RANSAC = RansacAffine(radii=((2, 6),), match_threshold=0.5, cc_radius=8)
LIGHT: dict[str, Any] = {"cc_radius": 4, "iterations": (25, 6), "smooth_sigmas": (1.5, 0.5)}
SIZE = (64, 60)


@pytest.fixture(scope="module")
def planes() -> PhantomPair:
    """128 x 120 voxels, some voxels apart, bent by 2 micrometers."""
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.02, warp_um=2)
    return make_pair(PhantomSettings((128, 120), (1.0, 1.1), 5, radii_um=(2.5, 5.0), motion=motion))


@pytest.fixture(scope="module")
def known(planes: PhantomPair) -> AffineTransform:
    return AffineTransform(planes.truth.matrix)


def off(pair: PhantomPair, positions: np.ndarray) -> float:
    """Median distance of moving positions from the truth in tissue, in micrometers."""
    miss = np.linalg.norm(positions - pair.truth(pair.fixed.grid.positions()), axis=-1)
    inner = (slice(6, -6),) * 2
    return float(np.median(miss[inner][pair.tissue[inner]]))


def through(pair: PhantomPair, transform: Any) -> np.ndarray:
    return np.asarray(transform.apply(pair.fixed.grid.positions()))


def _ransac(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    found = ransac_affine(pair.fixed, pair.moving, None, None, **BLOBS)
    return through(pair, AffineTransform(found))


def _intensity(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    found = intensity_affine(pair.fixed, pair.moving, None, None, start.matrix)
    return through(pair, AffineTransform(found))


def _piecewise_affine(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    rough = apply_global_affine(pair.fixed, pair.moving, None, None, start.matrix)
    h = pair.fixed.spacing
    local = prepare_piecewise_ransac_affine(pair.fixed.read(), rough, h, h, **BLOBS, blocksize=SIZE)
    matrices = compute(local)
    assert matrices.shape == (2, 2, 3, 3)
    lazy = prepare_apply_local_affines(
        pair.fixed, pair.moving, None, None, matrices, SIZE, start.matrix
    )
    assert compute(lazy).shape == pair.fixed.shape
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, pair.moving, None, None, SIZE, global_affine=start.matrix,
        local_affines=matrices, **{**LIGHT, "iterations": (0, 0)}, coarse_voxels=0,
        mov_is="original",
    )  # fmt: skip
    return compute(lazy)


def _direct(method: str) -> Callable[[PhantomPair, AffineTransform], np.ndarray]:
    def align(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
        aligned = apply_global_affine(
            pair.fixed, pair.moving, None, None, start.matrix, dtype=np.float32
        )
        given = LIGHT if method == "lcc" else {}
        images = (pair.fixed, Image(aligned, pair.fixed.grid), None, None)
        moves = deformable_align(*images, **given, method=method)
        assert (moves.shape, moves.dtype) == ((*pair.fixed.shape, 2), np.float32)
        return start.apply(pair.fixed.grid.positions() + moves)

    align.__name__ = f"deformable_{method}"
    return align


def _piecewise_deformable(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    lazy = prepare_piecewise_deformable_align(
        pair.fixed, pair.moving, None, None, SIZE, global_affine=start.matrix, **LIGHT,
        mov_is="original",
    )  # fmt: skip
    positions = compute(lazy)
    aligned = prepare_apply_position_field(pair.fixed, pair.moving, None, None, lazy, SIZE)
    assert compute(aligned).shape == pair.fixed.shape
    return positions


def _displacement(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    settings = Deformable().settings_for(pair.fixed.spacing)
    moves = compute(prepare_displacement(pair.fixed, pair.moving, start, SIZE, settings))
    return start.apply(pair.fixed.grid.positions() + moves)


def _steps(pair: PhantomPair, start: AffineTransform) -> np.ndarray:
    steps = [RANSAC, IntensityAffine("translation"), Deformable()]
    return compute(prepare_piecewise_align(pair.fixed, pair.moving, None, None, steps, SIZE))


ALIGNERS = [
    _ransac,
    _intensity,
    _piecewise_affine,
    *map(_direct, ("lcc", "demons", "symmetric-demons", "diffeomorphic-demons", "bspline")),
    _piecewise_deformable,
    _displacement,
    _steps,
]


@pytest.mark.parametrize("aligner", ALIGNERS, ids=lambda f: f.__name__.strip("_"))
def test_planes_are_aligned(
    planes: PhantomPair, known: AffineTransform, aligner: Callable[..., np.ndarray]
) -> None:
    start = np.array(known.matrix)
    start[:2, 2] += (1.0, -0.8)
    before = off(planes, through(planes, AffineTransform(start)))
    after = off(planes, aligner(planes, AffineTransform(start)))
    assert after < 0.8 * before
    assert after < 1.0


def test_register_takes_planes(planes: PhantomPair, tmp_path: Path) -> None:
    steps = [RANSAC, LocalAffines(blocksize=64, radii=(2, 6)), Deformable()]
    mask = np.ones(planes.fixed.shape, bool)
    mask[:9] = False
    result = register(
        planes.fixed, planes.moving, tmp_path / "out", steps,
        initial_transform=np.eye(3), fixed_mask=mask,
    )  # fmt: skip
    assert result.aligned.shape == planes.fixed.shape
    assert off(planes, through(planes, result.transform)) < 0.7
    points = planes.nuclei[:5]
    there = apply_to_points(result.transform, points)
    back = apply_to_points(result.transform, there.points, inverse=True)
    inside = ~(there.outside | back.outside)
    np.testing.assert_allclose(back.points[inside], points[inside], atol=0.02)


def test_transforms_of_planes(
    odd_grid: Callable[..., Grid], smooth_transform: Callable[..., Any]
) -> None:
    grid = odd_grid(3, 2, shape=(40, 36))
    transform = smooth_transform(grid)
    field = compute(prepare_field(transform, grid, (16, 16)))
    affine = transform.transforms[1]
    np.testing.assert_allclose(
        affine.apply(grid.positions() + field), transform.apply(grid.positions()), atol=1e-4
    )
    image = Image(np.random.default_rng(0).random(grid.shape, np.float32), grid)
    warped = compute(prepare_apply_transform(image, image, transform, (16, 16)))
    assert warped.shape == grid.shape
    inverse = invert_transform(transform, grid)
    inner = grid.positions()[10:-10, 10:-10]
    back = np.linalg.norm(inverse.apply(transform.apply(inner)) - inner, axis=-1)
    assert np.median(back) < 0.05 * min(grid.spacing)
    packed = compute(prepare_invert(transform, grid, (16, 16)))
    assert packed.shape[:2] == grid.shape


def _doors() -> dict[str, Callable[[Any, Any, Path], Any]]:
    none = (None, None)
    return {
        "ransac_affine": lambda f, m, _: ransac_affine(f, m, *none, **BLOBS),
        "intensity_affine": lambda f, m, _: intensity_affine(f, m, *none),
        "prepare_piecewise_ransac_affine": lambda f, m, _: prepare_piecewise_ransac_affine(
            f, m, *none, **BLOBS, blocksize=SIZE
        ),
        "deformable_align": lambda f, m, _: deformable_align(f, m, *none),
        "prepare_piecewise_deformable_align": lambda f, m, _: prepare_piecewise_deformable_align(
            f, m, *none, SIZE
        ),
        "prepare_piecewise_align": lambda f, m, _: prepare_piecewise_align(
            f, m, *none, [RANSAC], SIZE
        ),
        "apply_global_affine": lambda f, m, _: apply_global_affine(f, m, *none, np.eye(3)),
        "prepare_apply_local_affines": lambda f, m, _: prepare_apply_local_affines(
            f, m, *none, np.tile(np.eye(3), (2, 2, 1, 1)), SIZE
        ),
        "prepare_apply_position_field": lambda f, m, _: prepare_apply_position_field(
            f, m, *none, f.grid.positions(), SIZE
        ),
        "register": lambda f, m, out: register(f, m, out),
    }


@pytest.mark.parametrize("door", _doors())
def test_a_plane_and_a_volume_are_refused_with_a_hint(
    planes: PhantomPair, pair: PhantomPair, tmp_path: Path, door: str
) -> None:
    call = _doors()[door]
    with pytest.raises(InputError, match=r"2 axes and the moving image 3: choose a plane"):
        call(planes.fixed, pair.moving, tmp_path / "out")
    with pytest.raises(InputError, match=r"3 axes and the moving image 2: choose a plane"):
        call(pair.fixed, planes.moving, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_dimension_is_refused(planes: PhantomPair, tmp_path: Path) -> None:
    volume, images = np.ones((8, 8, 8)), (planes.fixed, planes.moving)
    calls: list[Callable[[], Any]] = [
        lambda: register(*images, tmp_path / "out", fixed_mask=volume),
        lambda: ransac_affine(*images, None, None, **BLOBS, fix_mask=volume),
        lambda: deformable_align(*images, None, None, fix_mask=volume),
    ]
    for call in calls:
        with pytest.raises(InputError, match="fixed mask has shape"):
            call()

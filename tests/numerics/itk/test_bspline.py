"""SimpleITK's B-splines as an engine of deformations, against known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from attrs import evolve

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid
from itkstream.geometry.itk_bridge import sample_transform, to_itk_image
from itkstream.numerics.deformation.descent import Descent, Frame
from itkstream.numerics.itk.bspline import _on_lattice, descend_bspline
from itkstream.numerics.itk.settings import BsplineSettings
from itkstream.numerics.sampling.fields import jacobian_determinant, shrink_field
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair

pytestmark = pytest.mark.nightly

SETTINGS = BsplineSettings(control_spacing=12.0, iterations=(12, 12), sampling_fraction=0.2)
FEW = evolve(
    SETTINGS, control_spacing=20.0, shrink_factors=(4,), smooth_sigmas=(0.0,), iterations=(3,)
)


def phantom(shape: tuple[int, ...] = (64, 56, 48)) -> PhantomPair:
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=4)
    spacing = (1.0, 1.0, 1.2)[: len(shape)]
    return make_pair(PhantomSettings(shape, spacing, 3, radii_um=(2.5, 5.0), motion=motion))


@pytest.fixture(scope="module")
def bent() -> PhantomPair:
    """A pair that differs by a smooth warp once its true affine is known."""
    return phantom()


def align(pair: PhantomPair, settings: BsplineSettings, **others: Any) -> Descent:
    frame = Frame(pair.fixed.grid, pair.moving.grid, pair.truth.matrix)
    return descend_bspline(pair.fixed.read(), pair.moving.read(), frame, settings, **others)


@pytest.fixture(scope="module")
def found(bent: PhantomPair) -> Descent:
    """What `SETTINGS` find between the two."""
    return align(bent, SETTINGS)


@pytest.fixture(scope="module")
def few(bent: PhantomPair) -> Descent:
    """What `FEW` find."""
    return align(bent, FEW)


def left(pair: PhantomPair, displacement: np.ndarray) -> float:
    """Median distance from the truth in voxels, over the tissue off the border."""
    grid, matrix = pair.fixed.grid, np.array(pair.truth.matrix)
    positions = grid.positions()
    found = (positions + displacement) @ matrix[:-1, :-1].T + matrix[:-1, -1]
    miss = np.linalg.norm(found - pair.truth(positions), axis=-1) / min(grid.spacing)
    inner = (slice(4, -4),) * grid.ndim
    return float(np.median(miss[inner][pair.tissue[inner]]))


def test_finds_a_known_displacement(bent: PhantomPair, found: Descent) -> None:
    nothing = left(bent, np.zeros((*bent.fixed.shape, 3)))
    assert nothing > 1
    # The warp has waves shorter than the control points are apart.
    assert left(bent, found.displacement) < min(0.8, 0.6 * nothing)
    assert jacobian_determinant(found.displacement, bent.fixed.grid).min() > 0
    assert found.displacement.dtype == np.float32
    assert [level.shrink_factor for level in found.levels] == [4, 2]
    assert all(level.after > level.before for level in found.levels)


def test_finds_it_on_planes() -> None:
    pair = phantom((96, 88))
    found = align(pair, evolve(SETTINGS, sampling="none"))
    assert found.displacement.shape == (96, 88, 2)
    assert left(pair, found.displacement) < 0.6 * left(pair, np.zeros((96, 88, 2)))


def test_inverted_contrast_needs_mutual_information(bent: PhantomPair) -> None:
    voxels = bent.moving.read()
    inverted = voxels.max() - voxels.astype(np.float32)
    frame = Frame(bent.fixed.grid, bent.moving.grid, bent.truth.matrix)
    mutual = evolve(SETTINGS, metric="mutual-information", local_normalisation=None)
    found = descend_bspline(bent.fixed.read(), inverted, frame, mutual)
    nothing = left(bent, np.zeros((*bent.fixed.shape, 3)))
    # Histograms of a fifth of the voxels of a small image are noisy; squares lead astray.
    assert left(bent, found.displacement) < 0.8 * nothing
    squares = evolve(SETTINGS, control_spacing=20.0, iterations=(4, 2))
    wrong = descend_bspline(bent.fixed.read(), inverted, frame, squares)
    assert left(bent, wrong.displacement) > 0.9 * nothing


def test_goes_on_from_where_it_starts(bent: PhantomPair, found: Descent) -> None:
    start = found.displacement
    none = evolve(FEW, iterations=(1,), optimizer="gradient-descent", step=1e-6)
    field = DisplacementField(shrink_field(start, (2, 2, 2)), bent.fixed.grid.shrink((2, 2, 2)))
    for initial in (start, field):
        kept = align(bent, none, initial=initial).displacement
        # Half the resolution loses what is shorter than its voxels.
        assert np.abs(kept - start).max() < 0.3
        assert np.median(np.abs(kept - start)) < 0.02


def test_what_lowers_the_correlation_is_left_out(bent: PhantomPair) -> None:
    wild = evolve(FEW, optimizer="gradient-descent", step=60.0)
    found = align(bent, wild)
    assert not found.displacement.any()
    assert found.levels[0].stopped == "converged"
    assert found.levels[0].after == found.levels[0].before


@pytest.mark.parametrize("ndim", [2, 3])
def test_finer_control_points_hold_the_same_spline(ndim: int) -> None:
    grid = Grid((60, 50, 40)[:ndim], (1.0, 1.0, 1.5)[:ndim])
    image = to_itk_image(np.zeros(grid.shape, np.float32), grid)
    coarse = _on_lattice(None, image, grid, 30.0)
    numbers = np.random.default_rng(0).normal(0, 2, coarse.GetNumberOfParameters())
    coarse.SetParameters(numbers.tolist())
    fine = _on_lattice(sitk.Transform(coarse), image, grid, 15.0)
    assert fine.GetNumberOfParameters() > coarse.GetNumberOfParameters()
    one, other = (sample_transform(sitk.Transform(t), grid) for t in (coarse, fine))
    inner = (slice(8, -8),) * ndim
    # Exact where knots are halved; the mesh is rounded to whole cells, so nearly.
    assert np.abs(one - other)[inner].max() < 0.15 * np.abs(one).max()


def test_bits_do_not_depend_on_threads(bent: PhantomPair) -> None:
    bits = set()
    for threads in (1, 2, 3):
        with using_threads(threads):
            bits.add(align(bent, FEW).displacement.tobytes())
    assert len(bits) == 1


def test_where_there_is_nothing_to_compare(bent: PhantomPair) -> None:
    far = np.eye(4)
    far[:3, 3] = 1e4
    frame = Frame(bent.fixed.grid, bent.moving.grid, far)
    (level,) = descend_bspline(bent.fixed.read(), bent.moving.read(), frame, FEW).levels
    assert level.stopped == "no overlap"
    frame = Frame(bent.fixed.grid, bent.fixed.grid, np.eye(4))
    flat = np.full(bent.fixed.shape, 7.0)
    (level,) = descend_bspline(bent.fixed.read(), flat, frame, FEW).levels
    assert level.stopped == "no texture"


def test_voxels_that_are_nan_do_not_count(bent: PhantomPair) -> None:
    fixed = bent.fixed.read().astype(np.float32)
    frame = Frame(bent.fixed.grid, bent.moving.grid, bent.truth.matrix)
    fixed[:20] = np.nan
    found = descend_bspline(fixed, bent.moving.read(), frame, SETTINGS)
    assert np.isfinite(found.displacement).all()
    assert left(bent, found.displacement) < 0.8 * left(bent, np.zeros_like(found.displacement))


@pytest.mark.parametrize(
    "change",
    [
        {"control_spacing": 14.0},
        {"metric": "correlation"},
        {"metric": "mutual-information"},
        {"optimizer": "gradient-descent"},
        {"sampling": "random"},
        {"sampling": "none"},
        {"sampling_fraction": 0.5},
        {"seed": 1},
        {"shrink_factors": (3,)},
        {"smooth_sigmas": (2.0,)},
        {"iterations": (1,)},
        {"local_normalisation": 2},
        {"local_normalisation": None},
    ],
)
def test_each_parameter_acts(bent: PhantomPair, few: Descent, change: dict[str, Any]) -> None:
    other = align(bent, evolve(FEW, **change)).displacement
    assert other.any()
    assert not np.array_equal(few.displacement, other)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"optimizer": "gradient-descent"}, {"step": 0.1}),
        ({"metric": "mutual-information"}, {"bins": 20}),
        ({"metric": "neighbourhood-correlation"}, {"radius": 1}),
    ],
)
def test_each_parameter_of_a_choice_acts(
    bent: PhantomPair, base: dict[str, Any], change: dict[str, Any]
) -> None:
    one = align(bent, evolve(FEW, **base)).displacement
    other = align(bent, evolve(FEW, **{**base, **change})).displacement
    assert other.any()
    assert not np.array_equal(one, other)


def test_radius_and_least_jacobian_act(bent: PhantomPair, few: Descent) -> None:
    wide = align(bent, evolve(FEW, cc_radius=2))
    assert few.levels[0].before != wide.levels[0].before
    strict = align(bent, evolve(SETTINGS, minimum_jacobian=0.9))
    assert strict.folds > 0
    assert jacobian_determinant(strict.displacement, bent.fixed.grid).min() > 0.6


def test_scaled_images_are_alike(bent: PhantomPair) -> None:
    length = 4.0
    grids = [
        Grid(im.shape, tuple(length * h for h in im.spacing)) for im in (bent.fixed, bent.moving)
    ]
    matrix = np.array(bent.truth.matrix)
    matrix[:3, 3] *= length
    few = evolve(FEW, optimizer="gradient-descent")
    one = align(bent, few).displacement
    other = descend_bspline(
        bent.fixed.read(), bent.moving.read(), Frame(*grids, matrix), few.scaled(length)
    )
    # The samples are the same; float32 rounding grows over the iterations.
    np.testing.assert_allclose(other.displacement / length, one, atol=0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("control_spacing", 0.0),
        ("control_spacing", (8.0,)),
        ("control_spacing", "fine"),
        ("metric", "ssd"),
        ("optimizer", "powell"),
        ("optimizer", "adam"),
        ("sampling", "grid"),
        ("sampling_fraction", 0),
        ("seed", -1),
        ("shrink_factors", (0, 1)),
        ("shrink_factors", 4),
        ("smooth_sigmas", (1.0,)),
        ("iterations", (0, 1)),
        ("step", -1.0),
        ("bins", 2),
        ("radius", 0.5),
        ("local_normalisation", 0),
        ("cc_radius", 1.5),
        ("minimum_jacobian", 1.0),
    ],
)
def test_every_invalid_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        BsplineSettings(**{name: value})


def test_images_that_do_not_fit_are_refused(bent: PhantomPair) -> None:
    fixed, moving = bent.fixed.read(), bent.moving.read()
    frame = Frame(bent.fixed.grid, bent.moving.grid, np.eye(4))
    with pytest.raises(InputError, match="fixed image"):
        descend_bspline(fixed[1:], moving, frame, FEW)
    with pytest.raises(InputError, match="moving image holds"):
        descend_bspline(fixed, np.full(moving.shape, np.nan), frame, FEW)

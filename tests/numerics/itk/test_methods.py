"""SimpleITK's methods against known truth: affines by intensities, demons."""

from dataclasses import replace

import numpy as np
import pytest
from attrs import evolve

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.deformation.descent import Frame
from itkstream.numerics.itk.demons import descend_demons
from itkstream.numerics.itk.intensity import fit_intensity_affine
from itkstream.numerics.itk.settings import DemonsSettings, IntensitySettings
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import Motion, PhantomSettings, make_pair

STILL = Motion(0, 0, 0, 0, 0)
MOTIONS = {
    "translation": replace(STILL, shift=0.08),
    "rigid": replace(STILL, shift=0.06, rotation_deg=4),
    "affine": Motion(rotation_deg=3, stretch=0.03, shear=0.02, shift=0.05, warp_um=0),
}
QUICK = IntensitySettings(iterations=(60, 40))


def phantom(motion, shape=(56, 48, 40), spacing=(1.0, 1.0, 1.2), **others):
    settings = PhantomSettings(shape, spacing, 3, radii_um=(2.5, 5.0), motion=motion, **others)
    return make_pair(settings)


@pytest.fixture(scope="module")
def pairs():
    """One pair per model, of like intensities: what a linear metric assumes."""
    return {name: phantom(m, restaining=0.2) for name, m in MOTIONS.items()}


@pytest.fixture(scope="module")
def bent():
    """A pair that differs by a smooth warp once its true affine is known."""
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=4)
    return phantom(motion, (64, 56, 48))


def frame_of(pair, affine=None):
    n = pair.fixed.ndim
    return Frame(pair.fixed.grid, pair.moving.grid, np.eye(n + 1) if affine is None else affine)


def refine(pair, settings, affine=None, **masks):
    return fit_intensity_affine(
        pair.fixed.read(), pair.moving.read(), frame_of(pair, affine), settings, **masks
    )


def misses(pair, matrix):
    """Voxels between a matrix and the truth, over the tissue."""
    matrix = np.asarray(matrix)
    return pair.error(lambda p: p @ matrix[:-1, :-1].T + matrix[:-1, -1]).vox


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("optimizer", ["gradient-descent", "lbfgsb", "powell"])
@pytest.mark.parametrize("model", ["translation", "rigid", "affine"])
def test_a_known_transform_is_recovered(pairs, model, optimizer):
    pair = pairs[model]
    assert rms(misses(pair, np.eye(4))) > 2.5
    iterations = (14, 5) if optimizer == "powell" else QUICK.iterations
    found = refine(pair, evolve(QUICK, model=model, optimizer=optimizer, iterations=iterations))
    assert found
    assert found.after < found.before
    assert rms(misses(pair, found.matrix)) < 0.5


def test_a_similarity_keeps_angles(pairs):
    found = refine(pairs["rigid"], evolve(QUICK, model="similarity"))
    turn = found.matrix[:3, :3]
    np.testing.assert_allclose(turn.T @ turn, np.eye(3) * (turn[:, 0] @ turn[:, 0]), atol=1e-9)
    assert rms(misses(pairs["rigid"], found.matrix)) < 0.5


def test_the_lattice_of_shifts_finds_the_nearest(pairs):
    lattice = evolve(QUICK, model="translation", optimizer="exhaustive", search_steps=2)
    found = refine(pairs["translation"], lattice)
    # The last lattice has steps of two voxels: its nearest shift is up to one off on each axis.
    assert rms(misses(pairs["translation"], found.matrix)) < np.sqrt(3)


@pytest.mark.parametrize("metric", ["mutual-information", "mean-squares"])
def test_other_metrics_recover_it_too(pairs, metric):
    found = refine(pairs["affine"], evolve(QUICK, metric=metric))
    assert rms(misses(pairs["affine"], found.matrix)) < 0.5


def test_neighbourhood_correlation_refines(pairs):
    slow = evolve(
        QUICK, metric="neighbourhood-correlation", radius=2, iterations=(8,),
        shrink_factors=(4,), smooth_sigmas=(1.0,), optimizer="lbfgsb",
    )  # fmt: skip
    found = refine(pairs["affine"], slow)
    # Voxels of four times the size, a few iterations.
    assert rms(misses(pairs["affine"], found.matrix)) < 1.5


def test_inverted_contrast_needs_mutual_information(pairs):
    pair = pairs["affine"]
    inverted = pair.moving.read().max() - pair.moving.read().astype(np.float32)
    settings = evolve(QUICK, metric="mutual-information")
    found = fit_intensity_affine(pair.fixed.read(), inverted, frame_of(pair), settings)
    assert np.median(misses(pair, found.matrix)) < 1
    squares = evolve(QUICK, metric="mean-squares")
    wrong = fit_intensity_affine(pair.fixed.read(), inverted, frame_of(pair), squares)
    assert np.median(misses(pair, wrong.matrix)) > 1


def test_local_normalisation_withstands_light_from_one_side(pairs):
    pair = pairs["affine"]
    light = np.linspace(0.2, 4, pair.moving.shape[0])[:, None, None]
    lit = (pair.moving.read() * light).astype(np.float32)
    misses_of = []
    for radius in (None, 4):
        settings = evolve(QUICK, metric="mean-squares", local_normalisation=radius)
        found = fit_intensity_affine(pair.fixed.read(), lit, frame_of(pair), settings)
        misses_of.append(rms(misses(pair, found.matrix)))
    assert misses_of[1] < 0.5 < misses_of[0]


def test_what_the_initial_affine_holds_is_kept(pairs):
    pair = pairs["affine"]
    start = np.array(pair.truth.matrix)
    start[:3, 3] += (2.0, -1.5, 1.0)
    found = refine(pair, evolve(QUICK, model="translation"), start)
    np.testing.assert_allclose(found.matrix[:3, :3], start[:3, :3], atol=1e-12)
    assert rms(misses(pair, found.matrix)) < 0.5


def test_changes_come_before_the_initial_affine(pairs):
    """A mirrored moving image: a shift behind the affine would go the other way."""
    pair, mirror = pairs["affine"], np.diag([-1.0, 1.0, 1.0, 1.0])
    grid = pair.moving.grid
    mirror[0, 3] = (grid.shape[0] - 1) * grid.spacing[0]
    start = np.array(pair.truth.matrix)
    start[:3, 3] += (2.0, -1.5, 1.0)
    found = fit_intensity_affine(
        pair.fixed.read(), pair.moving.read()[::-1], frame_of(pair, mirror @ start), QUICK
    )
    assert rms(misses(pair, mirror @ found.matrix)) < 0.5


def test_planes_are_registered_too():
    pair = phantom(replace(MOTIONS["affine"], shift=0.04), (96, 88), (1.0, 1.1), restaining=0.2)
    start = rms(misses(pair, np.eye(3)))
    found = refine(pair, QUICK)
    assert found.matrix.shape == (3, 3)
    assert rms(misses(pair, found.matrix)) < min(0.5, 0.3 * start)


def test_axis_order_and_unit_do_not_matter(pairs):
    """The same images stored z first, in voxels a thousand times as large."""
    pair, length = pairs["rigid"], 1000.0
    turned = [image.reorder(("z", "y", "x")) for image in (pair.fixed, pair.moving)]
    grids = [
        replace(image.grid, spacing=tuple(length * h for h in image.spacing)) for image in turned
    ]
    settings = evolve(QUICK, model="rigid")
    one = refine(pair, settings)
    other = fit_intensity_affine(
        turned[0].read(), turned[1].read(), Frame(*grids, np.eye(4)), settings.scaled(length)
    )
    matrix = other.matrix[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    matrix[:3, 3] /= length
    # The samples are the same; rounding differs, and grows over a hundred iterations.
    assert rms(misses(pair, matrix) - misses(pair, one.matrix)) < 0.02


def test_the_initial_affine_is_kept_where_nothing_is_better(pairs):
    pair = pairs["affine"]
    start = np.array(pair.truth.matrix)
    coarse = evolve(
        QUICK, model="translation", optimizer="exhaustive", search_steps=1, step=3.0,
        shrink_factors=(1,), smooth_sigmas=(0.0,), iterations=(1,),
    )  # fmt: skip
    found = refine(pair, coarse, start)
    assert not found
    assert "did not improve" in found.reason
    np.testing.assert_array_equal(found.matrix, start)


def test_images_that_do_not_overlap_keep_the_initial_affine(pairs):
    far = np.eye(4)
    far[:3, 3] = 1e4
    found = refine(pairs["affine"], QUICK, far)
    assert not found
    assert found.reason
    np.testing.assert_array_equal(found.matrix, far)


@pytest.mark.parametrize("metric", ["correlation", "mean-squares", "mutual-information"])
@pytest.mark.parametrize("optimizer", ["gradient-descent", "lbfgsb"])
@pytest.mark.parametrize("sampling", ["regular", "none"])
def test_bits_do_not_depend_on_threads(pairs, metric, optimizer, sampling):
    how = evolve(QUICK, iterations=(5, 5), metric=metric, optimizer=optimizer, sampling=sampling)
    bits = set()
    # More threads than units of work, too; twice, as threads end in another order each time.
    for threads in (1, 2, 4, 7, 7):
        with using_threads(threads):
            bits.add(refine(pairs["rigid"], how).matrix.tobytes())
    assert len(bits) == 1


def test_masks_leave_out_what_they_do_not_count(pairs):
    pair = pairs["rigid"]
    rng = np.random.default_rng(0)
    fixed, moving = pair.fixed.read().copy(), pair.moving.read().copy()
    spoiled = [np.zeros(image.shape, bool) for image in (fixed, moving)]
    spoiled[0][:16], spoiled[1][-12:] = True, True
    for image, where in zip((fixed, moving), spoiled, strict=True):
        image[where] = rng.integers(0, 60000, int(where.sum()))
    settings = evolve(QUICK, model="rigid")
    free = fit_intensity_affine(fixed, moving, frame_of(pair), settings)
    holes = [np.where(w, np.nan, i) for w, i in zip(spoiled, (fixed, moving), strict=True)]
    masked = fit_intensity_affine(*holes, frame_of(pair), settings)
    assert rms(misses(pair, masked.matrix)) < 0.5 < rms(misses(pair, free.matrix))
    holes = [np.where(w, np.inf, i) for w, i in zip(spoiled, (fixed, moving), strict=True)]
    infinite = fit_intensity_affine(*holes, frame_of(pair), settings)
    np.testing.assert_array_equal(infinite.matrix, masked.matrix)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "rigid"},
        {"metric": "mean-squares"},
        {"optimizer": "lbfgsb"},
        {"sampling": "random"},
        {"sampling": "none"},
        {"sampling_fraction": 0.5},
        {"seed": 1},
        {"shrink_factors": (3, 2)},
        {"smooth_sigmas": (1.0, 1.0)},
        {"iterations": (3, 2)},
        {"step": 0.3},
        {"local_normalisation": 3},
        {"metric": "mutual-information", "bins": 20},
        {"metric": "neighbourhood-correlation", "radius": 2},
        {"optimizer": "exhaustive", "search_steps": 1},
    ],
    ids=str,
)
def test_each_parameter_acts(pairs, change):
    base = evolve(QUICK, iterations=(4, 2))
    if len(change) == 2:  # one that belongs to the choice before it
        (name, choice), _ = change.items()
        # All voxels of the coarse level only: neighbourhoods take long.
        levels = {"shrink_factors": (4,), "smooth_sigmas": (1.0,), "iterations": (2,)}
        model = "translation" if choice == "exhaustive" else "affine"
        # The shift is four voxels long: more than one step of the lattice, less than four.
        base = evolve(base, model=model, step=0.25, **{name: choice}, **levels)
    pair = pairs["translation" if base.model == "translation" else "affine"]
    one, other = (refine(pair, s) for s in (base, evolve(base, **change)))
    assert not np.array_equal(one.matrix, other.matrix)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "bspline"),
        ("metric", "ssd"),
        ("optimizer", "adam"),
        ("sampling", "grid"),
        ("sampling_fraction", 0),
        ("sampling_fraction", 1.5),
        ("seed", -1),
        ("shrink_factors", (0, 1)),
        ("shrink_factors", 4),
        ("smooth_sigmas", (1.0,)),
        ("smooth_sigmas", (-1.0, 0.0)),
        ("iterations", (0, 1)),
        ("iterations", 20),
        ("step", 0.0),
        ("step", np.nan),
        ("search_steps", 0),
        ("bins", 2),
        ("radius", 0.5),
        ("local_normalisation", 0),
    ],
)
def test_every_invalid_intensity_setting_is_named(name, value):
    with pytest.raises(InputError, match=name):
        IntensitySettings(**{name: value})


def test_a_lattice_over_more_than_shifts_is_refused():
    with pytest.raises(InputError, match=r"knows model 'translation' only"):
        IntensitySettings(optimizer="exhaustive")


def test_images_that_do_not_fit_are_refused(pairs):
    pair = pairs["rigid"]
    fixed, moving, frame = pair.fixed.read(), pair.moving.read(), frame_of(pair)
    with pytest.raises(InputError, match="fixed image"):
        fit_intensity_affine(fixed[1:], moving, frame, QUICK)
    with pytest.raises(InputError, match="no voxel of the fixed image counts"):
        fit_intensity_affine(np.full(fixed.shape, np.nan), moving, frame, QUICK)


FEW = DemonsSettings(iterations=(40, 30, 10))


def demons(pair, settings, **others):
    frame = frame_of(pair, pair.truth.matrix)
    return descend_demons(pair.fixed.read(), pair.moving.read(), frame, settings, **others)


def left(pair, displacement):
    """Voxels between what was found and the truth, over the tissue off the border."""
    grid, matrix = pair.fixed.grid, np.array(pair.truth.matrix)
    positions = grid.positions()
    found = (positions + displacement) @ matrix[:-1, :-1].T + matrix[:-1, -1]
    miss = np.linalg.norm(found - pair.truth(positions), axis=-1) / min(grid.spacing)
    inner = (slice(4, -4),) * grid.ndim
    return miss[inner][pair.tissue[inner]]


@pytest.mark.parametrize("method", ["demons", "symmetric-demons", "diffeomorphic-demons"])
def test_demons_find_a_known_displacement(bent, method):
    nothing = left(bent, np.zeros((*bent.fixed.shape, 3)))
    found = demons(bent, evolve(FEW, method=method))
    assert np.median(nothing) > 1
    assert np.median(left(bent, found.displacement)) < 0.5
    assert jacobian_determinant(found.displacement, bent.fixed.grid).min() > 0
    assert found.displacement.dtype == np.float32
    assert all(level.after >= level.before for level in found.levels)


def test_demons_on_planes():
    pair = phantom(replace(STILL, warp_um=4), (96, 88), (1.0, 1.1))
    found = demons(pair, DemonsSettings())
    assert found.displacement.shape == (96, 88, 2)
    nothing = left(pair, np.zeros((96, 88, 2)))
    assert np.median(left(pair, found.displacement)) < 0.5 * np.median(nothing)
    assert jacobian_determinant(found.displacement, pair.fixed.grid).min() > 0


def test_bits_of_demons_do_not_depend_on_threads(bent):
    bits = set()
    for threads in (1, 2, 3):
        with using_threads(threads):
            found = demons(bent, evolve(FEW, iterations=(4, 2, 2)))
            bits.add(found.displacement.tobytes())
    assert len(bits) == 1


def test_demons_go_on_from_where_they_start(bent):
    none = DemonsSettings(iterations=(0,), shrink_factors=(1,), smooth_sigmas=(0.0,))
    start = demons(bent, evolve(FEW, iterations=(10, 4, 0))).displacement
    kept = demons(bent, none, initial=start).displacement
    # Halving the lattice to nodes loses what is shorter than they are apart.
    assert np.abs(kept - start).max() < 0.5
    assert np.median(np.abs(kept - start)) < 0.02


def test_masked_voxels_do_not_pull(bent):
    fixed = bent.fixed.read().astype(np.float32)
    fixed[:20] = np.nan
    frame = frame_of(bent, bent.truth.matrix)
    moving, few = bent.moving.read(), evolve(FEW, iterations=(4, 2, 2))
    one = descend_demons(fixed, moving, frame, few)
    fixed[:20] = np.inf
    other = descend_demons(fixed, moving, frame, few)
    np.testing.assert_array_equal(one.displacement, other.displacement)


@pytest.mark.parametrize("radius", [4, None])
def test_where_an_image_ends_demons_do_not_pull(bent, radius):
    image, grid = bent.fixed.read(), bent.fixed.grid
    part = (slice(0, 40), slice(8, 56), slice(0, 48))
    frame = Frame(grid, grid.crop(part), np.eye(4))
    found = descend_demons(image, image[part], frame, evolve(FEW, local_normalisation=radius))
    # The images agree where both are, up to coarse voxels that stick out.
    assert np.abs(found.displacement).max() < 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"method": "demons"},
        {"method": "diffeomorphic-demons"},
        {"gradient_smoothing": (3.0, 0.0, 1.0, 2.0)},
        {"field_smoothing": (1.0, 0.0, 1.0, 2.0)},
        {"iterations": (2, 2)},
        {"shrink_factors": (3, 2)},
        {"smooth_sigmas": (2.0, 0.0)},
        {"burst": 1},
        {"local_normalisation": 8},
        {"local_normalisation": None},
        {"step": 0.02},
        {"node_stride": 1},
    ],
)
def test_each_demons_parameter_acts(bent, change):
    base = DemonsSettings(iterations=(6, 2), shrink_factors=(4, 2), smooth_sigmas=(0.0, 0.0))
    one, other = (demons(bent, s).displacement for s in (base, evolve(base, **change)))
    assert not np.array_equal(one, other)


def test_radius_and_tolerance_decide_when_demons_end(bent):
    base = DemonsSettings(iterations=(60,), shrink_factors=(4,), smooth_sigmas=(0.0,))
    (one,) = demons(bent, base).levels
    (wide,) = demons(bent, evolve(base, cc_radius=2)).levels
    (early,) = demons(bent, evolve(base, tolerance=0.05)).levels
    assert wide.before != one.before
    assert early.iterations < one.iterations
    assert early.stopped == "converged"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "optical-flow"),
        ("gradient_smoothing", (1.0, 2.0)),
        ("field_smoothing", (1.0, 0.0, 0.0, 2.0)),
        ("iterations", (1, 2)),
        ("shrink_factors", ()),
        ("smooth_sigmas", (0.0,)),
        ("burst", 0),
        ("burst", 1.5),
        ("local_normalisation", 0),
        ("cc_radius", 0),
        ("step", -1.0),
        ("node_stride", 0),
        ("tolerance", -1.0),
    ],
)
def test_every_invalid_demons_setting_is_named(name, value):
    with pytest.raises(InputError, match=name):
        DemonsSettings(**{name: value})


def test_demons_of_scaled_images_are_alike(bent):
    few = evolve(FEW, iterations=(6, 4, 2))
    one = demons(bent, few).displacement
    length = 4.0
    grids = [
        Grid(image.shape, tuple(length * h for h in image.spacing))
        for image in (bent.fixed, bent.moving)
    ]
    matrix = np.array(bent.truth.matrix)
    matrix[:3, 3] *= length
    other = descend_demons(
        bent.fixed.read(), bent.moving.read(), Frame(*grids, matrix), few.scaled(length)
    )
    # float32 rounding, amplified over six bursts
    np.testing.assert_allclose(other.displacement / length, one, atol=5e-3)

"""Registration against analytic truth: texture is a function, so nothing is interpolated twice."""

from dataclasses import replace

import attrs
import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from waves import bend, texture

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid
from itkstream.numerics.deformation.correlation import mean_local_correlation
from itkstream.numerics.deformation.descent import (
    PIPELINE_DEFAULTS,
    DescentSettings,
    Frame,
    descend,
    node_factors,
)
from itkstream.numerics.sampling.fields import jacobian_determinant, node_vectors, resize_field
from itkstream.numerics.threads import using_threads

SHAPE = (48, 40, 44)
INNER = (slice(6, -6),) * 3
FAST = evolve(
    PIPELINE_DEFAULTS,
    shrink_factors=(2, 1),
    iterations=(8, 4),
    cc_radius=4,
    node_stride=2,
    smooth_sigmas=(0.0, 0.0),
    gradient_smoothing=(24.0, 0.0, 1.0, 2.0),
    field_smoothing=(1.0, 0.0, 1.0, 2.0),
)
TUTORIAL = DescentSettings(
    cc_radius=6, iterations=(30, 10), smooth_sigmas=(1.0, 0.0), field_smoothing=(0.5, 0, 1, 2)
)


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def errors(descent, grid, truth):
    """Distances to the truth in smallest voxel spacings, off the border."""
    miss = np.linalg.norm(descent.displacement - truth, axis=-1) / min(grid.spacing)
    return miss[(slice(6, -6),) * grid.ndim]


def same_grid_case(spacing=(1.0, 1.0, 1.0), shape=SHAPE):
    """Images on one grid; lengths grow with the spacing of axis 0."""
    grid, unit = Grid(shape, spacing), spacing[0]
    points = grid.positions() / unit
    u = bend(points)
    frame = Frame(grid, grid, np.eye(grid.ndim + 1))
    return texture(points + u), texture(points), frame, u * unit


@pytest.mark.parametrize(("settings", "bound"), [(FAST, 0.25), (TUTORIAL, 0.8)])
def test_a_known_displacement_is_found(settings, bound):
    fixed, moving, frame, u = same_grid_case()
    found = descend(fixed, moving, frame, settings)
    assert found.displacement.dtype == np.float32
    assert np.median(np.linalg.norm(u, axis=-1)) > 2
    # What field smoothing keeps from the amplitude of 2.5; both settings are short.
    assert np.median(errors(found, frame.fixed_grid, u)) < bound
    for level in found.levels:
        assert level.after > level.before
    assert jacobian_determinant(found.displacement, frame.fixed_grid).min() > 0


def test_through_an_affine_between_rotated_grids_of_different_voxels():
    fixed_grid = Grid(SHAPE, (1.0, 1.2, 0.9), (300.0, -50.0, 20.0), rotation(25))
    affine = np.eye(4)
    affine[:3, :3] = rotation(-15) @ np.diag((1.1, 0.95, 1.0))
    affine[:3, 3] = (-400.0, 70.0, 5.0)
    centre = affine[:3, :3] @ fixed_grid.to_physical([24, 20, 22]) + affine[:3, 3]
    moving_grid = Grid((70, 60, 32), (0.9, 1.0, 1.6), (0, 0, 0), rotation(-50))
    moving_grid = replace(moving_grid, origin=tuple(centre - moving_grid.to_physical([35, 30, 16])))
    points = fixed_grid.positions()
    u = bend(points)
    fixed = texture((points + u) @ affine[:3, :3].T + affine[:3, 3])
    moving = texture(moving_grid.positions())
    found = descend(fixed, moving, Frame(fixed_grid, moving_grid, affine), FAST)
    assert np.median(errors(found, fixed_grid, u)) < 0.3  # as above, and linear interpolation


@pytest.mark.parametrize(
    ("spacing", "settings", "wanted"),
    [
        ((1.0, 1.0, 1.0), FAST, (2, 2, 2)),
        ((1.0, 1.0, 1.5), evolve(FAST, node_stride=4), (4, 4, 3)),
        ((1.0, 1.0, 1.5), evolve(FAST, shrink_factors=(4, 2)), (4, 4, 2)),
        ((1.0, 1.0, 3.0), evolve(FAST, node_stride=4, isotropic=False), (4, 4, 1)),
    ],
)
def test_a_displacement_is_known_by_its_nodes(spacing, settings, wanted):
    fixed, moving, frame, _ = same_grid_case(spacing)
    factors = node_factors(frame.fixed_grid, settings)
    assert factors == wanted
    found = descend(fixed, moving, frame, settings)
    assert found.folds == 0
    nodes = node_vectors(found.displacement, factors)
    again = resize_field(nodes, frame.fixed_grid.shrink(factors), frame.fixed_grid)
    # Vectors of a few micrometers in float32.
    np.testing.assert_allclose(again, found.displacement, atol=2e-5)


def test_planes_are_registered_too():
    fixed, moving, frame, u = same_grid_case((1.0, 1.3), (80, 70))
    found = descend(fixed, moving, frame, evolve(FAST, cc_radius=6))
    assert found.displacement.shape == (80, 70, 2)
    assert np.median(errors(found, frame.fixed_grid, u)) < 0.35  # fewer voxels per window


def test_planes_of_large_pixels_are_registered_as_those_of_small_ones():
    one = descend(*same_grid_case((1.0, 1.3), (80, 70))[:3], FAST)
    other = descend(*same_grid_case((4.0, 5.2), (80, 70))[:3], FAST.scaled(4.0))
    np.testing.assert_allclose(other.displacement / 4, one.displacement, atol=1e-3)  # float32


def test_anisotropic_voxels():
    fixed, moving, frame, u = same_grid_case((1.0, 1.0, 3.0), (48, 44, 20))
    found = descend(fixed, moving, frame, FAST)
    # Waves of 6 units are two voxels long on axis 2.
    assert np.median(errors(found, frame.fixed_grid, u)) < 0.6


@pytest.mark.parametrize("base", [FAST, TUTORIAL])
@pytest.mark.parametrize("length", [0.23, 4.0])
def test_scaled_images_are_registered_alike_voxel_by_voxel(base, length):
    settings = evolve(base, iterations=(3, 2))
    one = descend(*same_grid_case((1.0, 1.25, 1.5))[:3], settings)
    spacing = tuple(length * s for s in (1.0, 1.25, 1.5))
    other = descend(*same_grid_case(spacing)[:3], settings.scaled(length))
    # float32 rounding, amplified over five iterations
    np.testing.assert_allclose(other.displacement / length, one.displacement, atol=1e-3)


@pytest.mark.parametrize("settings", [FAST, evolve(TUTORIAL, iterations=(6, 3))])
def test_bits_do_not_depend_on_threads(settings):
    fixed, moving, frame, _ = same_grid_case()
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(descend(fixed, moving, frame, settings).displacement)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_border_of_the_moving_image_does_not_pull():
    grid = Grid(SHAPE, (1.0, 1.0, 1.0))
    half = grid.crop((slice(0, 26), slice(4, 40), slice(0, 44)))
    image = texture(grid.positions())
    found = descend(image, image[:26, 4:], Frame(grid, half, np.eye(4)), FAST)
    # The images agree where both are: only rounding moves them.
    assert np.abs(found.displacement).max() < 0.01


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_masked_artefacts_do_no_harm(which):
    fixed, moving, frame, u = same_grid_case()
    mask = np.ones(SHAPE, bool)
    mask[15:27, 12:24, 14:26] = False
    spoiled = {"fixed": fixed.copy(), "moving": moving.copy()}
    spoiled[which][~mask] = np.nan
    found = descend(spoiled["fixed"], spoiled["moving"], frame, FAST)
    miss = errors(found, frame.fixed_grid, u)
    assert np.median(miss) < 0.3  # a little above the bound without a hole
    assert miss.max() < 1.5  # inside the hole the field is that of its surroundings


def test_constant_regions_feel_no_force():
    fixed, moving, frame, _ = same_grid_case()
    fixed[:16], moving[:16] = 100.0, 100.0
    found = descend(fixed, moving, frame, FAST)
    assert np.isfinite(found.displacement).all()
    assert np.abs(found.displacement).max() < 5


def test_without_texture_or_overlap_the_start_is_returned():
    fixed, moving, frame, _ = same_grid_case()
    flat = descend(np.full(SHAPE, 7.0), moving, frame, FAST)
    assert not flat.displacement.any()
    assert {level.stopped for level in flat.levels} == {"no texture"}
    away = np.eye(4)
    away[0, 3] = 1000.0
    apart = descend(fixed, moving, replace(frame, affine=away), FAST)
    assert not apart.displacement.any()
    assert {level.stopped for level in apart.levels} == {"no overlap"}


def test_an_initial_displacement_larger_than_the_levels_reach_is_used():
    fixed, moving, frame, _ = same_grid_case()
    shift = np.eye(4)
    shift[:3, 3] = (-12.0, 9.0, 0.0)
    start = np.broadcast_to(np.float32([12.0, -9.0, 0.0]), (*SHAPE, 3))
    shifted = replace(frame, affine=shift)
    found = descend(fixed, moving, shifted, FAST, initial=start)
    wanted = descend(fixed, moving, frame, FAST).displacement + start
    # The same problem, with the shift in the displacement instead of nowhere.
    np.testing.assert_allclose(found.displacement, wanted, atol=0.02)


def test_an_initial_displacement_may_stand_on_a_grid_of_its_own():
    fixed, moving, frame, u = same_grid_case()
    none = evolve(FAST, iterations=(0, 0))
    wide = Grid((9, 9, 9), (8.0, 8.0, 8.0), (-4.0, -8.0, -6.0), rotation(5))
    slope = np.array([[0.02, 0.01, 0.0], [0.0, -0.03, 0.01], [0.0, 0.0, 0.02]])
    start = DisplacementField((wide.positions() @ slope).astype(np.float32), wide)
    found = descend(fixed, moving, frame, none, initial=start)
    wanted = frame.fixed_grid.positions() @ slope
    # Away from where the rotated grid ends; linear in position, hence exact but for float32 and
    # the half node at the border, where fields are clamped.
    np.testing.assert_allclose(found.displacement[INNER], wanted[INNER], atol=1e-4)
    same = descend(fixed, moving, frame, none, initial=u)
    # Linear between the coarse level's nodes, 4 apart: (2 pi 1.08 / 60 * 4)^2 / 8 of 2.5 is 0.064.
    np.testing.assert_allclose(same.displacement[INNER], u[INNER], atol=0.08)


def test_the_result_never_folds_even_without_smoothing():
    rng = np.random.default_rng(3)
    shape = (32, 30, 28)
    fixed, moving = rng.normal(size=shape), rng.normal(size=shape)
    grid = Grid(shape, (1.0, 1.0, 2.0))
    wild = evolve(
        TUTORIAL,
        cc_radius=2,
        iterations=(20, 20),
        node_stride=1,
        gradient_smoothing=(0.3, 0.0, 1.0, 1.0),
        field_smoothing=(0.0, 0.0, 1.0, 0.0),
        step=2.0,
    )
    found = descend(fixed, moving, Frame(grid, grid, np.eye(4)), wild)
    assert found.folds > 0
    assert jacobian_determinant(found.displacement, grid).min() > wild.minimum_jacobian


def test_grad_div_smoothing_serves_as_well():
    fixed, moving, frame, u = same_grid_case()
    settings = evolve(TUTORIAL, gradient_smoothing=(3.0, 1.0, 1.0, 2.0))
    found = descend(fixed, moving, frame, settings)
    assert np.median(errors(found, frame.fixed_grid, u)) < 0.8  # as without


def test_an_initial_displacement_is_physical_on_rotated_grids_too():
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (9.0, 8.0, 7.0), rotation(30))
    image = texture(grid.positions())
    start = np.broadcast_to(np.float32([3.0, -2.0, 1.0]), (*SHAPE, 3))
    none = evolve(FAST, iterations=(0, 0))
    found = descend(image, image, Frame(grid, grid, np.eye(4)), none, initial=start)
    np.testing.assert_allclose(found.displacement, start, atol=1e-5)  # rotated there and back


def test_scaling_scales_lengths_and_areas():
    scaled = evolve(TUTORIAL, step=2.0).scaled(3.0)
    assert scaled.step == 6.0
    assert scaled.smooth_sigmas == (3.0, 0.0)
    assert scaled.gradient_smoothing[0] == (27.0, 0.0, 1.0, 2.0)
    assert scaled.cc_radius == TUTORIAL.cc_radius


@pytest.mark.parametrize(
    ("spacing", "window"),
    [
        ((1.0, 1.0, 1.0), (4, 4, 4)),
        # 11 x 11 x 5 voxels; the next wider window, 13 x 13 x 5, holds more than 9 x 9 x 9.
        ((1.0, 1.0, 3.0), (5, 5, 2)),
        ((1.0, 1.0, 30.0), (7, 7, 1)),
    ],
)
def test_windows_of_deep_voxels_are_wider(spacing, window):
    fixed, moving, frame, _ = same_grid_case(spacing, (40, 36, 20))
    none = evolve(FAST.select(slice(1, 2)), iterations=(0,))
    (level,) = descend(fixed, moving, frame, none).levels
    expected = mean_local_correlation(fixed, moving, window)
    np.testing.assert_allclose(level.before, expected, rtol=1e-5)  # float32 images


def test_settings_for_cubes_are_scaled_by_their_edge():
    assert PIPELINE_DEFAULTS.for_voxels((2.0, 2.0, 2.0)) == PIPELINE_DEFAULTS.scaled(2.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 128.0), (1.0, 64.0)])
def test_deep_voxels_are_smoothed_more_widely(spacing):
    deep = FAST.for_voxels(spacing)
    # 128^(1/7) and 64^(1/6) are 2: as wide again, an area four times as large.
    assert deep.gradient_smoothing[0] == pytest.approx((96.0, 0.0, 1.0, 2.0))
    assert deep.field_smoothing[0] == pytest.approx((4.0, 0.0, 1.0, 2.0))
    assert deep.cc_radius == FAST.cc_radius


@given(
    spacing=st.lists(st.floats(0.1, 10.0), min_size=2, max_size=3),
    length=st.floats(0.05, 20.0),
)
def test_a_unit_of_length_changes_nothing(spacing, length):
    one = FAST.for_voxels(spacing).scaled(length)
    other = FAST.for_voxels([h * length for h in spacing])
    np.testing.assert_allclose(one.field_smoothing, other.field_smoothing, rtol=1e-9)


def test_noise_of_deep_voxels_is_held():
    grid = Grid((60, 56, 20), (1.0, 1.0, 3.0))
    points = grid.positions()
    u = bend(points, 2.0, 120.0)
    rng = np.random.default_rng(5)
    fixed, moving = (
        texture(p) + 150 * rng.standard_normal(grid.shape) for p in (points + u, points)
    )
    found = [
        descend(fixed, moving, Frame(grid, grid, np.eye(4)), settings)
        for settings in (PIPELINE_DEFAULTS, PIPELINE_DEFAULTS.for_voxels(grid.spacing))
    ]
    plain, suited = (np.median(errors(f, grid, u)) for f in found)
    # Measured 0.67 against 0.78 voxel.
    assert suited < 0.95 * plain


def test_blocks_refine_what_the_whole_image_found():
    fixed, moving, frame, _ = same_grid_case()
    grid = frame.fixed_grid
    coarse = descend(fixed, moving, frame, FAST.select(slice(0, 1))).displacement
    whole = descend(fixed, moving, frame, FAST).displacement
    box = (slice(16, 48), slice(0, 40), slice(0, 44))
    part = Frame(grid.crop(box), grid, np.eye(4))
    found = descend(
        fixed[box],
        moving,
        part,
        FAST.select(slice(1, 2)),
        initial=DisplacementField(coarse, grid),
    )
    # Displacements of 2.5 voxels at the cut face, known from the whole image; eight voxels inside
    # the block the rest agrees to what nodes and windows cut at the face change.
    assert np.abs(found.displacement[8:] - whole[24:]).max() < 0.1


def test_selecting_no_level_is_an_error():
    with pytest.raises(InputError, match="shrink_factors"):
        FAST.select(slice(5, 9))


def test_every_level_reports_its_steps():
    fixed, moving, frame, _ = same_grid_case()
    found = descend(fixed, moving, frame, evolve(FAST, iterations=(2, 1)))
    assert [level.iterations for level in found.levels] == [2, 1]
    assert all(level.before < level.after for level in found.levels)
    assert [level.stopped for level in found.levels] == ["iterations", "iterations"]


@pytest.fixture(scope="module")
def deep():
    return same_grid_case((1.0, 1.0, 1.6), (32, 30, 20))[:3]


@pytest.fixture(scope="module")
def few(deep):
    return descend(*deep, evolve(FAST, iterations=(4, 2))).displacement


CHANGES = {
    "cc_radius": 3,
    "gradient_smoothing": (12.0, 0.0, 1.0, 2.0),
    "field_smoothing": (2.0, 0.0, 1.0, 2.0),
    "iterations": (4, 1),
    "shrink_factors": (3, 1),
    "smooth_sigmas": (1.0, 0.0),
    "step": 0.2,
    "update": "gradient",
    "node_stride": 4,
    "isotropic": False,
    "damping": 0.1,
    "tolerance": 0.2,
    "minimum_jacobian": 0.95,
    "similarity": "mind",
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_parameter_acts(deep, few, name):
    settings = evolve(FAST, **{"iterations": (4, 2), name: CHANGES[name]})
    assert not np.array_equal(descend(*deep, settings).displacement, few)


def test_no_parameter_is_left_out():
    assert {field.name for field in attrs.fields(DescentSettings)} == set(CHANGES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cc_radius", 0),
        ("cc_radius", (4, 4, 4)),
        ("gradient_smoothing", (1, 2, 3)),
        ("gradient_smoothing", (-1, 0, 1, 2)),
        ("field_smoothing", (1, 0, 0, 2)),
        ("field_smoothing", ((1, 0, 1, 2),) * 3),
        ("field_smoothing", (1, 0, "x", 2)),
        ("iterations", (10,)),
        ("iterations", (10, -1)),
        ("iterations", 10),
        ("shrink_factors", ()),
        ("shrink_factors", (2, 0.5)),
        ("smooth_sigmas", (1.0, float("nan"))),
        ("node_stride", 0),
        ("step", 0.0),
        ("step", float("inf")),
        ("update", "magic"),
        ("isotropic", "yes"),
        ("damping", -1.0),
        ("tolerance", float("nan")),
        ("minimum_jacobian", 1.0),
        ("similarity", "nmi"),
    ],
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(InputError, match=name):
        DescentSettings(**{name: value})


def test_newton_needs_damping():
    with pytest.raises(InputError, match="damping"):
        DescentSettings(update="newton", damping=0.0)


def test_bad_frames_are_named():
    cube, plane = Grid((9, 9, 9), (1, 1, 1)), Grid((9, 9), (1, 1))
    with pytest.raises(InputError, match="axes"):
        Frame(cube, plane, np.eye(4))
    for affine in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(InputError, match="affine"):
            Frame(cube, cube, affine)


def test_bad_images_are_named():
    fixed, moving, frame, u = same_grid_case()
    with pytest.raises(InputError, match="fixed image has shape"):
        descend(fixed[1:], moving, frame, FAST)
    with pytest.raises(InputError, match="moving image must hold real"):
        descend(fixed, moving.astype(complex), frame, FAST)
    with pytest.raises(InputError, match="nothing but NaN"):
        descend(np.full(SHAPE, np.nan), moving, frame, FAST)
    with pytest.raises(InputError, match="displacement"):
        descend(fixed, moving, frame, FAST, initial=u[1:])
    with pytest.raises(InputError, match="initial"):
        descend(fixed, moving, frame, FAST, initial=np.full_like(u, np.nan))

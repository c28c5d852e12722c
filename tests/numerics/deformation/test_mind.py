"""Self-similarity descriptors against plain sums, and registration of images of other contrast."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from waves import bend
from waves import texture as waves

from itkstream.geometry import Grid
from itkstream.numerics.deformation import mind
from itkstream.numerics.deformation.descent import PIPELINE_DEFAULTS, Frame, descend
from itkstream.numerics.deformation.mind import PatchPairs, SelfSimilarity, describe
from itkstream.numerics.threads import using_threads

SHAPE = (44, 40, 42)
MIND = evolve(
    PIPELINE_DEFAULTS,
    shrink_factors=(2, 1),
    iterations=(10, 6),
    cc_radius=4,
    node_stride=2,
    smooth_sigmas=(0.0, 0.0),
    gradient_smoothing=(24.0, 0.0, 1.0, 2.0),
    field_smoothing=(1.0, 0.0, 1.0, 2.0),
    similarity="mind",
)
CONTRASTS = {
    "same": lambda v: v,
    "inverted": lambda v: 300 - v,
    # Brightest where the other is neither bright nor dark, and an edge within each side.
    "folded": lambda v: 100 * np.cos((v - 100) / 30),
}


texture = partial(waves, shortest=8)


def case(contrast="folded", spacing=(1.0, 1.0, 1.0), shape=SHAPE):
    grid = Grid(shape, spacing)
    points = grid.positions()
    u = bend(points, 2.0)
    moving = CONTRASTS[contrast](texture(points))
    return texture(points + u), moving, Frame(grid, grid, np.eye(grid.ndim + 1)), u


def errors(found, truth):
    """Distances to the truth off the border, in voxels of edge 1."""
    inner = (slice(6, -6),) * (truth.ndim - 1)
    return np.linalg.norm(found.displacement - truth, axis=-1)[inner]


def cube(seed, shape=(9, 8, 7)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def described(image, steps=(1, 1, 1), radius=(1, 1, 1)):
    pairs = PatchPairs.along(image.shape, steps, radius)
    return describe(image, pairs, mind.mean_contrast(image))


@pytest.mark.parametrize(
    ("shape", "channels"), [((9, 8, 7), 12), ((1, 9, 8), 4), ((6, 1, 9), 4), ((1, 1, 9), 12)]
)
@pytest.mark.parametrize(("steps", "radius"), [((1, 1, 1), (1, 1, 1)), ((2, 1, 1), (0, 1, 2))])
def test_descriptors_are_those_of_plain_sums(shape, channels, steps, radius):
    image = cube(1, shape)
    pairs = PatchPairs.along(shape, steps, radius)
    assert len(pairs.offsets) == channels
    padded = np.pad(image.astype(float), [(r, r) for r in pairs.reach], mode="edge")

    def at(offset):
        starts = np.add(pairs.reach, offset)
        return padded[tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))]

    patch = list(product(*(range(-r, r + 1) for r in pairs.radius)))
    sums = np.stack(
        [sum((at(a + p) - at(b + p)) ** 2 for p in patch) for a, b in pairs.offsets], axis=-1
    )
    steps_in = [np.diff(image.astype(float), axis=axis) ** 2 for axis in range(3)]
    contrast = np.concatenate([s.ravel() for s in steps_in]).mean()
    apart = sums - sums.min(axis=-1, keepdims=True)
    spread = apart.mean(axis=-1, keepdims=True) + mind.FLOOR * contrast * len(patch)
    alike = np.exp(-apart / spread)
    wanted = mind.ALIKE * (alike - alike.mean(axis=-1, keepdims=True)) / 2
    found = describe(image, pairs, mind.mean_contrast(image))
    # Rounded to whole numbers twice, from a table of steps of 12 / 4096.
    assert np.abs(found - wanted).max() < 1.5


@given(scale=st.floats(0.01, 100.0), shift=st.floats(-100.0, 100.0), sign=st.sampled_from([-1, 1]))
def test_light_and_inversion_change_no_descriptor(scale, shift, sign):
    image = cube(2)
    other = (sign * scale * image.astype(float) + shift).astype(np.float32)
    # float32 keeps five digits of differences where the shift is largest: a byte or two.
    assert np.abs(described(image).astype(int) - described(other)).max() <= 1


def test_what_reaches_a_missing_voxel_does_not_count():
    image = cube(3, (13, 12, 11))
    image[6, 5, 5] = np.nan
    missing = described(image)[..., 0] == mind.NO_VALUE
    # A patch of radius 1 a step along one axis: never two steps along two axes at once.
    near = np.abs(np.indices(image.shape) - np.array([6, 5, 5])[:, None, None, None])
    reached = (near.max(axis=0) <= 2) & ((near == 2).sum(axis=0) <= 1)
    np.testing.assert_array_equal(missing, reached)


def test_the_same_image_correlates_fully_and_another_by_chance():
    shape = (30, 30, 30)
    image = cube(4, shape)
    assert compared(image, image)[0] == pytest.approx(1.0, abs=1e-12)
    # 9^3 voxels of 12 channels that overlap: a hundredth of the whole.
    assert compared(image, cube(5, shape))[0] < 0.01
    assert compared(image, np.zeros(shape, np.float32))[0] == 0.0


def compared(fixed, warped, window=(4, 4, 4)):
    pairs = PatchPairs.along(fixed.shape, (1, 1, 1), (1, 1, 1))
    pull = SelfSimilarity(fixed, warped, pairs, window)
    return pull.compare(warped), pull


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_likeness_and_forces_are_those_of_plain_sums(spacing):
    fixed, warped = cube(6, (12, 8, 8)), cube(7, (12, 8, 8))
    fixed[9, 5, 5] = warped[2, 2, 2] = np.nan
    found, pull = compared(fixed, warped, (2, 3, 1))
    out = np.empty((3, 2, 2, 9), np.float32)
    pull.collect(spacing, (4, 4, 4), out)
    a, b = (described(image).astype(float) for image in (fixed, warped))
    counts = (a[..., 0] != mind.NO_VALUE) & (b[..., 0] != mind.NO_VALUE)
    a[~counts] = b[~counts] = np.nan
    slopes = [np.stack([_slope(x, axis) / spacing[axis] for axis in range(3)]) for x in (a, b)]
    u, v = (np.where(counts[None, ..., None], slope, 0.0) for slope in slopes)
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    aa, bb, ab = (_windows((p * q).sum(axis=-1)) for p, q in ((a, a), (b, b), (a, b)))
    n = _windows(counts.astype(float))
    # Windows of 5 x 7 x 3 voxels of which a tenth counts at least.
    r, n = np.where(n >= 10.5, ab / np.sqrt(aa * bb), 0.0), np.where(counts, n, 0.0)
    assert found == pytest.approx((r**2)[counts].mean())
    pulls = [(a * y - b * x).sum(axis=-1) for x, y in zip(u, v, strict=True)]
    rows = [n * r / np.sqrt(aa * bb) * pull / 2 for pull in pulls]
    for p, q in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
        halves = [(x[p] * x[q]).sum(axis=-1) / norm for x, norm in ((u, aa), (v, bb))]
        rows.append(n * r**2 * sum(halves) / 2)
    means = np.stack(rows, axis=-1).reshape(3, 4, 2, 4, 2, 4, 9).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(out, means, rtol=1e-4, atol=1e-5)  # float32


def _windows(values, radius=(2, 3, 1)):
    """Sums in boxes, of which those at the border are cut."""
    padded = np.pad(values, [(r, r) for r in radius])
    shape = tuple(2 * r + 1 for r in radius)
    return np.lib.stride_tricks.sliding_window_view(padded, shape).sum(axis=(3, 4, 5))


def _slope(values, axis):
    """Central differences, one-sided beside what is missing."""
    wide = np.pad(
        values, [(1, 1) if a == axis else (0, 0) for a in range(4)], constant_values=np.nan
    )
    n = values.shape[axis]
    before, after = (np.take(wide, range(k, k + n), axis) for k in (0, 2))
    one_sided = np.where(np.isnan(before), after - values, values - before)
    slope = np.where(np.isnan(before + after), one_sided, (after - before) / 2)
    return np.nan_to_num(slope)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_displacement_is_found_whatever_the_contrast(contrast):
    fixed, moving, frame, u = case(contrast)
    found = descend(fixed, moving, frame, MIND)
    assert np.median(errors(found, u)) < 0.3
    for level in found.levels:
        assert level.after > level.before


def test_correlation_is_lost_where_contrast_is_folded():
    fixed, moving, frame, u = case("folded")
    lost, found = (
        descend(fixed, moving, frame, evolve(MIND, similarity=s)) for s in ("lcc", "mind")
    )
    assert np.median(errors(found, u)) < 0.3 * np.median(errors(lost, u))


def test_planes_are_registered_too():
    fixed, moving, frame, u = case(shape=(90, 80), spacing=(1.0, 1.0))
    found = descend(fixed, moving, frame, MIND)
    assert np.median(errors(found, u)) < 0.5  # four channels, and a plane's worth of voxels


def test_descriptors_are_along_the_fixed_axes():
    grid = Grid(SHAPE, (1.0, 1.0, 1.0))
    points = grid.positions()
    u = bend(points, 2.0)
    c, s = np.cos(np.radians(50)), np.sin(np.radians(50))
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    wide = Grid((76, 76, 42), (1.0, 1.0, 1.0))
    turn[:3, 3] = wide.to_physical([37.5, 37.5, 20.5]) - turn[:3, :3] @ [21.5, 19.5, 20.5]
    back = np.linalg.inv(turn)
    moving = CONTRASTS["folded"](texture(wide.positions() @ back[:3, :3].T + back[:3, 3]))
    found = descend(texture(points + u), moving, Frame(grid, wide, turn), MIND)
    assert np.median(errors(found, u)) < 0.4  # as without a turn, and linear interpolation


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_masked_artefacts_do_no_harm(which):
    fixed, moving, frame, u = case()
    spoiled = {"fixed": fixed.copy(), "moving": moving.copy()}
    spoiled[which][15:25, 12:22, 14:24] = np.nan
    found = descend(spoiled["fixed"], spoiled["moving"], frame, MIND)
    miss = errors(found, u)
    assert np.median(miss) < 0.35  # a little above that without a hole
    assert miss.max() < 2.0  # inside the hole the field is that of its surroundings


def test_the_border_of_the_moving_image_does_not_pull():
    grid = Grid(SHAPE, (1.0, 1.0, 1.0))
    half = grid.crop((slice(0, 26), slice(4, 40), slice(0, 42)))
    image = texture(grid.positions())
    found = descend(image, image[:26, 4:], Frame(grid, half, np.eye(4)), MIND)
    assert np.abs(found.displacement).max() < 0.01


def test_bits_do_not_depend_on_threads():
    fixed, moving, frame, _ = case()
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(descend(fixed, moving, frame, MIND).displacement)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_without_texture_or_overlap_the_start_is_returned():
    fixed, moving, frame, _ = case()
    flat = descend(np.full(SHAPE, 7.0), moving, frame, MIND)
    assert not flat.displacement.any()
    assert {level.stopped for level in flat.levels} == {"no texture"}
    away = np.eye(4)
    away[0, 3] = 1000.0
    apart = descend(fixed, moving, replace(frame, affine=away), MIND)
    assert not apart.displacement.any()
    assert {level.stopped for level in apart.levels} == {"no overlap"}


def test_constant_regions_feel_no_force():
    fixed, moving, frame, _ = case()
    fixed[:16], moving[:16] = 100.0, 100.0
    found = descend(fixed, moving, frame, MIND)
    assert np.isfinite(found.displacement).all()
    assert np.abs(found.displacement).max() < 5

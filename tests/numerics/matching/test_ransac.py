"""Robust fits against known transforms, and what they refuse."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError, RegistrationError
from itkstream.numerics.matching.affine import find_elsewhere
from itkstream.numerics.matching.matches import Correspondences
from itkstream.numerics.matching.ransac import RansacSettings, fit_affine, fit_ransac, fit_robustly

EXTENT = np.array([800.0, 440.0, 250.0])
MODELS = ("translation", "rigid", "similarity", "affine")


def truth(rng, model, n):
    angles = rng.normal(0, 5, 3)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if n == 2:
        c, s = np.cos(np.radians(angles[0])), np.sin(np.radians(angles[0]))
        rotation = np.array([[c, -s], [s, c]])
    matrix = np.eye(n + 1)
    matrix[:n, :n] = {
        "translation": np.eye(n),
        "rigid": rotation,
        "similarity": 1.07 * rotation,
        "affine": rotation + rng.normal(0, 0.03, (n, n)),
    }[model]
    matrix[:n, n] = rng.normal(0, 50, n)
    return matrix


def apply(matrix, points):
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def scene(seed, model="affine", n=3, count=1000, wrong=0.4, noise=0.5):
    """Matches within noise of a known transform, and a share of them with a random partner."""
    rng = np.random.default_rng(seed)
    matrix = truth(rng, model, n)
    fixed = rng.uniform(0, EXTENT[:n], (count, n))
    moving = apply(matrix, fixed) + rng.normal(0, noise, (count, n))
    bad = rng.random(count) < wrong
    moving[bad] = rng.permutation(moving[bad])
    return matrix, fixed, moving, bad


def error(estimate, matrix, fixed):
    return np.linalg.norm(apply(estimate.matrix, fixed) - apply(matrix, fixed), axis=1).max()


def test_the_affine_is_found_under_forty_percent_wrong_matches_in_100_of_100_trials():
    for seed in range(100):
        matrix, fixed, moving, bad = scene(seed)
        estimate = fit_ransac(fixed, moving, RansacSettings(seed=seed))
        # About 600 matches of 0.5 µm noise leave 0.5 * sqrt(12 / 600) = 0.07 µm, more in corners.
        assert error(estimate, matrix, fixed) < 0.4
        # 2 µm is four standard deviations: nearly every right match is an inlier, few others.
        assert (estimate.inliers == ~bad).mean() > 0.97


@pytest.mark.parametrize(("model", "n"), list(product(MODELS, (2, 3))))
def test_every_model_is_found_among_wrong_matches(model, n):
    for seed in range(10):
        matrix, fixed, moving, _ = scene(seed, model, n, count=300)
        estimate = fit_ransac(fixed, moving, RansacSettings(model=model, seed=seed))
        # Fewer matches than above.
        assert error(estimate, matrix, fixed) < 0.6


def test_inliers_and_residuals_are_those_of_the_matrix():
    _, fixed, moving, _ = scene(1)
    estimate = fit_ransac(fixed, moving, RansacSettings(threshold_um=1.5))
    residuals = np.linalg.norm(apply(estimate.matrix, fixed) - moving, axis=1)
    np.testing.assert_allclose(estimate.residuals, residuals, atol=1e-9)
    np.testing.assert_array_equal(estimate.inliers, estimate.residuals <= 1.5)
    # The matrix is the least squares fit to its own inliers.
    own = fit_affine(fixed[estimate.inliers], moving[estimate.inliers])
    np.testing.assert_allclose(estimate.matrix, own, atol=1e-6)


def test_the_same_seed_gives_the_same_bits():
    _, fixed, moving, _ = scene(3, wrong=0.7)
    runs = [fit_ransac(fixed, moving, RansacSettings(seed=5)) for _ in range(2)]
    assert runs[0].matrix.tobytes() == runs[1].matrix.tobytes()
    assert runs[0].residuals.tobytes() == runs[1].residuals.tobytes()


def test_far_from_the_origin_no_digit_is_lost():
    matrix, fixed, moving, _ = scene(4)
    shift = 1e7
    estimate = fit_ransac(fixed + shift, moving + shift)
    expected = fit_ransac(fixed, moving)
    np.testing.assert_allclose(estimate.matrix[:3, :3], expected.matrix[:3, :3], atol=1e-9)
    np.testing.assert_allclose(
        apply(estimate.matrix, fixed + shift) - shift, apply(matrix, fixed), atol=0.4
    )


def test_pairs_that_are_not_finite_never_count():
    matrix, fixed, moving, _ = scene(5)
    fixed[::10] = np.nan
    estimate = fit_ransac(fixed, moving)
    kept = np.isfinite(fixed).all(axis=1)
    assert not estimate.inliers[~kept].any()
    assert np.isnan(estimate.residuals[~kept]).all()
    assert error(estimate, matrix, fixed[kept]) < 0.4


def random_pairs(n):
    rng = np.random.default_rng(8)
    return rng.uniform(0, 60, (300, n)), rng.uniform(0, 60, (300, n))


def planar():
    matrix, fixed, _, _ = scene(6, wrong=0)
    fixed[:, 2] = 7
    return fixed, apply(matrix, fixed)


def mirrored():
    _, fixed, _, _ = scene(6, wrong=0)
    return fixed, fixed * [-1, 1, 1]


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ((np.empty((0, 3)), np.empty((0, 3))), "0 matches, fewer than"),
        (tuple(x[:5] for x in scene(0)[1:3]), "5 matches, fewer than the 10 inliers needed"),
        (random_pairs(3), "needed"),
        (random_pairs(2), "needed"),
        (planar(), "plausible"),
        (mirrored(), "mirror"),
        ((scene(7)[1], scene(7)[1] * 2.5), "stretch"),
        ((np.ones((50, 3)), np.ones((50, 3))), "needed"),
    ],
    ids=["none", "few", "random", "random 2-D", "planar", "mirrored", "stretched", "one place"],
)
def test_no_transform_is_given_where_none_can_be_trusted(points, reason):
    estimate = fit_ransac(*points)
    assert not estimate
    assert estimate.matrix is None
    assert reason in estimate.reason
    assert not estimate.inliers.any()
    assert estimate.inliers.shape == estimate.residuals.shape == points[0].shape[:1]


def test_a_plane_with_wrong_matches_off_it_does_not_determine_an_affine():
    fixed, _ = planar()
    rng = np.random.default_rng(0)
    matrix = truth(rng, "rigid", 3)
    moving = apply(matrix, fixed)
    fixed = np.vstack([fixed, rng.uniform(0, EXTENT, (40, 3))])
    moving = np.vstack([moving, rng.uniform(0, EXTENT, (40, 3))])
    # Any wrong match off the plane, with three on it, gives an affine that fits the whole plane.
    assert "plane" in fit_ransac(fixed, moving).reason
    estimate = fit_ransac(fixed, moving, RansacSettings(model="rigid"))
    np.testing.assert_allclose(estimate.matrix, matrix, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.sampled_from(MODELS), st.integers(2, 3))
@settings(max_examples=60, deadline=None)
def test_least_squares_recovers_an_exact_transform(seed, model, n):
    rng = np.random.default_rng(seed)
    matrix = truth(rng, model, n)
    points = rng.uniform(0, EXTENT[:n], (20, n))
    fitted = fit_affine(points, apply(matrix, points), model, rng.uniform(0.1, 1, 20))
    np.testing.assert_allclose(fitted, matrix, atol=1e-9 * 800)


def test_least_squares_agrees_with_numpy_and_scipy():
    rng = np.random.default_rng(9)
    _, p, q, _ = scene(9, "rigid", wrong=0, noise=20)
    w = rng.uniform(0, 2, len(p))
    root = np.sqrt(w)[:, None]
    design = np.column_stack([p, np.ones(len(p))])
    expected, *_ = np.linalg.lstsq(root * design, root * q, rcond=None)
    np.testing.assert_allclose(fit_affine(p, q, weights=w)[:3], expected.T, atol=1e-8)
    centres = [np.average(x, axis=0, weights=w) for x in (p, q)]
    rotation, _ = Rotation.align_vectors(q - centres[1], p - centres[0], weights=w)
    fitted = fit_affine(p, q, "rigid", w)
    np.testing.assert_allclose(fitted[:3, :3], rotation.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(apply(fitted, centres[0]), centres[1], atol=1e-9)


def test_a_robust_fit_follows_the_many_and_is_plain_where_all_agree():
    rng = np.random.default_rng(3)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.1, (3, 4))
    points = rng.uniform(0, 100, (200, 3))
    exact = apply(matrix, points)
    np.testing.assert_allclose(fit_robustly(points, exact), matrix, atol=1e-9)
    targets = exact + rng.normal(0, 0.5, exact.shape)
    targets[:50] += rng.uniform(10, 40, (50, 3))
    errors = [
        np.linalg.norm(apply(fit(points, targets), points) - exact, axis=1).max()
        for fit in (fit_robustly, fit_affine)
    ]
    # Three standard errors of a corner of 150 good ones; the plain fit is pulled by the others.
    assert errors[0] < 0.6 < 3 < errors[1]


def test_a_majority_that_agrees_on_a_mirror_image_does_not_hide_the_transform():
    matrix, fixed, moving, _ = scene(10, wrong=0)
    mirror = np.arange(len(fixed)) % 5 < 3
    moving[mirror] = fixed[mirror] * [-1, 1, 1]
    estimate = fit_ransac(fixed, moving)
    assert error(estimate, matrix, fixed) < 0.6


def test_rigid_never_mirrors():
    rng = np.random.default_rng(2)
    p = rng.normal(size=(30, 3))
    for model in ("rigid", "similarity"):
        assert np.linalg.det(fit_affine(p, p * [1, 1, -1], model)[:3, :3]) > 0


def test_points_that_do_not_determine_the_model_are_refused():
    line = np.outer(np.arange(10.0), [1, 2, 3])
    with pytest.raises(RegistrationError, match="line or plane"):
        fit_affine(line, line, "rigid")
    with pytest.raises(RegistrationError, match="0 matches"):
        fit_affine(line, line, "translation", np.zeros(10))
    assert fit_affine(line, line + 3, "translation")[:3, 3] == pytest.approx([3, 3, 3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "spline"},
        {"threshold_um": 0},
        {"max_trials": 0},
        {"confidence": 1.0},
        {"min_inliers": 0},
        {"stretch": (1.2, 2.0)},
    ],
    ids=lambda w: next(iter(w)),
)
def test_settings_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        RansacSettings(**wrong)


def test_points_are_checked():
    with pytest.raises(InputError, match="same shape"):
        fit_ransac(np.ones((5, 3)), np.ones((4, 3)))
    with pytest.raises(InputError, match="weights"):
        fit_affine(np.ones((5, 3)), np.ones((5, 3)), weights=[1, 2])
    with pytest.raises(InputError, match="finite"):
        fit_affine(np.full((5, 3), np.nan), np.ones((5, 3)))


def paired(fixed, moving):
    number = np.arange(len(fixed))
    return Correspondences(fixed, moving, np.ones(len(fixed)), number, number)


def test_a_part_that_lies_elsewhere_is_found() -> None:
    """Of two slabs in another order, one affine brings one together; the other is 200 µm off."""
    _, fixed, moving, bad = scene(1)
    moved = ~bad & (fixed[:, 0] < 200)
    moving[moved, 0] += 200
    estimate = fit_ransac(fixed, moving)
    pairs = paired(fixed, moving)
    found = find_elsewhere(pairs, estimate, RansacSettings())
    assert found is not None
    assert found.inliers == pytest.approx(moved.sum(), abs=15)
    assert found.apart_um == pytest.approx(200, rel=0.1)
    # Also where more agree on a place that is near, as of tissue that bends.
    bent = ~bad & (fixed[:, 0] > 500)
    moving[bent, 1] += 20
    pairs = paired(fixed, moving)
    found = find_elsewhere(pairs, fit_ransac(fixed, moving), RansacSettings())
    assert found is not None
    assert found.apart_um == pytest.approx(200, rel=0.1)
    _, fixed, moving, _ = scene(1)
    pairs = paired(fixed, moving)
    assert find_elsewhere(pairs, fit_ransac(fixed, moving), RansacSettings()) is None

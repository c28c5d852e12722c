"""A whole registration with a GPU, emulated: what it computes there, and that results agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from emulated import EmulatedBackend, needs_compiler

from itkstream.geometry import Image
from itkstream.numerics.gpu.engine import using_engine
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import register
from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings
from itkstream.result import Registration
from itkstream.workers import Resources

pytestmark = needs_compiler

STEPS = (RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8), Deformable())
SETTINGS = RegisterSettings(blocksize=64, error_map=False, report=False)

BLOBS = {"filter_axis", "halve_32", "laplacian", "mark_maxima"}
DESCENT = {"warp_nodes", "correlate", "collect_forces", "solve_newton", "determinants"}
SAMPLING = {"warp_linear_32", "sample_vectors", "stretch_vectors"}
WINDOWS = {"sum_planes", "sum_lines", "correlate_windows"}


def correlations(registered: Registration) -> list[float]:
    steps = registered.facts["steps"]
    return [step["local_correlation"] for step in steps if "local_correlation" in step]


def test_a_registration_goes_to_the_device_and_finds_the_same(
    pair: PhantomPair, device: EmulatedBackend, tmp_path: Path
) -> None:
    here, there = (
        register(
            pair.fixed,
            pair.moving,
            tmp_path / str(engine),
            STEPS,
            SETTINGS,
            resources=Resources(engine=engine),
        )
        for engine in (None, "gpu")
    )
    assert set(device.launched) >= BLOBS | DESCENT | SAMPLING | WINDOWS
    # What precedes the deformation has the same bits, and that differs by rounding.
    start, affine, *_ = correlations(here)
    assert correlations(there)[:2] == [start, affine]
    np.testing.assert_allclose(correlations(there), correlations(here), atol=1e-4)
    assert there.verdict.outcome == here.verdict.outcome
    points = np.random.default_rng(0).uniform(8, 40, (200, 3))
    apart = np.linalg.norm(there.transform.apply(points) - here.transform.apply(points), axis=1)
    assert np.median(apart) < 0.002
    assert np.percentile(apart, 95) < 0.01
    _check_labels(here, pair.moving, device)


def _check_labels(registered: Registration, moving: Image, device: EmulatedBackend) -> None:
    """Labels, beyond single precision too, are carried through the transform by the device."""
    labels = np.random.default_rng(0).integers(0, 2**60, moving.shape, np.uint64)
    image, nearest = Image(labels, moving.grid), WarpSettings("nearest")
    expected = registered.apply(image, nearest).read()
    with using_engine("gpu"):
        np.testing.assert_array_equal(registered.apply(image, nearest).read(), expected)
    assert "warp_nearest_64" in device.launched

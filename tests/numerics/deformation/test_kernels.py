"""Smoothing operators against their definition, and what must not depend on the lattice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.numerics.deformation.kernels import SmoothingKernel, smooth_field
from itkstream.numerics.threads import using_threads


def laplacian(f, axis, h):
    """Minus half the second difference with reflecting ends: (1 - cos) / h^2 in the spectrum."""
    n = f.shape[axis]
    padded = np.pad(f, [(1, 1) if a == axis else (0, 0) for a in range(f.ndim)], mode="symmetric")
    before, after = (np.take(padded, np.arange(n) + s, axis) for s in (0, 2))
    return (f - (before + after) / 2) / h**2


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_operator_is_the_inverse_of_its_difference_equation(d):
    rng = np.random.default_rng(0)
    spacing, (a, c) = (1.84, 0.7, 3.0), (3.0, 1.3)
    # Lengths the transform need not pad, so that reflection is exact at both ends.
    field = rng.normal(size=(12, 10, 9, 3))
    back = smooth_field(field, spacing, SmoothingKernel(a, 0.0, c, d)).astype(float)
    for _ in range(d):
        back = c * back + a * sum(laplacian(back, k, spacing[k]) for k in range(3))
    # float32, amplified by at most (c + a sum 2 / h^2)^d = 18^3.
    np.testing.assert_allclose(back, field, atol=18**d * 2e-6)


def test_a_broken_power_lies_between_its_neighbours():
    field = np.zeros((16, 16, 1), np.float32)
    field[8, 8] = 1.0
    peaks = [
        smooth_field(field, (1.0, 1.0), SmoothingKernel(2.0, 0.0, 1.0, d))[8, 8, 0]
        for d in (1.0, 1.5, 2.0)
    ]
    assert peaks[0] > peaks[1] > peaks[2] > 0


@pytest.mark.parametrize("b", [0.0, 4.0])
def test_constants_are_multiplied_by_c_to_the_minus_d(b):
    field = np.full((11, 13, 7, 3), 2.5)
    got = smooth_field(field, (1.0, 2.0, 0.5), SmoothingKernel(3.0, b, 2.0, 2.0))
    np.testing.assert_allclose(got, 2.5 / 4, rtol=1e-5)  # float32


@pytest.mark.parametrize("b", [0.0, 2.0])
def test_nothing_wraps_around(b):
    field = np.zeros((64, 9, 9, 3))
    field[0] = 1.0
    got = smooth_field(field, (1.0, 1.0, 1.0), SmoothingKernel(3.0, b, 1.0, 2.0))
    assert got[0, 4, 4, 0] > 0.1
    # Direct influence over 32 voxels is exp(-32 / 1.2): below float32 noise.
    assert np.abs(got[32:]).max() < 1e-6


def wave(shape, spacing, cycles, direction):
    """A wave periodic on the lattice, and its discrete wave vector."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    theta = 2 * np.pi * np.asarray(cycles) / shape
    k = np.sign(theta) * np.sqrt(1 - np.cos(theta)) / spacing
    return np.cos(index @ theta)[..., None] * direction(k), k


@pytest.mark.parametrize(("name", "extra"), [("along", True), ("across", False)])
def test_grad_div_damps_waves_along_their_direction_more(name, extra):
    shape, spacing = (96, 90, 80), np.array([1.84, 1.84, 1.68])
    kernel = SmoothingKernel(1.5, 3.0, 1.0, 2.0)

    def direction(k):
        across = np.cross(k, (0.3, 1.0, -0.2))
        unit = k if extra else across
        return unit / np.linalg.norm(unit)

    field, k = wave(shape, spacing, (12, 9, 16), direction)
    got = smooth_field(field, spacing, kernel)
    gain = (kernel.c + (kernel.a + extra * kernel.b) * (k @ k)) ** -kernel.d
    inner = (slice(30, -30),) * 3
    # What the border reflects is another wave; the jump of the wave vector's sign at the Nyquist
    # frequency lets a thousandth of it reach far inwards. The two gains differ by a third.
    np.testing.assert_allclose(got[inner], gain * field[inner], atol=2e-3)


@given(st.floats(0.1, 10), st.sampled_from([0.0, 1.5]))
@settings(deadline=None, max_examples=20)
def test_a_scaled_kernel_on_a_scaled_lattice_gives_the_same(length, b):
    field = np.random.default_rng(2).normal(size=(9, 8, 10, 3))
    kernel, spacing = SmoothingKernel(2.0, b, 1.0, 2.0), np.array([1.0, 1.5, 2.0])
    got = smooth_field(field, spacing * length, kernel.scaled(length))
    # float32 rounding of the scaled gains
    np.testing.assert_allclose(got, smooth_field(field, spacing, kernel), atol=2e-5)


def test_a_coarse_lattice_does_as_the_fine_one_does_to_what_it_can_hold():
    x = np.arange(128) + 0.5
    smooth = np.cos(np.pi * 10 * x / 128)[:, None]
    coarse = np.cos(np.pi * 10 * (np.arange(32) * 4 + 2) / 128)[:, None]
    kernel = SmoothingKernel(6.0, 0.0, 1.0, 2.0)
    fine_gain = smooth_field(smooth, (1.0,), kernel)[40] / smooth[40]
    coarse_gain = smooth_field(coarse, (4.0,), kernel, (1.0,))[10] / coarse[10]
    assert coarse_gain == pytest.approx(fine_gain, rel=1e-4)  # float32


@pytest.mark.parametrize("b", [0.0, 2.0])
def test_bits_do_not_depend_on_threads(b):
    field = np.random.default_rng(3).normal(size=(23, 17, 29, 3))
    results = []
    for threads in (1, 2, 4):
        with using_threads(threads):
            results.append(smooth_field(field, (1.0, 1.2, 2.0), SmoothingKernel(3, b, 1, 2)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_identity_copies():
    field = np.ones((4, 4, 2), np.float32)
    got = smooth_field(field, (1.0, 1.0), SmoothingKernel(3.0, 0.0, 1.0, 0.0))
    assert got is not field
    np.testing.assert_array_equal(got, field)


@pytest.mark.parametrize("kernel", [SmoothingKernel(2.0, 0.0, 1.0, 2), SmoothingKernel(0, 0, 1, 1)])
@pytest.mark.parametrize("components", [3, 9])
def test_a_field_may_be_overwritten(kernel, components):
    field = np.random.default_rng(0).random((9, 7, 8, components), np.float32)
    apart = smooth_field(field, (1.0, 1.0, 1.0), kernel, spare_affine=components == 3)
    assert not np.shares_memory(apart, field)
    inside = smooth_field(
        field, (1.0, 1.0, 1.0), kernel, spare_affine=components == 3, overwrite=True
    )
    assert inside.tobytes() == apart.tobytes()
    assert np.shares_memory(inside, field)


@pytest.mark.parametrize(
    ("name", "values"),
    [("a", (-1, 0, 1, 2)), ("b", (1, -1, 1, 2)), ("c", (1, 0, 0, 2)), ("d", (1, 0, 1, np.nan))],
)
def test_a_bad_number_is_named(name, values):
    with pytest.raises(InputError, match=f"kernel's {name} must"):
        SmoothingKernel(*values)


@pytest.mark.parametrize("components", [1, 3, 4, 9])
def test_components_are_smoothed_one_by_one_and_the_field_is_not_touched(components):
    field = np.random.default_rng(5).normal(size=(12, 11, 7, components)).astype(np.float32)
    given_field, kernel = field.copy(), SmoothingKernel(2.0, 0.0, 1.0, 2.0)
    got = smooth_field(field, (1.0, 1.2, 2.0), kernel)
    np.testing.assert_array_equal(field, given_field)
    for c in range(components):
        alone = smooth_field(field[..., c : c + 1], (1.0, 1.2, 2.0), kernel)
        np.testing.assert_array_equal(got[..., c], alone[..., 0])


@pytest.mark.parametrize("b", [0.0, 2.0])
@pytest.mark.parametrize("shape", [(9, 14), (13, 1, 7), (12, 10, 11)])
def test_the_affine_part_is_spared(shape, b):
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    n = len(shape)
    affine = at @ np.random.default_rng(6).normal(size=(n, n)) + 40.0
    bend = np.cos(np.pi * (at + 0.5) / np.array(shape) * 2) * (np.array(shape) > 1)
    spacing, kernel = (1.0, 1.2, 2.0)[:n], SmoothingKernel(3.0, b, 1.0, 2.0)
    got = smooth_field(affine + bend, spacing, kernel, spare_affine=True)
    # Cosines of a whole period have no slope: what is left is smoothed as it is alone.
    np.testing.assert_allclose(got - affine, smooth_field(bend, spacing, kernel), atol=1e-4)


def test_grad_div_needs_one_component_per_axis():
    with pytest.raises(InputError, match="one per axis"):
        smooth_field(np.zeros((5, 5, 5, 1)), (1, 1, 1), SmoothingKernel(1, 1, 1, 1))

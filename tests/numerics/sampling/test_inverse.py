"""Inverse fields against the fields they invert, against SimpleITK, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.geometry.itk_bridge import to_itk_transform
from itkstream.numerics.sampling.fields import displacement_bounds, jacobian_determinant
from itkstream.numerics.sampling.inverse import InverseProblem, Inversion
from itkstream.numerics.threads import using_threads


def identity(ndim: int) -> AffineTransform:
    return AffineTransform(np.eye(ndim + 1))


def invert(
    field: np.ndarray, here: Grid, there: Grid, after: AffineTransform | None = None, **bounds
) -> Inversion:
    affine = after or identity(here.ndim)
    return InverseProblem(here, there, affine, **bounds).solve_whole(field)


def rough(grid: Grid, amplitude: float, sigma: float, least: float = 0.2) -> np.ndarray:
    """A random smooth field of at most `amplitude` voxels, with no determinant below `least`."""
    rng = np.random.default_rng(1)
    field = np.stack(
        [gaussian_filter(rng.normal(size=grid.shape), sigma) for _ in grid.shape], axis=-1
    )
    field *= amplitude / np.abs(field).max() * np.array(grid.spacing)
    while jacobian_determinant(field, grid).min() < least:
        field *= 0.97
    return field.astype(np.float32)


@pytest.mark.parametrize(("sigma", "amplitude"), [(8.0, 8.5), (14.0, 14), (18.0, 15)])
def test_strong_fields_are_inverted(sigma, amplitude) -> None:
    grid = Grid((88, 84, 92), (1.0, 1.0, 1.0))
    field = rough(grid, 1.6 * amplitude, sigma)
    assert np.abs(field).max() >= amplitude
    assert jacobian_determinant(field, grid).min() < 0.23
    found = invert(field, grid, grid)
    forward, back = DisplacementField(field, grid), DisplacementField(found.displacement, grid)
    reach = np.abs(field).max() + 1
    points = np.random.default_rng(0).uniform(reach, np.array(grid.shape) - 1 - reach, (4000, 3))
    error = np.linalg.norm(back.apply(forward.apply(points)) - points, axis=1)
    # The demand. Between its voxels the inverse is a linear interpolation, which errs as well.
    assert np.median(error) <= 0.01
    assert error.max() <= 0.1
    assert found.error.max() <= 0.01


CUBE = Grid((48, 52, 56), (1.0, 1.0, 1.0))
FLAT = Grid((16, 48, 56), (5.0, 1.0, 0.8))


@pytest.mark.parametrize(
    ("grid", "there", "sigma"),
    [
        pytest.param(CUBE, CUBE, 10.0, id="smooth"),
        pytest.param(CUBE, CUBE, 3.0, id="rough"),
        pytest.param(CUBE, CUBE, 0.5, id="noise"),
        pytest.param(FLAT, FLAT, 2.0, id="anisotropic"),
        pytest.param(CUBE, CUBE.shrink((4, 4, 4)), 4.0, id="coarse of fine"),
        pytest.param(CUBE.shrink((4, 4, 4)), CUBE, 2.0, id="fine of coarse"),
        pytest.param(Grid((60, 64), (1.0, 2.0)), Grid((60, 64), (1.0, 2.0)), 4.0, id="2-D"),
        pytest.param(Grid((1, 40, 44), (1.0, 1.0, 1.0)), CUBE, 4.0, id="one plane"),
    ],
)
def test_no_voxel_is_further_off_than_its_error_says(grid, there, sigma) -> None:
    field = rough(grid, 15.0, sigma)
    found = invert(field, grid, there)
    exact = invert(field, grid, there, tolerance_vox=1e-9)
    # A map without folds has one inverse: it is found where the images meet, at the border too.
    points = there.positions()
    left = DisplacementField(field, grid).apply(points + exact.displacement) - points
    # Vectors of some tens of units are stored to a millionth.
    assert np.abs(left).max() < 5e-6
    off = np.linalg.norm(np.subtract(found.displacement, exact.displacement, dtype=float), axis=-1)
    assert (off / min(there.spacing) <= found.error + 5e-6).all()
    assert found.error.max() <= 0.01


def test_converges_where_fixed_point_iteration_does_not() -> None:
    # Slopes from -0.8 to 0.8 along one axis and as steep ones across it, 15 voxels high.
    grid = Grid((32, 96, 96), (1.0, 1.0, 1.0))
    x = grid.positions()
    field = np.zeros((*grid.shape, 3), np.float32)
    field[..., 1] = 15 * np.sin(x[..., 1] * 0.8 / 15)
    field[..., 2] = 9 * np.sin(x[..., 1] / 6) * np.cos(x[..., 0] / 20)
    assert jacobian_determinant(field, grid).min() == pytest.approx(0.2, abs=0.01)
    found = invert(field, grid, grid)
    origin = grid.positions() + found.displacement
    left = DisplacementField(field, grid).apply(origin) - grid.positions()
    assert np.median(np.abs(left)) <= 0.001
    assert np.abs(left).max() <= 0.01
    assert found.error.max() <= 0.01


@pytest.mark.parametrize("axes", [("x", "y"), ("z", "y", "x"), ("x", "y", "z")], ids="".join)
def test_on_another_lattice_and_with_an_affine(odd_grid, smooth_transform, axes) -> None:
    grid = odd_grid(3, len(axes), axes)
    composite = smooth_transform(grid, seed=5, factor=3)
    field, affine = composite.transforms
    smooth = gaussian_filter(field.data, (1.0,) * len(axes) + (0,))
    composite = CompositeTransform((DisplacementField(smooth, field.grid), affine))
    there = odd_grid(3, len(axes), axes).shrink((2,) * len(axes))
    found = invert(smooth, field.grid, there, after=affine)
    points = there.positions()
    origin = affine.inverse().apply(points + found.displacement)
    # At the voxels themselves only the tolerance and float32 are left.
    off = np.linalg.norm(composite.apply(origin) - points, axis=-1) / min(there.spacing)
    assert off.max() < 0.02


def test_simpleitk_agrees() -> None:
    grid = Grid((32, 30, 28), (1.2, 0.8, 1.0), (5.0, -3.0, 2.0), axes=("z", "y", "x"))
    field = rough(grid, 3.0, 5.0, 0.4)
    image = to_itk_transform(DisplacementField(field, grid), grid.axes).GetDisplacementField()
    itk = sitk.InvertDisplacementField(image, 200, 1e-4, 1e-4, enforceBoundaryCondition=False)
    theirs = sitk.GetArrayFromImage(itk)[..., ::-1]
    ours = invert(field, grid, grid).displacement
    inner = (slice(6, -6),) * 3
    # ITK's iteration is stopped at its own tolerance, a tenth of a voxel at the worst place.
    assert np.median(np.abs(theirs - ours)[inner]) < 2e-3
    assert np.abs(theirs - ours)[inner].max() < 0.1


def test_a_shift_and_an_empty_field() -> None:
    grid = Grid((5, 6, 7), (1.0, 2.0, 0.5))
    shift = np.broadcast_to(np.float32([0.3, -1.5, 2.0]), (5, 6, 7, 3))
    np.testing.assert_allclose(invert(shift, grid, grid).displacement, -shift)
    assert not invert(0 * shift, grid, grid).displacement.any()


def test_any_number_of_threads_and_any_box_gives_the_same_bits() -> None:
    grid = Grid((24, 26, 61), (1.0, 1.5, 0.7))
    field = rough(grid, 4.0, 4.0)
    with using_threads(1):
        whole = invert(field, grid, grid)
    with using_threads(3):
        again = invert(field, grid, grid)
    np.testing.assert_array_equal(whole.displacement, again.displacement)
    problem, bounds = InverseProblem(grid, grid, identity(3)), displacement_bounds(field, grid)
    for starts, stops in [
        ((3, 5, 21), (9, 20, 43)),
        ((0, 25, 60), (24, 26, 61)),
        ((7,) * 3, (8,) * 3),
    ]:
        box = tuple(map(slice, starts, stops))
        region = problem.reach(box, bounds)
        assert region != tuple(slice(0, n) for n in grid.shape)
        # What is out of reach is not read: memory beyond the part would differ from run to run.
        part = problem.solve(field[region].copy(), region, box, bounds)
        np.testing.assert_array_equal(part.displacement, whole.displacement[box])
        np.testing.assert_array_equal(part.error, whole.error[box])


def test_any_box_of_a_plane_gives_the_same_bits() -> None:
    grid = Grid((50, 70), (1.0, 2.0))
    field = rough(grid, 4.0, 5.0)
    whole = invert(field, grid, grid)
    problem, bounds = InverseProblem(grid, grid, identity(2)), displacement_bounds(field, grid)
    box = (slice(13, 31), slice(33, 70))
    region = problem.reach(box, bounds)
    part = problem.solve(field[region].copy(), region, box, bounds)
    np.testing.assert_array_equal(part.displacement, whole.displacement[box])


def test_one_evaluation_leaves_an_honest_error() -> None:
    grid = Grid((24, 26, 28), (1.0, 1.0, 1.0))
    field = rough(grid, 3.0, 3.0)
    once = invert(field, grid, grid, max_iterations=1)
    assert once.iterations == 1
    exact = invert(field, grid, grid, tolerance_vox=1e-9)
    assert exact.iterations > 2
    off = np.linalg.norm(once.displacement - exact.displacement, axis=-1)
    assert (once.error[off > 0.05] > 0.01).all()
    assert (off > 0.05).any()


def test_a_fold_has_an_honest_error() -> None:
    grid = Grid((1, 1, 40), (1.0, 1.0, 1.0))
    field = np.zeros((1, 1, 40, 3), np.float32)
    field[0, 0, :, 2] = 12 * np.sin(np.arange(40) / 4)
    found = invert(field, grid, grid, max_iterations=30)
    assert np.isfinite(found.displacement).all()
    origin = grid.positions() + found.displacement
    left = DisplacementField(field, grid).apply(origin) - grid.positions()
    lost = np.linalg.norm(left, axis=-1) > 0.2
    assert (found.error[lost] > 0.01).all()


def test_refuses() -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0))
    field = np.zeros((4, 4, 4, 3), np.float32)
    with pytest.raises(InputError, match="reorder or convert"):
        InverseProblem(grid, grid.in_unit("millimeter"), identity(3))
    with pytest.raises(InputError, match="a 2-D affine cannot follow a 3-D field"):
        InverseProblem(grid, grid, identity(2))
    # Compiled loops would read beyond these.
    for wrong in (field[:3], field[..., :2]):
        with pytest.raises(InputError, match="is it on another grid"):
            invert(wrong, grid, grid)
    with pytest.raises(InputError, match="tolerance_vox must be a positive length"):
        invert(field, grid, grid, tolerance_vox=0)
    field[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        invert(field, grid, grid)

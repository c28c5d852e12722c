"""Two images of one tissue, and how far a transform is from the true one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import Grid, Image
from itkstream.phantoms.camera import camera_of, photograph, plane_by_plane, render
from itkstream.phantoms.lattice import in_three
from itkstream.phantoms.settings import PhantomSettings
from itkstream.phantoms.tissue import depths_at, draw_scenes
from itkstream.phantoms.truth import SyntheticTransform, draw_truth

__all__ = ["PhantomPair", "TargetError", "make_pair", "target_registration_error"]


PointMap = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class TargetError(NamedTuple):
    """Distances between where a transform puts points and where they truly lie.

    Parameters
    ----------
    um : ndarray, (k,)
        Distances in µm.
    vox : ndarray, (k,)
        Distances in voxels of the moving image.

    Examples
    --------
    >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> pair = itkstream.phantoms.make_pair(settings)
    >>> sorted(pair.error(lambda points: points).summary())[:2]
    ['max_um', 'max_vox']
    """

    um: NDArray[np.float64]
    vox: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Median, 95th percentile and maximum.

        Returns
        -------
        dict of str to float
            Keys ``median_um, p95_um, max_um, median_vox, p95_vox, max_vox``.

        Examples
        --------
        >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
        >>> pair = itkstream.phantoms.make_pair(settings)
        >>> pair.error(pair.truth).summary()["median_um"] < 1e-6
        True
        """
        return {
            f"{name}_{unit}": float(np.percentile(values, q))
            for unit, values in (("um", self.um), ("vox", self.vox))
            for name, q in (("median", 50), ("p95", 95), ("max", 100))
        }


@dataclass(frozen=True)
class PhantomPair:
    """Two images of one tissue and the true map between them.

    Parameters
    ----------
    fixed, moving : Image
        uint16 images in memory.
    truth : SyntheticTransform
        Fixed points to moving points, in µm.
    tissue : ndarray of bool
        Where the tissue is, on the grid of `fixed`.
    nuclei : ndarray, (k, n)
        Centres of the nuclei in fixed space, in µm.
    radii : ndarray, (k,)
        Their mean radii, in µm.

    Examples
    --------
    >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> pair = itkstream.phantoms.make_pair(settings)
    >>> pair.error(pair.truth).um.max() < 1e-6
    np.True_
    """

    fixed: Image
    moving: Image
    truth: SyntheticTransform
    tissue: NDArray[np.bool_]
    nuclei: NDArray[np.float64]
    radii: NDArray[np.float64]

    def error(self, mapping: PointMap, stride: int = 4) -> TargetError:
        """Target registration error of a transform over the tissue.

        Parameters
        ----------
        mapping : callable
            Takes fixed points (k, n) in µm, returns moving points (k, n) in µm.
        stride : int
            Every how many voxels a point is taken, per axis.

        Returns
        -------
        TargetError
            See `target_registration_error`.

        Examples
        --------
        >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
        >>> pair = itkstream.phantoms.make_pair(settings)
        >>> float(pair.error(pair.truth).um.max()) < 1e-6
        True
        """
        tissue = Image(self.tissue, self.fixed.grid)
        return target_registration_error(mapping, self.truth, tissue, self.moving.grid, stride)


def target_registration_error(
    mapping: PointMap,
    truth: PointMap,
    tissue: Image,
    moving_grid: Grid,
    stride: int = 1,
) -> TargetError:
    """Compare a transform with the true one, at tissue points seen in both images.

    Parameters
    ----------
    mapping : callable
        The transform to judge: fixed points (k, n) in µm to moving points (k, n) in µm.
    truth : callable
        The true map, of the same kind.
    tissue : Image
        Nonzero where the points are taken, in fixed space.
    moving_grid : Grid
        Points whose true match lies outside it are left out.
    stride : int
        Every how many voxels of `tissue` a point is taken, per axis.

    Returns
    -------
    TargetError
        One distance per point.

    Raises
    ------
    InputError
        Where no point is left, or `mapping` does not return one point per point.

    Examples
    --------
    >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> pair = itkstream.phantoms.make_pair(settings)
    >>> tissue = itkstream.Image(pair.tissue, pair.fixed.grid)
    >>> error = itkstream.phantoms.target_registration_error(
    ...     pair.truth, pair.truth, tissue, pair.moving.grid
    ... )
    >>> float(error.um.max())
    0.0
    """
    kept = np.argwhere(np.asarray(tissue.read())[(slice(None, None, stride),) * tissue.ndim])
    points = tissue.grid.to_physical(kept * stride)
    true = truth(points)
    index = moving_grid.to_index(true)
    inside = ((index >= 0) & (index <= np.subtract(moving_grid.shape, 1))).all(axis=-1)
    if not inside.any():
        raise InputError(
            f"no tissue point, taken every {stride} voxels, has its true match inside the moving "
            "image; check the tissue mask and the grids, or take a smaller stride"
        )
    found = np.asarray(mapping(points[inside]), float)
    if found.shape != true[inside].shape:
        raise InputError(
            f"the transform must return points of shape {true[inside].shape}, one for each given; "
            f"got {found.shape}"
        )
    apart = moving_grid.to_index(found) - index[inside]
    return TargetError(
        np.linalg.norm(found - true[inside], axis=-1), np.linalg.norm(apart, axis=-1)
    )


def make_pair(settings: PhantomSettings | None = None) -> PhantomPair:
    """Make two images of one synthetic tissue, related by a known transform.

    Parameters
    ----------
    settings : PhantomSettings, optional
        Sizes, seed and motion; default ``PhantomSettings()``.

    Returns
    -------
    PhantomPair
        Images, true map and tissue mask.

    Raises
    ------
    InputError
        Where the deformation asked for is too strong for the size of the image.

    Examples
    --------
    >>> settings = itkstream.phantoms.PhantomSettings((32, 32, 24), radii_um=(2, 4))
    >>> pair = itkstream.phantoms.make_pair(settings)
    >>> pair.fixed.shape
    (32, 32, 24)
    """
    settings = settings or PhantomSettings()
    fixed_grid, moving_grid = settings.fixed_grid, settings.moving_grid
    truth = draw_truth(settings)
    scene, second, radii = draw_scenes(settings)
    light = render(scene, fixed_grid, in_three)
    light_again = render(second, moving_grid, lambda p: in_three(truth.inverse(p)))
    fixed = photograph(light, fixed_grid, settings, camera_of(False, settings.restaining))
    moving = photograph(light_again, moving_grid, settings, camera_of(True, settings.restaining))
    return PhantomPair(
        Image(fixed, fixed_grid, "fixed"),
        Image(moving, moving_grid, "moving"),
        truth,
        plane_by_plane(fixed_grid, np.bool_, lambda p: depths_at(in_three(p), scene.tissue) > 0),
        np.ascontiguousarray(scene.bodies.centres[: len(radii), : fixed_grid.ndim]),
        radii,
    )

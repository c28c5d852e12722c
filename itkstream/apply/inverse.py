"""The inverse of a transform as a transform: points are found where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.apply.inversion import invert_transform
from itkstream.apply.points import apply_to_points
from itkstream.geometry import Grid, Transform
from itkstream.geometry.shown.html import card

__all__ = ["InverseTransform"]


@dataclass(frozen=True, eq=False, repr=False)
class InverseTransform(Transform):
    """From moving to fixed points, by solving ``forward.apply(fixed) == moving``.

    Nothing is computed until points are given. `on` samples it on a grid, which is what images
    and files need.

    Parameters
    ----------
    forward : Transform
        From fixed to moving points: affines, displacement fields, and chains of these.

    Examples
    --------
    >>> there = registration.apply([[20.0, 40.0, 40.0]])
    >>> bool(np.allclose(registration.inverse.apply(there), [[20.0, 40.0, 40.0]], atol=0.05))
    True
    >>> field = registration.inverse.on(moving.grid)
    >>> itkstream.transform.apply_transform(moving, fixed, field).shape == moving.shape
    True
    """

    forward: Transform

    @property
    def ndim(self) -> int:
        """Dimensions of the space."""
        return self.forward.ndim

    @property
    def axes(self) -> tuple[str, ...] | None:
        """Names of the coordinates of its points."""
        return self.forward.axes

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points, to a hundredth of a voxel; NaN where the transform says nothing."""
        p = np.asarray(points, float)
        flat = p.reshape(-1, p.shape[-1]) if p.ndim else p
        found = apply_to_points(self.forward, flat, inverse=True)
        return np.where(found.outside[:, None], np.nan, found.points).reshape(p.shape)

    def on(self, grid: Grid) -> Transform:
        """Sample it in memory, so that it can warp images and be written.

        Parameters
        ----------
        grid : Grid
            Of the moving image: `Registration.aligned` brought back lies on it. Large ones:
            `itkstream.write_inverse`.

        Returns
        -------
        Transform
            A displacement field on the grid, then an affine.

        Raises
        ------
        InputError
            Where the grid has other axes or another unit.

        Examples
        --------
        >>> registration.inverse.on(moving.grid).ndim
        3
        """
        return invert_transform(self.forward, grid)

    def __repr__(self) -> str:
        return f"InverseTransform({self.forward!r})"

    def _repr_html_(self) -> str:
        """The transform that is inverted, as Jupyter shows it."""
        return card("InverseTransform", (f"of {self.forward!r}",))

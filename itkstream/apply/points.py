"""Single points through transforms, forward and back; stored fields are read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.apply.inversion import invertible_links, prepare_bounds
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    DisplacementField,
    Grid,
    Image,
    Landmarks,
    Transform,
    compose,
    steps_of,
)
from itkstream.geometry.chains import FieldChain
from itkstream.geometry.transforms import GridTransform
from itkstream.numerics.sampling.inverse import InverseProblem

__all__ = ["InverseMap", "MappedPoints", "TargetErrors", "apply_to_points", "nearest_values"]

# Voxels per axis of the parts of a field whose points are mapped together.
_PART = 128
# Tolerances of the inverse beyond which a point counts as without solution.
_UNSOLVED = 10


@dataclass(frozen=True, eq=False)
class MappedPoints:
    """Mapped points, (m, n), and which of them some transform says nothing about, (m,).

    Those are beyond a displacement field, where its edge value was taken, beyond the lattice of
    B-splines or of piecewise affines; and, of an inverse, points no solution was found for.
    """

    points: NDArray[np.float64]
    outside: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TargetErrors:
    """Target registration errors of landmarks, (m,), in µm, and their names."""

    um: NDArray[np.float64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, transform: Transform, landmarks: Landmarks) -> TargetErrors:
        """Measure how far from its moving point a transform puts each fixed one."""
        away = apply_to_points(transform, landmarks.fixed).points - landmarks.moving
        return cls(np.linalg.norm(away, axis=1), landmarks.names)

    def facts(self) -> dict[str, Any]:
        """Summarise them for a report."""
        worst = int(np.argmax(self.um))
        return {
            "count": len(self.um),
            "median_um": float(np.median(self.um)),
            "max_um": float(self.um[worst]),
            "worst": self.names[worst],
        }

    def __str__(self) -> str:
        worst = int(np.argmax(self.um))
        median, largest = (_in_words(float(um)) for um in (np.median(self.um), self.um[worst]))
        return f"median {median} µm, at most {largest} µm ({self.names[worst]})"


def _in_words(um: float) -> str:
    """Three digits, or whole µm of long lengths."""
    return f"{um:.3g}" if um < 1000 else f"{um:,.0f}"


def apply_to_points(
    transform: Transform, points: ArrayLike, *, inverse: bool = False
) -> MappedPoints:
    """Map points, forward or back; stored fields are read part by part.

    Parameters
    ----------
    transform : Transform
        Fixed to moving points. Back go affines, displacement fields, and chains of these.
    points : array_like, (m, n)
        Fixed points; moving ones for the inverse.
    inverse : bool
        Find the fixed points that map to these.

    Returns
    -------
    MappedPoints
        The mapped points, in the order given.

    Raises
    ------
    InputError
        Where the points have another dimension or are not finite.

    Examples
    --------
    >>> mapped = itkstream.transform.apply_to_points(registration.transform, [[20.0, 40.0, 40.0]])
    >>> mapped.points.shape, mapped.outside
    ((1, 3), array([False]))
    """
    p = np.asarray(points, float)
    if p.ndim != 2 or p.shape[1] != transform.ndim:
        raise InputError(
            f"a {transform.ndim}-D transform maps points of shape (m, {transform.ndim}); got "
            f"{p.shape}"
        )
    if not np.isfinite(p).all():
        raise InputError(f"points must be finite; {int((~np.isfinite(p)).any(1).sum())} are not")
    simple = compose(transform)
    if isinstance(simple, AffineTransform):
        affine = simple.inverse() if inverse else simple
        return MappedPoints(affine.apply(p), np.zeros(len(p), bool))
    return InverseMap.of(simple)(p) if inverse else _map_forward(simple, p)


def _map_forward(transform: Transform, p: NDArray[np.float64]) -> MappedPoints:
    outside = np.zeros(len(p), bool)
    for step in steps_of(transform):
        if isinstance(step, GridTransform):
            outside |= ~step.reaches(p)
        if isinstance(step, DisplacementField):
            mapped = np.empty_like(p)
            for some in _neighbours(step.grid, p):
                mapped[some] = step.apply(p[some])
            p = mapped
        else:
            p = step.apply(p)
    return MappedPoints(p, outside)


@dataclass(frozen=True, eq=False)
class _FieldBack:
    """A field and the affine after it, and the bounds of the field, which hold for all points."""

    chain: FieldChain
    bounds: Any

    def __call__(self, p: NDArray[np.float64]) -> MappedPoints:
        """Map points back through both; parts of the field are read as they are needed."""
        field, affine = self.chain.field, self.chain.affine
        problem = InverseProblem(field.grid, field.grid, affine)
        origins, lost = np.empty_like(p), np.zeros(len(p), bool)
        for some in _neighbours(field.grid, affine.inverse().apply(p)):
            region = problem.reach_points(p[some], self.bounds)
            part = np.asarray(field.data[(*region, slice(None))])
            origins[some], error = problem.solve_points(part, region, p[some], self.bounds)
            lost[some] = error > _UNSOLVED * problem.tolerance_vox
        return MappedPoints(origins, lost | ~field.reaches(origins))


@dataclass(frozen=True, eq=False)
class InverseMap:
    """A transform made ready to map points back, piece after piece of a long table.

    The bounds of its fields, for which all of each is read, are found once.
    """

    links: tuple[AffineTransform | _FieldBack, ...]

    @classmethod
    def of(cls, transform: Transform) -> InverseMap:
        """Make a transform ready."""
        simple = compose(transform)
        if isinstance(simple, AffineTransform):
            return cls((simple.inverse(),))
        links: list[AffineTransform | _FieldBack] = []
        for link in reversed(invertible_links(simple)):
            if isinstance(link, FieldChain):
                links.append(_FieldBack(link, dask.compute(prepare_bounds(link.field))[0]))
            else:
                links.append(link.inverse())
        return cls(tuple(links))

    def __call__(self, points: NDArray[np.float64]) -> MappedPoints:
        """Map moving points (m, n) to fixed ones."""
        p, outside = points, np.zeros(len(points), bool)
        for link in self.links:
            if isinstance(link, AffineTransform):
                p = link.apply(p)
            else:
                mapped = link(p)
                p, outside = mapped.points, outside | mapped.outside
        return MappedPoints(p, outside)


def nearest_values(
    image: Image, points: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values of the voxels in which points (m, n) lie, and which lie in none, where they are 0.

    Points are on the axes of the image and in its unit; it is read part by part.
    """
    missed = ~image.grid.contains(points)
    values = np.zeros(len(points), image.dtype)
    inside = np.flatnonzero(~missed)
    # Half a voxel beyond the centres rounding may leave the image.
    top = np.subtract(image.shape, 1)
    index = np.clip(np.rint(image.grid.to_index(points[inside])).astype(np.int64), 0, top)
    for some in _neighbours(image.grid, points[inside]):
        first, last = index[some].min(axis=0), index[some].max(axis=0)
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        values[inside[some]] = np.asarray(image.data[box])[tuple((index[some] - first).T)]
    return values, missed


def _neighbours(grid: Grid, points: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Indices of points that lie together, so that each group reads a small part of a field."""
    if not len(points):
        return
    top = np.asarray(grid.shape) - 1
    cells = np.clip(grid.to_index(points), 0, top).astype(np.int64) // _PART
    _, which = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(which.ravel()[order])) + 1)

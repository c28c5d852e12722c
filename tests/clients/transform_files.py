"""Transform files of many geometries, with the points that every client has to find.

Run in the environment of itkstream; the clients, in environments of their own, need only what it
writes: files, and a manifest that names them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from itkstream.apply.resampling import apply_transform
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
)
from itkstream.geometry.itk_bridge import to_itk_image
from itkstream.io.transforms.files import write_transform

__all__ = ["Geometry", "geometries", "write_cases"]

AFFINE_FILES = ("affine.tfm", "affine.txt", "affine.mat", "affine.h5")
FIELD_FILES = ("field.h5", "field.nrrd", "field.mha", "field.nii.gz")
WHOLE_FILES = ("whole.h5", "whole.nrrd", "whole.mha", "whole.nii.gz")
SPLINE_FILES = ("spline.tfm", "spline.txt", "spline.h5")
BENT_FILES = ("bent.tfm", "bent.h5")
POINTS = 60


@dataclass(frozen=True)
class Geometry:
    """Where a fixed image, its displacement field and a moving image lie.

    Parameters
    ----------
    name : str
        What is odd about it.
    fixed, moving : Grid
        Lattices of the images.
    factor : int
        Voxels of the fixed image per voxel of the field, along each axis.
    """

    name: str
    fixed: Grid
    moving: Grid
    factor: int = 2


def geometries() -> list[Geometry]:
    """Plain, anisotropic, shifted, rotated, and 2-D.

    Returns
    -------
    list of Geometry
        The moving image holds every point the transforms lead to.
    """
    turned, other = _turn(0.4, -0.25, 0.15), _turn(-0.1, 0.3, 0.2)
    spacing, far = (0.5, 0.7, 2.0), (-150.0, 80.0, 210.0)
    plane = ((np.cos(0.3), -np.sin(0.3)), (np.sin(0.3), np.cos(0.3)))
    fixed = {
        "plain": Grid((24, 22, 20), (1, 1, 1)),
        "anisotropic": Grid((30, 26, 12), spacing, axes=("x", "y", "z")),
        "shifted": Grid((12, 26, 30), spacing[::-1], far, axes=("z", "y", "x")),
        "rotated": Grid((12, 26, 30), spacing[::-1], far, turned, ("z", "y", "x")),
        "plane": Grid((26, 30), (0.7, 0.5), (40, -90), plane, ("y", "x")),
    }
    turns = {"rotated": other}
    return [Geometry(k, g, _around(g, turns.get(k, ()))) for k, g in fixed.items()]


def _turn(a: float, b: float, c: float) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, Rotation.from_euler("xyz", (a, b, c)).as_matrix()))


def _around(fixed: Grid, direction: Any) -> Grid:
    """A moving image of other voxels that holds the fixed one and 40 % of its size around it."""
    n = fixed.ndim
    size = np.linalg.norm(np.ptp(fixed.corners(), axis=0)) * 1.4
    spacing = np.linspace(0.6, 1.1, n) * np.median(fixed.spacing)
    shape = np.ceil(size / spacing).astype(int) + 1
    centre = fixed.to_physical((np.asarray(fixed.shape) - 1) / 2)
    at_zero = Grid(tuple(shape), tuple(spacing), (0,) * n, direction, fixed.axes)
    origin = centre - at_zero.to_physical((shape - 1) / 2)
    return Grid(tuple(shape), tuple(spacing), tuple(origin), direction, fixed.axes)


def _transform(geometry: Geometry, seed: int) -> CompositeTransform:
    rng = np.random.default_rng(seed)
    fixed, n = geometry.fixed, geometry.fixed.ndim
    coarse = fixed.shrink((geometry.factor,) * n)
    vectors = rng.normal(size=(*coarse.shape, n)) * 2 * np.asarray(fixed.spacing)
    smooth = gaussian_filter(vectors, (*(1.5,) * n, 0), mode="nearest") * 4
    matrix = np.eye(n + 1)
    matrix[:-1, :-1] += rng.uniform(-0.06, 0.06, (n, n))
    centre = fixed.to_physical((np.asarray(fixed.shape) - 1) / 2)
    matrix[:-1, -1] = centre + 1.5 * np.asarray(fixed.spacing) - matrix[:-1, :-1] @ centre
    field = DisplacementField(smooth.astype(np.float32), coarse)
    return CompositeTransform((field, AffineTransform(matrix)))


def _splines(fixed: Grid) -> BSplineTransform:
    """Control points every 6 voxels, and further than the fixed image by two."""
    shape = tuple(int(np.ceil((n - 1) / 6)) + 5 for n in fixed.shape)
    lattice = Grid(
        shape,
        tuple(6 * h for h in fixed.spacing),
        tuple(fixed.to_physical(np.full(fixed.ndim, -12.0))),
        fixed.direction,
        fixed.axes,
    )
    rng = np.random.default_rng(3)
    coefficients = rng.normal(size=(*shape, fixed.ndim)) * 1.5 * np.asarray(fixed.spacing)
    return BSplineTransform(coefficients, lattice)


def write_cases(folder: Path) -> Path:
    """Write all files of all geometries.

    Parameters
    ----------
    folder : Path
        Empty.

    Returns
    -------
    Path
        The manifest.
    """
    cases = []
    for seed, geometry in enumerate(geometries()):
        place = folder / geometry.name
        place.mkdir(parents=True)
        cases.append(_write_geometry(place, geometry, _transform(geometry, seed)))
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(cases))
    return manifest


def _write_geometry(place: Path, geometry: Geometry, whole: CompositeTransform) -> dict[str, Any]:
    field, affine = whole.transforms
    axes, n = geometry.fixed.axes, geometry.fixed.ndim
    spline = _splines(geometry.fixed)
    images = _write_images(place, geometry, whole)
    points, nodes = _points(geometry), _nodes(field.grid)
    files: dict[str, list[list[float]]] = {}
    at_nodes: dict[str, list[list[float]]] = {}
    order = [axes.index(a) for a in sorted(axes)]
    named: list[tuple[tuple[str, ...], Transform]] = [
        (AFFINE_FILES, affine),
        (FIELD_FILES, field),
        (WHOLE_FILES, whole),
        (SPLINE_FILES, spline),
        (BENT_FILES, CompositeTransform((spline, affine))),
    ]
    for names, transform in named:
        for name in names:
            if n == 2 and name.endswith(".nii.gz"):
                continue
            write_transform(place / name, transform, axes)
            files[name] = transform.apply(points)[:, order].tolist()
            at_nodes[name] = transform.apply(nodes)[:, order].tolist()
    return {
        "name": geometry.name,
        "ndim": n,
        "folder": str(place),
        "points": points[:, order].tolist(),
        "mapped": files,
        "nodes": {"points": nodes[:, order].tolist(), "mapped": at_nodes},
        "voxel": min(geometry.moving.spacing),
        **images,
    }


def _nodes(field: Grid) -> NDArray[np.float64]:
    """Voxels of the field, in array-axis order."""
    rng = np.random.default_rng(8)
    shape = np.asarray(field.shape)
    return field.to_physical(rng.integers(1, shape - 1, (POINTS, len(shape))))


def _points(geometry: Geometry) -> NDArray[np.float64]:
    """Voxels of the fixed image between the outermost nodes of the field, in array-axis order.

    Beyond these nodes ITK, Slicer and this package continue a field in three ways.
    """
    shape = np.asarray(geometry.fixed.shape)
    rng = np.random.default_rng(9)
    index = rng.integers(geometry.factor, shape - geometry.factor, (POINTS, len(shape)))
    return geometry.fixed.to_physical(index)


def _write_images(place: Path, geometry: Geometry, whole: Transform) -> dict[str, Any]:
    """Ramps, whose linear interpolation gives back positions, and a texture with its result."""
    fixed, moving = geometry.fixed, geometry.moving
    middle = fixed.to_physical((np.asarray(fixed.shape) - 1) / 2)
    positions = moving.positions() - middle
    for name, axis in zip(moving.axes, range(moving.ndim), strict=True):
        _save(place / f"ramp_{name}.nrrd", positions[..., axis], moving)
    texture = gaussian_filter(np.random.default_rng(1).normal(size=moving.shape), 1.5) * 1000
    voxels = texture.astype(np.float32)
    _save(place / "fixed.nrrd", np.zeros(fixed.shape), fixed)
    _save(place / "moving.nrrd", voxels, moving)
    aligned = apply_transform(
        Image(np.zeros(fixed.shape, np.float32), fixed), Image(voxels, moving), whole
    )
    _save(place / "aligned.nrrd", aligned, fixed)
    order = [fixed.axes.index(a) for a in sorted(fixed.axes)]
    return {"middle": middle[order].tolist(), "factor": geometry.factor}


def _save(path: Path, voxels: NDArray[Any], grid: Grid) -> None:
    sitk.WriteImage(to_itk_image(voxels.astype(np.float32), grid), str(path))


if __name__ == "__main__":
    write_cases(Path(sys.argv[1]))

"""elastix' transform parameter files, read: matrices, B-splines, and chains of these."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import CompositeTransform, Transform, default_axes
from itkstream.io.itk_entries import bspline_entry
from itkstream.itk_bridge import from_itk_geometry, from_itk_transform

__all__ = ["is_elastix", "read_elastix_transform"]

Entries = dict[str, list[str]]

_LINE = re.compile(r"^\s*\((\S+)\s+(.*)\)\s*(//.*)?$")
_HEAD_BYTES = 65536
# elastix has these names for the file of the transform that acts first.
_BEFORE = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")

_LINEAR: dict[str, dict[int, Callable[[], sitk.Transform]]] = {
    "AffineTransform": {2: lambda: sitk.AffineTransform(2), 3: lambda: sitk.AffineTransform(3)},
    "EulerTransform": {2: sitk.Euler2DTransform, 3: sitk.Euler3DTransform},
    "SimilarityTransform": {2: sitk.Similarity2DTransform, 3: sitk.Similarity3DTransform},
    "TranslationTransform": {
        2: lambda: sitk.TranslationTransform(2),
        3: lambda: sitk.TranslationTransform(3),
    },
}
_SPLINES = ("BSplineTransform", "RecursiveBSplineTransform")


def is_elastix(path: Path) -> bool:
    """Whether a text file is one of elastix' transform parameter files.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    bool
        True where it names a transform as elastix does; its end need not be there.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return re.search(rb"^\s*\((Transform|NumberOfParameters)\s", head, re.MULTILINE) is not None


def read_elastix_transform(path: Path, axes: Sequence[str] | None = None) -> Transform:
    """Read a transform parameter file of elastix, and those it starts from.

    Parameters
    ----------
    path : Path
        ``TransformParameters.0.txt`` or the like.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    Transform
        From fixed to moving points, as elastix has it; with initial transforms, a composite.

    Raises
    ------
    MissingDataError
        Where an initial transform's file is missing.
    InputError
        Where the file is cut off, or holds a transform of another kind.
    """
    steps: list[Transform] = []
    seen: list[Path] = []
    here: Path | None = path
    while here is not None:
        if here.resolve() in seen:
            raise InputError(f"{path} starts from itself, by way of {here.name}")
        seen.append(here.resolve())
        entries = _parse(here)
        steps.insert(0, _one(entries, here, axes))
        here = _before(entries, here)
    return steps[0] if len(steps) == 1 else CompositeTransform(tuple(steps))


def _parse(path: Path) -> Entries:
    entries: Entries = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _LINE.match(line)
        if found:
            entries[found[1]] = shlex.split(found[2])
    return entries


def _one(entries: Entries, path: Path, axes: Sequence[str] | None) -> Transform:
    kind = _words(entries, "Transform", path)[0]
    ndim = int(_numbers(entries, "FixedImageDimension", path, 1)[0])
    if ndim not in (2, 3) or _numbers(entries, "MovingImageDimension", path, 1)[0] != ndim:
        raise InputError(f"{path} is of no 2-D or 3-D image pair: only these are read")
    if kind in _SPLINES:
        return _spline(entries, path, tuple(axes or default_axes(ndim)))
    if kind not in _LINEAR:
        known = ", ".join((*_LINEAR, *_SPLINES))
        raise InputError(
            f"{path} holds elastix' {kind}, which is not read; known are {known}. Let transformix "
            "write a displacement field (-def all) and read that"
        )
    itk = _LINEAR[kind][ndim]()
    count = len(itk.GetParameters())
    itk.SetParameters(_numbers(entries, "TransformParameters", path, count).tolist())
    if kind != "TranslationTransform":
        centre = _numbers(entries, "CenterOfRotationPoint", path, ndim).tolist()
        itk.SetFixedParameters([*centre, *itk.GetFixedParameters()[ndim:]])
    if entries.get("ComputeZYX", ["false"])[0] == "true":
        itk.SetComputeZYX(True)
    return from_itk_transform(itk, axes)


def _spline(entries: Entries, path: Path, axes: tuple[str, ...]) -> Transform:
    n = len(axes)
    if entries.get("UseCyclicTransform", ["false"])[0] == "true":
        raise InputError(f"{path} holds cyclic B-splines, which are not read")
    size = tuple(_numbers(entries, "GridSize", path, n).astype(int))
    first = _numbers(entries, "GridIndex", path, n)
    spacing, origin = (_numbers(entries, f"Grid{k}", path, n) for k in ("Spacing", "Origin"))
    # elastix writes matrices column by column.
    direction = _numbers(entries, "GridDirection", path, n * n).reshape(n, n).T
    from_index_0 = from_itk_geometry(size, spacing, origin, direction)
    grid = replace(from_index_0, origin=tuple(from_index_0.to_physical(first)))
    values = _numbers(entries, "TransformParameters", path, grid.size * n)
    order = int(_numbers(entries, "BSplineTransformSplineOrder", path, 1)[0])
    return bspline_entry(values, grid, order, axes)


def _before(entries: Entries, path: Path) -> Path | None:
    named = next((entries[key][0] for key in _BEFORE if key in entries), "NoInitialTransform")
    if named == "NoInitialTransform":
        return None
    if entries.get("HowToCombineTransforms", ["Compose"])[0] != "Compose":
        raise InputError(
            f"{path} adds to its initial transform; only transforms that are composed are read "
            '(HowToCombineTransforms "Compose")'
        )
    for place in (Path(named), path.parent / named, path.parent / Path(named).name):
        if place.is_file():
            return place
    raise MissingDataError(f"{path} starts from {named}, which is neither there nor beside it")


def _words(entries: Entries, key: str, path: Path) -> list[str]:
    if key not in entries:
        raise InputError(f"{path} has no ({key} ...): is it whole, and written by elastix?")
    return entries[key]


def _numbers(entries: Entries, key: str, path: Path, count: int) -> NDArray[np.float64]:
    words = _words(entries, key, path)
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{path}: ({key} ...) holds no number: {error}") from error
    if len(values) != count:
        raise InputError(f"{path}: ({key} ...) has {len(values)} numbers; expected {count}")
    return values

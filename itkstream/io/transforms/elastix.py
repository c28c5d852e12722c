"""elastix' transform parameter files, read: matrices, B-splines, fields, and chains of these.

What an entry means is understood, or the file refused; entries that only say how an image is
resampled are passed over.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import CompositeTransform, Transform
from itkstream.geometry.itk_bridge import from_itk_geometry, from_itk_transform
from itkstream.io.transforms.displacement_images import read_displacement_image
from itkstream.io.transforms.itk.parameters import bspline_of
from itkstream.io.transforms.itk.transform_files import open_itk_transform
from itkstream.io.transforms.vectors import NameAxes

__all__ = ["is_elastix", "read_elastix_transform"]

Entries = dict[str, list[str]]

_LINE = re.compile(r"^\s*\((\S+)\s+(.*)\)\s*(//.*)?$")
_NOTHING = re.compile(r"^\s*(//.*)?$")
_HEAD_BYTES = 65536
_NO_FILE = "NoInitialTransform"
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
    """Whether a text file names a transform as elastix does; its end need not be there."""
    if path.suffix.lower() == ".toml":
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return re.search(rb"^\s*\((Transform|NumberOfParameters)\s", head, re.MULTILINE) is not None


def read_elastix_transform(path: Path, name_axes: NameAxes) -> Transform:
    """Read a transform parameter file of elastix, and those it starts from, as a composite.

    From fixed to moving points, as elastix has it.
    """
    steps: list[Transform] = []
    seen: list[Path] = []
    here: Path | None = path
    while here is not None:
        if here.resolve() in seen:
            raise InputError(f"{path} starts from itself, by way of {here.name}")
        seen.append(here.resolve())
        entries = _parse(here)
        steps.insert(0, _one(entries, here, name_axes))
        here = _before(entries, here)
    return steps[0] if len(steps) == 1 else CompositeTransform(tuple(steps))


def _parse(path: Path) -> Entries:
    if path.suffix.lower() == ".toml":
        return _parse_toml(path)
    entries: Entries = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            if _NOTHING.match(line):
                continue
            raise InputError(
                f"{path}: the line {line.strip()[:60]!r} is not understood: is the file whole?"
            )
        if found[1] in entries:
            raise InputError(f"{path} has ({found[1]} ...) twice")
        try:
            entries[found[1]] = shlex.split(found[2])
        except ValueError as error:
            raise InputError(f"{path}: ({found[1]} ...) is not understood: {error}") from error
    return entries


def _parse_toml(path: Path) -> Entries:
    """The same entries in elastix' newer format."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no TOML, as elastix writes it: {error}") from error
    lists = {key: v if isinstance(v, list) else [v] for key, v in found.items()}
    return {
        key: [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        for key, values in lists.items()
    }


def _one(entries: Entries, path: Path, name_axes: NameAxes) -> Transform:
    kind = _words(entries, "Transform", path)[0]
    if kind == "File":
        return open_itk_transform(_named(entries, "TransformFileName", path), name_axes)
    ndim = int(_numbers(entries, "FixedImageDimension", path, 1)[0])
    if ndim not in (2, 3) or _numbers(entries, "MovingImageDimension", path, 1)[0] != ndim:
        raise InputError(f"{path} is of no 2-D or 3-D image pair: only these are read")
    if not _flag(entries, "UseDirectionCosines", path, default=True):
        raise InputError(
            f'{path} has (UseDirectionCosines "false"): its points are not those of the images as '
            "they are turned. Where no image is turned write true there; else register anew with it"
        )
    if kind == "DeformationFieldTransform":
        return _field(entries, path, name_axes)
    if kind in _SPLINES:
        return _spline(entries, path, name_axes(ndim))
    if kind not in _LINEAR:
        known = ", ".join((*_LINEAR, *_SPLINES, "DeformationFieldTransform", "File"))
        raise InputError(
            f"{path} holds elastix' {kind}, which is not read; known are {known}. Let transformix "
            "write a displacement field (-def all) and read that"
        )
    return _linear(entries, path, kind, name_axes(ndim))


def _linear(entries: Entries, path: Path, kind: str, axes: tuple[str, ...]) -> Transform:
    ndim = len(axes)
    itk = _LINEAR[kind][ndim]()
    itk.SetParameters(_parameters(entries, path, len(itk.GetParameters())).tolist())
    if kind != "TranslationTransform":
        if "CenterOfRotation" in entries and "CenterOfRotationPoint" not in entries:
            raise InputError(
                f"{path} gives (CenterOfRotation ...) in voxels, as elastix did until 3.402: write "
                "it as a position, (CenterOfRotationPoint ...)"
            )
        centre = _numbers(entries, "CenterOfRotationPoint", path, ndim).tolist()
        itk.SetFixedParameters([*centre, *itk.GetFixedParameters()[ndim:]])
    if kind == "EulerTransform" and ndim == 3:
        itk.SetComputeZYX(_flag(entries, "ComputeZYX", path, default=False))
    return from_itk_transform(itk, axes)


def _field(entries: Entries, path: Path, name_axes: NameAxes) -> Transform:
    """A displacement image; elastix takes its nearest vector unless its file says otherwise."""
    order = entries.get("DeformationFieldInterpolationOrder", ["0"])
    if order != ["1"]:
        raise InputError(
            f"{path} has (DeformationFieldInterpolationOrder {' '.join(order)}), by default 0; "
            "fields are read that are interpolated linearly, 1"
        )
    return read_displacement_image(_named(entries, "DeformationFieldFileName", path), name_axes)


def _spline(entries: Entries, path: Path, axes: tuple[str, ...]) -> Transform:
    n = len(axes)
    if _flag(entries, "UseCyclicTransform", path, default=False):
        raise InputError(f"{path} holds cyclic B-splines, which are not read")
    size = [int(m) for m in _numbers(entries, "GridSize", path, n)]
    first = _numbers(entries, "GridIndex", path, n)
    spacing, origin = (_numbers(entries, f"Grid{k}", path, n) for k in ("Spacing", "Origin"))
    # elastix writes matrices column by column.
    direction = _numbers(entries, "GridDirection", path, n * n).reshape(n, n).T
    from_index_0 = from_itk_geometry(size, spacing, origin, direction)
    grid = replace(from_index_0, origin=tuple(from_index_0.to_physical(first)))
    values = _parameters(entries, path, grid.size * n)
    order = _numbers(entries, "BSplineTransformSplineOrder", path, 1)[0]
    if order not in (1, 2, 3):
        raise InputError(f"{path} has (BSplineTransformSplineOrder {order:g}); 1, 2 or 3 are read")
    return bspline_of(values, grid, int(order), axes)


def _before(entries: Entries, path: Path) -> Path | None:
    given = {key: _words(entries, key, path)[0] for key in _BEFORE if key in entries}
    if len(set(given.values())) > 1:
        raise InputError(f"{path} starts from two transforms: {given}")
    key, named = next(iter(given.items()), ("", _NO_FILE))
    if named == _NO_FILE:
        return None
    how = entries.get("HowToCombineTransforms")
    if how is None:
        raise InputError(
            f"{path} starts from {named} and does not say how they are combined: add "
            '(HowToCombineTransforms "Compose"), as elastix has it since 5.0, if it was so'
        )
    if how != ["Compose"]:
        raise InputError(
            f"{path} adds to its initial transform; only transforms that are composed are read "
            '(HowToCombineTransforms "Compose")'
        )
    return _named(entries, key, path)


def _named(entries: Entries, key: str, path: Path) -> Path:
    """A file that an entry names: as it stands, or beside the parameter file."""
    named = _words(entries, key, path)[0]
    for place in (Path(named), path.parent / named, path.parent / Path(named).name):
        if place.is_file():
            return place
    what = "starts from" if key in _BEFORE else f"has ({key} ...):"
    raise MissingDataError(f"{path} {what} {named}, which is neither there nor beside it")


def _parameters(entries: Entries, path: Path, count: int) -> NDArray[np.float64]:
    """The numbers of a transform, which may stand in a file of their own."""
    if "NumberOfParameters" in entries:
        stated = _numbers(entries, "NumberOfParameters", path, 1)[0]
        if stated != count:
            raise InputError(f"{path} has (NumberOfParameters {stated:g}); expected {count}")
    if not _flag(entries, "UseBinaryFormatForTransformationParameters", path, default=False):
        return _numbers(entries, "TransformParameters", path, count)
    data = _named(entries, "TransformParameters", path)
    content = data.read_bytes()
    if len(content) != 8 * count:
        raise InputError(f"{data} has {len(content)} bytes; expected {count} doubles")
    values = np.frombuffer(content, "<f8").astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{data} holds NaN or infinity")
    return values


def _flag(entries: Entries, key: str, path: Path, *, default: bool) -> bool:
    words = entries.get(key, [str(default).lower()])
    if words not in (["true"], ["false"]):
        raise InputError(f'{path}: ({key} ...) is "true" or "false"; got {" ".join(words)!r}')
    return words == ["true"]


def _words(entries: Entries, key: str, path: Path) -> list[str]:
    if not entries.get(key):
        raise InputError(f"{path} has no ({key} ...): is it whole, and written by elastix?")
    return entries[key]


def _numbers(entries: Entries, key: str, path: Path, count: int) -> NDArray[np.float64]:
    words = _words(entries, key, path)
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{path}: ({key} ...) holds no number: {error}") from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: ({key} ...) holds NaN or infinity")
    if len(values) != count:
        raise InputError(f"{path}: ({key} ...) has {len(values)} numbers; expected {count}")
    return values

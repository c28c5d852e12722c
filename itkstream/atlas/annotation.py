"""The annotation of a template: opened, and checked to lie over it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, UnknownSpacingError
from itkstream.geometry import Grid, Image, array_axes
from itkstream.io import open_image

__all__ = ["open_annotation"]


def open_annotation(given: str | os.PathLike[str] | Image, template: Image) -> Image:
    """Open an annotation in µm on the axes of its template; an `InputError` where it is none.

    A file that does not state its spacing has the voxels of the template.
    """
    found = given if isinstance(given, Image) else _open(given, template)
    name = found.name or "the annotation"
    if found.dtype.kind not in "iu":
        raise InputError(
            f"{name} holds {found.dtype} and an annotation holds whole numbers, the ids of "
            "regions: floats do not keep large ids apart. Save it as uint32"
        )
    if found.ndim != template.ndim:
        raise InputError(
            f"{name} has {found.ndim} axes and the template {template.ndim}: both are of one atlas"
        )
    if not found.grid.axes_stated:
        raise InputError(
            f"nothing says which axis of {name} is x, so that regions could be transposed: give "
            f"its grid axes, such as axes={array_axes(found.ndim)}"
        )
    found = found.in_unit("micrometer").reorder(template.grid.axes)
    _check_box(found.grid, template.grid.in_unit("micrometer"), name)
    return found


def _open(path: str | os.PathLike[str], template: Image) -> Image:
    """Open a file, with the voxels of the template where it states no spacing."""
    try:
        return open_image(path)
    except UnknownSpacingError as error:
        found = open_image(path, voxel_spacing=1.0, unit="micrometer")
        if found.ndim == template.ndim:
            found = found.reorder(template.grid.axes)
        if found.shape != template.shape:
            raise InputError(
                f"{path} has {found.shape} voxels, does not state their spacing, and the template "
                f"has {template.shape}: say --annotation-spacing, or open_image(..., "
                "voxel_spacing=)"
            ) from error
        return replace(found, grid=template.grid)


def _check_box(annotation: Grid, template: Grid, name: str) -> None:
    """Refuse an annotation whose box is not that of the template, to a voxel of the coarser."""
    boxes = [_box(annotation), _box(template)]
    slack = max(*annotation.spacing, *template.spacing)
    if np.abs(boxes[0] - boxes[1]).max() > slack:
        said = [_words(box, annotation.axes) for box in boxes]
        raise InputError(
            f"{name} does not lie over the template: it spans {said[0]} µm, and the template "
            f"{said[1]} µm. Both are of one atlas: check files and spacings"
        )


def _box(grid: Grid) -> NDArray[np.float64]:
    """The lowest and the highest coordinates of a lattice."""
    corners = grid.outer_corners().reshape(-1, grid.ndim)
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def _words(box: NDArray[np.float64], axes: tuple[str, ...]) -> str:
    spans = zip(axes, box[0], box[1], strict=True)
    return ", ".join(f"{axis} {low:.6g} to {high:.6g}" for axis, low, high in spans)

"""Line drawings of a report, as SVG: the warped grid, and where images and key points lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from itkstream.geometry import AffineTransform, Grid
from itkstream.report.planes import Plane

__all__ = ["inverse_errors", "lying", "warped_grid"]

_LINES = 24  # along the longer side
_STEPS = 150  # points of a line at most
_DOT = 0.004  # radius, of the drawing's width
_LARGEST_DOT = 5  # of the largest error, in radii of the others


def warped_grid(plane: Plane) -> str:
    """Draw straight lines of the moving tissue's lattice as the deformation bends them."""
    rows, columns = plane.fixed.shape
    apart = max(1, max(rows, columns) // _LINES)
    straight = np.moveaxis(np.indices((rows, columns), float), 0, -1)
    bent = straight + np.nan_to_num(plane.moves_um) / plane.pixel_um
    fine = max(1, max(rows, columns) // _STEPS)
    drawn = ""
    for name, points in (("straight", straight), ("bent", bent)):
        lines = [points[k, ::fine] for k in range(apart // 2, rows, apart)]
        lines += [points[::fine, k] for k in range(apart // 2, columns, apart)]
        drawn += _path(lines, name)
    return _svg((columns, rows), drawn)


def lying(fixed: Grid, moving: Grid, back: AffineTransform, points: dict[str, Any]) -> list[str]:
    """Draw both images' boxes and key points, seen along each axis, in the fixed image's space.

    `back` maps moving to fixed points; key points are lists of positions, those that agree and
    those that do not.
    """
    boxes = {
        "moving": back.apply(moving.outer_corners()),
        "fixed": fixed.outer_corners(),
    }
    order = sorted(range(fixed.ndim), key=lambda axis: fixed.axes[axis])
    kinds = {
        name: (np.array(found, float).reshape(-1, fixed.ndim), np.ones(len(found)))
        for name, found in points.items()
    }
    return [_projection(boxes, kinds, axes) for axes in combinations(order, 2)]


def inverse_errors(fixed: Grid, worst: Sequence[dict[str, Any]]) -> list[str]:
    """Draw points in the box of the fixed image, seen along each axis, by the size of their errors.

    They are as a certificate has them, the worst first; none are drawn where there is no error.
    """
    if not worst or not worst[0]["error_vox"] > 0:
        return []
    points = np.array([found["point"] for found in worst], float)
    sizes = np.array([found["error_vox"] for found in worst]) / worst[0]["error_vox"]
    dots = points, 1 + (_LARGEST_DOT - 1) * np.nan_to_num(sizes, posinf=1.0)
    order = sorted(range(fixed.ndim), key=lambda axis: fixed.axes[axis])
    boxes = {"fixed": fixed.outer_corners()}
    return [_projection(boxes, {"worst": dots}, axes) for axes in combinations(order, 2)]


def _projection(
    boxes: dict[str, NDArray[np.float64]],
    points: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    axes: Sequence[int],
) -> str:
    corners = np.concatenate(list(boxes.values()))[:, axes]
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.03 * float(max(high - low))
    size = high - low + 2 * margin
    drawn = ""
    for name, box in boxes.items():
        flat = box[:, axes] - low + margin
        outline = flat[ConvexHull(flat).vertices][:, ::-1]
        drawn += _path([np.concatenate([outline, outline[:1]])], f"box {name}")
    radius = _DOT * float(size[0])
    for name, (found, sizes) in points.items():
        dots = (
            f'<circle cx="{x:.4g}" cy="{y:.4g}" r="{times * radius:.3g}"/>'
            for (x, y), times in zip(found[:, axes] - low + margin, sizes, strict=True)
        )
        drawn += f'<g class="dots {name}">{"".join(dots)}</g>'
    return _svg((float(size[0]), float(size[1])), drawn)


def _path(lines: Iterable[NDArray[np.float64]], name: str) -> str:
    """Draw lines through points given as (row, column)."""
    parts = ("M" + " ".join(f"{x:.5g},{y:.5g}" for y, x in line) for line in lines)
    return f'<path class="{name}" d="{"".join(parts)}"/>'


def _svg(size: tuple[float, float], inside: str) -> str:
    width, height = size
    return (
        f'<svg viewBox="0 0 {width:.6g} {height:.6g}" xmlns="http://www.w3.org/2000/svg" '
        f'aria-hidden="true">{inside}</svg>'
    )

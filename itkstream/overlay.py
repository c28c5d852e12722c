"""Pictures of two images laid over each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import UNIT_SIGNS, Grid
from itkstream.geometry.image import Image
from itkstream.geometry.lazy_array import ArraySource
from itkstream.geometry.shown.pictures import plane_png, stretched
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.outputs import claim_file

__all__ = ["OverlayStyle", "overlay_rgb", "plane_png", "save_overlay", "save_plane"]


def __dir__() -> list[str]:
    return __all__


_INK = "0.85"
_MARGIN, _GAP, _HEAD = 0.3, 0.12, 0.45  # inches


@dataclass(frozen=True)
class OverlayStyle:
    """Contrast, titles and size of an overlay.

    Parameters
    ----------
    slab : float
        Thickness of the maximum projection about the middle of each axis, in the grid's unit;
        0 shows the middle plane alone.
    contrast : (float, float)
        Percentiles of each picture that become black and full colour.
    titles : (str, str)
        What stands above the two overlays.
    width : float
        Width of the picture in inches.
    dpi : int
        Dots per inch.

    Raises
    ------
    InputError
        Where the percentiles are out of order or the slab is negative.

    Examples
    --------
    >>> itkstream.overlay.OverlayStyle(slab=10.0, titles=("as they lie", "registered")).dpi
    130
    """

    slab: float = 0.0
    contrast: tuple[float, float] = (35.0, 99.7)
    titles: tuple[str, str] = ("before", "after")
    width: float = 13.0
    dpi: int = 130

    def __post_init__(self) -> None:
        low, high = self.contrast
        if not 0 <= low < high <= 100:
            raise InputError(f"contrast needs percentiles 0 <= low < high <= 100; got {low, high}")
        if not (math.isfinite(self.slab) and self.slab >= 0):
            raise InputError(f"slab must be a finite thickness >= 0; got {self.slab}")


def overlay_rgb(
    fixed: NDArray[Any], moving: NDArray[Any], contrast: tuple[float, float] = (35.0, 99.7)
) -> NDArray[np.float32]:
    """Colour two pictures: the first magenta, the second green, both together white.

    Parameters
    ----------
    fixed, moving : ndarray, (rows, columns)
        Pictures of one shape; what is 0 or not finite is black.
    contrast : (float, float)
        Percentiles of each picture that become black and full colour.

    Returns
    -------
    ndarray of float32, (rows, columns, 3)
        Colours between 0 and 1.

    Examples
    --------
    >>> plane = fixed.data[fixed.shape[0] // 2]
    >>> itkstream.overlay.overlay_rgb(plane, plane).shape[-1]
    3
    """
    magenta, green = stretched(fixed, contrast), stretched(moving, contrast)
    return np.stack([magenta, green, magenta], axis=-1)


def save_overlay(
    path: str | Path,
    fixed: ArraySource,
    before: ArraySource,
    after: ArraySource,
    grid: Grid,
    style: OverlayStyle | None = None,
) -> Path:
    """Draw the fixed image magenta and the moving image green, before and after registration.

    Each of the planes through the middle is drawn to scale; only the slabs shown are read.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; a picture that is there is replaced.
    fixed : ArraySource
        The fixed image.
    before : ArraySource
        The moving image on the fixed grid, not registered.
    after : ArraySource
        The moving image on the fixed grid, registered.
    grid : Grid
        The grid all three lie on.
    style : OverlayStyle, optional
        Contrast, titles, size.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        Where a shape differs from the grid's, the name does not end in ``.png``, or the picture
        would be written over one of the images.

    Examples
    --------
    >>> still = itkstream.transform.apply_global_affine(fixed, moving, None, None, np.eye(4))
    >>> aligned = registration.aligned.read()
    >>> itkstream.overlay.save_overlay("overlay.png", fixed.read(), still, aligned, fixed.grid).name
    'overlay.png'
    """
    style = style or OverlayStyle()
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise InputError(f"pictures are written as .png; got {target.name}")
    check_apart(target, fixed, before, after)
    for name, array in (("fixed", fixed), ("before", before), ("after", after)):
        if tuple(array.shape) != grid.shape:
            raise InputError(
                f"{name} must lie on the grid, of shape {grid.shape}; got {tuple(array.shape)}"
            )
    cuts = [_cut(fixed, before, after, grid, axes, style) for axes in _planes(grid)]
    figure = _draw(cuts, grid, style)
    with claim_file(target, overwrite=True) as partial:
        figure.savefig(partial, dpi=style.dpi, facecolor="black", format="png")
    return target


def save_plane(path: str | Path, image: Image) -> Path:
    """Draw the middle plane of an image in grey; only that is read.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; a picture that is there is replaced.
    image : Image
        Of 2 or 3 axes; of three, the plane across the first in the order z, y, x is drawn.

    Returns
    -------
    Path
        `path`.

    Examples
    --------
    >>> itkstream.overlay.save_plane("plane.png", fixed)
    PosixPath('plane.png')
    """
    Path(path).write_bytes(plane_png(image))
    return Path(path)


@dataclass(frozen=True)
class _Cut:
    """One plane: its axes (horizontal, vertical), its extent, and the two coloured pictures."""

    axes: tuple[int, int]
    extent: tuple[float, float]
    pictures: tuple[NDArray[np.float32], NDArray[np.float32]]


def _planes(grid: Grid) -> list[tuple[int, int]]:
    """Axis pairs (horizontal, vertical), x before y before z, whatever the array order."""
    order = sorted(range(grid.ndim), key=lambda axis: grid.axes[axis])
    return list(combinations(order, 2))


def _cut(
    fixed: ArraySource,
    before: ArraySource,
    after: ArraySource,
    grid: Grid,
    axes: tuple[int, int],
    style: OverlayStyle,
) -> _Cut:
    parts = [_slab(array, grid, axes, style.slab) for array in (fixed, before, after)]
    extent = tuple(grid.shape[axis] * grid.spacing[axis] for axis in axes)
    pictures = tuple(overlay_rgb(parts[0], part, style.contrast) for part in parts[1:])
    return _Cut(axes, (extent[0], extent[1]), (pictures[0], pictures[1]))


def _slab(array: ArraySource, grid: Grid, axes: tuple[int, int], thickness: float) -> NDArray[Any]:
    """The middle of an array as rows (vertical axis) and columns (horizontal axis)."""
    key = [slice(0, n) for n in grid.shape]
    across = [axis for axis in range(grid.ndim) if axis not in axes]
    for axis in across:
        n = grid.shape[axis]
        planes = min(n, max(1, round(thickness / grid.spacing[axis])))
        start = (n - planes) // 2
        key[axis] = slice(start, start + planes)
    flat = np.asarray(array[tuple(key)])
    if across:
        flat = flat.max(axis=across[0])
    return flat if axes[0] > axes[1] else flat.T


def _draw(cuts: list[_Cut], grid: Grid, style: OverlayStyle) -> Any:
    # The figure without pyplot: no window, no global state, whatever backend the caller set.
    from matplotlib.figure import Figure

    rows = [[(cut, which) for cut in cuts] for which in (0, 1)]
    if len(cuts) == 1:
        rows = [rows[0] + rows[1]]
    total = sum(cut.extent[0] for cut, _ in rows[0])
    inch = (style.width - 2 * _MARGIN - _GAP * (len(rows[0]) - 1)) / total
    step = max(cut.extent[1] for cut in cuts) * inch + _HEAD
    height = len(rows) * step + 0.6
    figure = Figure(figsize=(style.width, height), facecolor="black")
    size = np.array([style.width, height, style.width, height])
    for k, row in enumerate(rows):
        top, left = height - 0.1 - k * step, _MARGIN
        for n, (cut, which) in enumerate(row):
            if n == 0 or len(cuts) == 1:
                spot = (left / style.width, (top - _HEAD / 2) / height)
                figure.text(*spot, style.titles[which], color="white", fontsize=14, va="center")
            wide, high = (length * inch for length in cut.extent)
            box = np.array([left, top - _HEAD - high, wide, high]) / size
            _panel(figure.add_axes(tuple(box)), cut, which, grid)
            left += wide + _GAP
    _legend(figure, style.width, height)
    return figure


def _panel(axes: Any, cut: _Cut, which: int, grid: Grid) -> None:
    across, down = cut.extent
    axes.imshow(
        cut.pictures[which],
        extent=(0, across, down, 0),
        interpolation="nearest",
        aspect="auto",  # the axes box has the plane's proportions already
    )
    axes.set_axis_off()
    names = "".join(grid.axes[axis] for axis in cut.axes)
    axes.text(0.02 * across, 0.02 * across, names, color=_INK, fontsize=10, va="top")
    bar = _round_length(min(np.multiply(grid.shape, grid.spacing)) / 3)
    x, y = 0.97 * across, down - 0.03 * across
    axes.plot([x - bar, x], [y, y], color="white", lw=2.5, solid_capstyle="butt")
    unit = UNIT_SIGNS[grid.unit]
    axes.text(
        x - bar / 2, y - 0.015 * across, f"{bar:g} {unit}", color="white", fontsize=8,
        ha="center", va="bottom",
    )  # fmt: skip
    axes.set_xlim(0, across)
    axes.set_ylim(down, 0)


def _legend(figure: Any, width: float, height: float) -> None:
    left = _MARGIN
    for word, colour in (("fixed", "#ff40ff"), ("moving", "#34e04a"), ("both", "#ffffff")):
        spot = (left / width, 0.25 / height)
        figure.text(*spot, f"\u25cf {word}", color=colour, fontsize=11, va="center")
        left += 0.45 + 0.09 * len(word)


def _round_length(length: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length)

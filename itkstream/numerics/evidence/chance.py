"""Local correlation that unrelated tissue reaches: parts of a pair, wrongly laid on each other.

A part of the fixed image is compared with other parts of the aligned one, turned over too, as they
lie and after a deformation that does its best. What a registration reaches must be judged beside
that, on the same level: smooth tissue, soft fields and coarse voxels raise it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid, Image, Slices
from itkstream.numerics.deformation.correlation import local_correlation
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.engines import deform_block
from itkstream.numerics.evidence.quality import (
    WINDOW_RADIUS_VOX,
    local_correlation_in_tissue,
)
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_mapped
from itkstream.numerics.threads import each_of

__all__ = ["ChanceLevel", "correlation_by_chance", "find_chance"]

_PARTS, _EDGE = 4, 40
_LEAST_TISSUE = 0.3
_SEED = 3


@dataclass(frozen=True)
class ChanceLevel:
    """Squared local correlation that unrelated parts of two images reach.

    Parameters
    ----------
    median, p95 : float
        Of the voxels of all wrong places, after a deformation; NaN where there was none.
    mean, most : float
        Their mean, and the mean of the wrong place where it is largest.
    reached : float
        The mean of the pair as it is registered, in the tissue: to be compared with these two.
    offsets : int
        Wrong places that were tried.
    """

    median: float
    p95: float
    mean: float
    most: float
    reached: float
    offsets: int

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        numbers = {
            "local_correlation_median": self.median,
            "local_correlation_p95": self.p95,
            "local_correlation_mean": self.mean,
            "local_correlation_most": self.most,
            "local_correlation_reached": self.reached,
        }
        known = {name: round(n, 5) if np.isfinite(n) else None for name, n in numbers.items()}
        return {**known, "offsets": self.offsets}

    def describe(self) -> str:
        """The level in words."""
        if not self.offsets:
            return "too little tissue to tell what local correlation chance reaches"
        return f"local correlation {self.mean:.4f} by chance, {self.reached:.4f} as registered"


def find_chance(
    fixed: Image, aligned: NDArray[Any], tissue: NDArray[np.bool_], settings: DescentSettings
) -> ChanceLevel:
    """Find the chance level of a fixed image and a moving one resampled on it.

    NaN voxels do not count; `settings` are those of the deformation. Shapes: `aligned`, `tissue`
    fixed.shape.
    """
    counts = tissue & np.isfinite(aligned)
    voxels = np.asarray(fixed.read(), np.float32)

    def measured(place: tuple[Slices, Slices, tuple[int, ...]]) -> NDArray[np.float32]:
        here, other, turned = place
        flipped = np.ascontiguousarray(np.flip(aligned[other], turned), np.float32)
        best = _deformed(voxels[here], flipped, fixed.grid.crop(here), settings)
        return _squares(voxels[here], best, counts[here] & np.flip(counts[other], turned))

    found = each_of(measured, _wrong_places(counts, np.random.default_rng(_SEED)))
    squares = np.concatenate([np.empty(0), *found])
    if not squares.size:
        return ChanceLevel(np.nan, np.nan, np.nan, np.nan, np.nan, 0)
    reached = _squares(voxels, np.asarray(aligned, np.float32), counts)
    return ChanceLevel(
        median=float(np.median(squares)),
        p95=float(np.percentile(squares, 95)),
        mean=float(squares.mean()),
        most=max(float(part.mean()) for part in found if part.size),
        reached=float(reached.mean()),
        offsets=len(found),
    )


def correlation_by_chance(
    fixed: NDArray[Any], aligned: NDArray[Any], tissue: NDArray[np.bool_]
) -> float:
    """Mean squared local correlation in the tissue with the aligned image turned over, any way.

    Shapes: `aligned`, `tissue` fixed.shape.
    """
    axes = [axis for axis, n in enumerate(fixed.shape) if n > 1]
    turns = [c for k in range(1, len(axes) + 1) for c in combinations(axes, k)]
    found = [
        local_correlation_in_tissue(fixed, np.flip(aligned, turned), tissue) for turned in turns
    ]
    return float(np.mean(found)) if found else 0.0


def _squares(
    fixed: NDArray[np.float32], aligned: NDArray[np.float32], where: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Squared local correlation of the voxels where it is known."""
    squares = local_correlation(fixed, aligned, WINDOW_RADIUS_VOX)[where]
    return np.asarray(squares[np.isfinite(squares)])


def _deformed(
    fixed: NDArray[np.float32],
    moving: NDArray[np.float32],
    grid: Grid,
    settings: DescentSettings,
) -> NDArray[np.float32]:
    """The second image on the first after a deformation that does its best."""
    still = AffineTransform(np.eye(grid.ndim + 1))
    mapping = deform_block(Image(fixed, grid), Image(moving, grid), still, settings).mapping
    if mapping is None:
        return moving
    return np.asarray(warp_mapped(Image(moving, grid), mapping, NAN_OUTSIDE), np.float32)


def _wrong_places(
    counts: NDArray[np.bool_], rng: np.random.Generator
) -> Iterator[tuple[Slices, Slices, tuple[int, ...]]]:
    """Two boxes that hold tissue, and the axes along which the second is turned over."""
    size = tuple(min(n, _EDGE) for n in counts.shape)
    axes = [axis for axis, n in enumerate(size) if n > 1]
    turns = [c for k in range(1, len(axes) + 1) for c in combinations(axes, k)]
    corners = list(_corners(counts, size))
    for k in range(_PARTS if corners else 0):
        here, other = (corners[int(rng.integers(len(corners)))] for _ in range(2))
        yield _box(here, size), _box(other, size), turns[k % len(turns)]


def _corners(counts: NDArray[np.bool_], size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """First voxels of boxes at half their size that hold much tissue."""
    along = [
        np.unique(np.linspace(0, n - m, max(1, 2 * (n // m))).round().astype(int))
        for n, m in zip(counts.shape, size, strict=True)
    ]
    boxes = [tuple(map(int, corner)) for corner in product(*along)]
    shares = np.array([counts[_box(c, size)].mean() for c in boxes])
    for corner, share in zip(boxes, shares, strict=True):
        if share > 0 and share >= _LEAST_TISSUE * shares.max():
            yield corner


def _box(corner: Sequence[int], size: Sequence[int]) -> Slices:
    return tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))

"""Summary of an error map over the tissue: quantiles, shares, and boxes of the worst regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid, Image, Slices

__all__ = ["ErrorSummary", "WorstRegion", "summarise_error"]

# Cells per axis in which regions are told apart; radii are counted between powers of this base.
_CELLS = 32
_BINS = np.geomspace(1e-3, 1e4, 1401)
# A cell is bad where so much of its tissue may be more than five voxels off, or is not known.
_BAD_SHARE, _FAR_VOX = 0.5, 5.0
_REGIONS = 20


@dataclass(frozen=True)
class WorstRegion:
    """A box of the fixed image where much tissue may be far off, or nothing is known.

    Parameters
    ----------
    box : tuple of (int, int)
        First voxel and the one after the last, per array axis.
    share : float
        Of all tissue.
    median_um : float or None
        Median radius of what is known there.
    """

    box: tuple[tuple[int, int], ...]
    share: float
    median_um: float | None


@dataclass(frozen=True)
class ErrorSummary:
    """Numbers of an error map over the tissue.

    Parameters
    ----------
    median_um, p95_um : float or None
        Of the radii that are known.
    shares : dict
        ``share_over_2_vox`` and ``share_over_5_vox``, whose radius is larger than so many of the
        smallest fixed voxel spacing, and ``share_unknown``: shares of the tissue.
    tissue_voxels : int
        Fixed voxels of tissue, about.
    regions : tuple of WorstRegion
        The largest first.
    """

    median_um: float | None
    p95_um: float | None
    shares: dict[str, float]
    tissue_voxels: int
    regions: tuple[WorstRegion, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        return {
            "median_um": self.median_um,
            "p95_um": self.p95_um,
            **self.shares,
            "tissue_voxels": self.tissue_voxels,
            "regions": [
                {"box": [list(span) for span in r.box], "share": r.share, "median_um": r.median_um}
                for r in self.regions
            ],
        }

    def describe(self, unit: str) -> str:
        """The summary in words."""
        if self.median_um is None or self.p95_um is None:
            return "nothing can be said of how far off the tissue is"
        return (
            f"95 % of places are within {self.median_um:.3g} {unit}s in the median of the tissue, "
            f"{self.p95_um:.3g} at its 95th percentile; "
            f"{self.shares['share_over_2_vox']:.1%} of it may be more than 2 voxels off, of "
            f"{self.shares['share_unknown']:.1%} nothing is known"
        )


def summarise_error(error: Image, tissue: Image, fixed: Grid) -> ErrorSummary:
    """Summarise an error map over a mask of the fixed image of any resolution, slab by slab."""
    voxel = fixed.least_spacing
    cells = tuple(-(-n // _CELLS) for n in error.shape)
    counts = np.zeros(len(_BINS) - 1, np.int64)
    total = over2 = over5 = unknown = 0
    found = []
    for start in range(0, error.shape[0], cells[0]):
        slab = (slice(start, min(start + cells[0], error.shape[0])),)
        part = error[slab]
        radii = np.asarray(part.read(), np.float32)
        inside = _mask_at(tissue, part.grid)
        known = radii[inside & np.isfinite(radii)]
        counts += np.histogram(np.clip(known, _BINS[0], _BINS[-1]), _BINS)[0]
        total += int(inside.sum())
        unknown += int(inside.sum()) - known.size
        over2 += int((known > 2 * voxel).sum())
        over5 += int((known > _FAR_VOX * voxel).sum())
        found.append(_cell_numbers(radii, inside, _FAR_VOX * voxel, cells))
    shares = {"share_over_2_vox": over2, "share_over_5_vox": over5, "share_unknown": unknown}
    steps = np.array(fixed.shape) / error.shape
    return ErrorSummary(
        _quantile(counts, 0.5),
        _quantile(counts, 0.95),
        {name: round(n / max(total, 1), 5) for name, n in shares.items()},
        int(tissue.read().sum() * fixed.size / tissue.grid.size),
        _worst_regions(np.concatenate(found, axis=1), cells, fixed, steps, max(total, 1)),
    )


def _mask_at(mask: Image, grid: Grid) -> NDArray[np.bool_]:
    """A mask at the points of another lattice."""
    index = np.rint(mask.grid.to_index(grid.positions())).astype(int)
    index = np.clip(index, 0, np.subtract(mask.shape, 1))
    return np.asarray(mask.read()[tuple(np.moveaxis(index, -1, 0))])


def _cell_numbers(
    radii: NDArray[np.float32], inside: NDArray[np.bool_], far: float, cells: tuple[int, ...]
) -> NDArray[np.float64]:
    """Tissue, bad tissue and median radius of each cell of a slab that is one cell thick."""
    counts = [1, *(-(-n // c) for n, c in zip(radii.shape[1:], cells[1:], strict=True))]
    out = np.zeros((3, *counts))
    bad = inside & ~(radii <= far)
    for index in np.ndindex(*counts):
        box: Slices = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, cells, strict=True))
        known = radii[box][inside[box] & np.isfinite(radii[box])]
        median = float(np.median(known)) if known.size else np.nan
        out[(slice(None), *index)] = inside[box].sum(), bad[box].sum(), median
    return out


def _worst_regions(
    numbers: NDArray[np.float64],
    cells: tuple[int, ...],
    fixed: Grid,
    steps: NDArray[np.float64],
    total: int,
) -> tuple[WorstRegion, ...]:
    """Boxes of cells that touch each other and hold much bad tissue."""
    tissue, bad, medians = numbers
    labels, _ = ndimage.label((tissue > 0) & (bad >= _BAD_SHARE * tissue))
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        here = labels[box] == number
        known = medians[box][here & np.isfinite(medians[box])]
        spans = tuple(
            (round(s.start * c * f), min(n, round(s.stop * c * f)))
            for s, c, f, n in zip(box, cells, steps, fixed.shape, strict=True)
        )
        share = float(tissue[box][here].sum() / total)
        median = float(np.median(known)) if known.size else None
        regions.append(WorstRegion(spans, round(share, 5), median))
    return tuple(sorted(regions, key=lambda r: -r.share)[:_REGIONS])


def _quantile(counts: NDArray[np.int64], share: float) -> float | None:
    """A quantile of what was counted between bounds."""
    if not counts.sum():
        return None
    middles = np.sqrt(_BINS[1:] * _BINS[:-1])
    place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(f"{middles[min(place, len(middles) - 1)]:.4g}")

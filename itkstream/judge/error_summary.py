"""Summary of an error map over the tissue: quantiles, shares, and boxes of the worst regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid, Image
from itkstream.geometry.grid import UNIT_SIGNS

__all__ = ["ErrorSummary", "WorstRegion", "summarise_error"]

# Cells per axis in which regions are told apart; radii are counted between powers of this base.
_CELLS = 32
_BINS = np.geomspace(1e-3, 1e4, 1401)
# A cell is bad where so much of its tissue may be more than five voxels off, or is not known.
_BAD_SHARE, _FAR_VOX = 0.5, 5.0
_REGIONS = 20
# Radii that are read at a time, about.
_SLAB_RADII = 1e6


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
    unknown : float
        Share of its own tissue of which nothing is known.
    """

    box: tuple[tuple[int, int], ...]
    share: float
    median_um: float | None
    unknown: float

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        return {
            "box": [list(span) for span in self.box],
            "share": self.share,
            "median_um": self.median_um,
            "unknown": self.unknown,
        }


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
            "regions": [region.facts for region in self.regions],
        }

    def describe(self, unit: str) -> str:
        """The summary in words."""
        if self.median_um is None or self.p95_um is None:
            return "nothing can be said of how far off the tissue is"
        over, unknown = (100 * self.shares[f"share_{n}"] for n in ("over_2_vox", "unknown"))
        sign = UNIT_SIGNS[unit]
        return (
            f"95 % of places are within {self.median_um:.3g} {sign} in the median of the tissue, "
            f"{self.p95_um:.3g} {sign} at its 95th percentile; {over:.3g} % of it may be more than "
            f"2 voxels off, of {unknown:.3g} % nothing is known"
        )


def summarise_error(error: Image, tissue: Image, fixed: Grid) -> ErrorSummary:
    """Summarise an error map over a mask of the fixed image of any resolution, slab by slab."""
    voxel = fixed.least_spacing
    cells = tuple(-(-n // _CELLS) for n in error.shape)
    counts = np.zeros(len(_BINS) - 1, np.int64)
    total = over2 = over5 = unknown = 0
    found, mask = [], np.asarray(tissue.read())
    thick = cells[0] * max(1, int(_SLAB_RADII * error.shape[0] / error.grid.size) // cells[0])
    for start in range(0, error.shape[0], thick):
        part = error[(slice(start, min(start + thick, error.shape[0])),)]
        radii = np.asarray(part.read(), np.float32)
        inside = _mask_at(Image(mask, tissue.grid), part.grid)
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
        int(mask.sum() * fixed.size / mask.size),
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
    """Tissue, bad tissue, unknown tissue and median radius of each cell of a slab."""
    known = np.sort(_by_cell(np.where(inside, radii, np.float32(np.nan)), cells, np.nan))
    count = np.isfinite(known).sum(axis=-1, keepdims=True)
    middle = np.maximum(np.concatenate([count - 1, count], axis=-1), 0) // 2
    medians = np.take_along_axis(known, middle, axis=-1).mean(axis=-1)
    parts = inside, inside & ~(radii <= far), inside & ~np.isfinite(radii)
    return np.stack([*(_by_cell(part, cells, False).sum(axis=-1) for part in parts), medians])


def _by_cell(values: NDArray[Any], cells: tuple[int, ...], beyond: float) -> NDArray[Any]:
    """Values of each cell along a last axis; those that stick out are filled up."""
    counts = [-(-n // c) for n, c in zip(values.shape, cells, strict=True)]
    room = [(0, k * c - n) for k, c, n in zip(counts, cells, values.shape, strict=True)]
    split = np.pad(values, room, constant_values=beyond)
    split = split.reshape([size for pair in zip(counts, cells, strict=True) for size in pair])
    order = [*range(0, split.ndim, 2), *range(1, split.ndim, 2)]
    return split.transpose(order).reshape((*counts, -1))


def _worst_regions(
    numbers: NDArray[np.float64],
    cells: tuple[int, ...],
    fixed: Grid,
    steps: NDArray[np.float64],
    total: int,
) -> tuple[WorstRegion, ...]:
    """Boxes of cells that touch each other and hold much bad tissue."""
    tissue, bad, unknown, medians = numbers
    labels, _ = ndimage.label((tissue > 0) & (bad >= _BAD_SHARE * tissue))
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        here = labels[box] == number
        known = medians[box][here & np.isfinite(medians[box])]
        spans = tuple(
            (round(s.start * c * f), min(n, round(s.stop * c * f)))
            for s, c, f, n in zip(box, cells, steps, fixed.shape, strict=True)
        )
        held = float(tissue[box][here].sum())
        lost = float(unknown[box][here].sum())
        median = float(np.median(known)) if known.size else None
        regions.append(WorstRegion(spans, round(held / total, 5), median, round(lost / held, 3)))
    return tuple(sorted(regions, key=lambda r: -r.share)[:_REGIONS])


def _quantile(counts: NDArray[np.int64], share: float) -> float | None:
    """A quantile of what was counted between bounds."""
    if not counts.sum():
        return None
    middles = np.sqrt(_BINS[1:] * _BINS[:-1])
    place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(f"{middles[min(place, len(middles) - 1)]:.4g}")

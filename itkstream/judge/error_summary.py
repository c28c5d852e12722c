"""Summary of an error map over the tissue: quantiles, shares, worst regions, and a weak part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid, Image
from itkstream.geometry.grid import UNIT_SIGNS

__all__ = ["ErrorSummary", "WeakPart", "WorstRegion", "summarise_error"]

# Cells per axis in which regions are told apart; radii are counted between powers of this base.
_CELLS = 32
_BINS = np.geomspace(1e-3, 1e4, 1401)
# A cell is bad where so much of its tissue may be more than five voxels off, or is not known.
_BAD_SHARE, _FAR_VOX = 0.5, 5.0
_REGIONS = 20
# A part is weak whose cells have radii of more than so many times the usual, if they touch each
# other, hold so much of the tissue, and their median is so many times that of the rest and so many
# voxels. The top of an expansion microscopy pair: 2.2 times, 3.4 voxels, a fifth of the tissue.
_RAISED, _WEAK_SHARE, _WEAKER, _NEAR_VOX = 1.5, 0.15, 2.0, 2.0
# It lies in a third of an axis where so much of it does.
_MOSTLY = 2 / 3
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
class WeakPart:
    """Tissue that hangs together, in which far more error is predicted than in the rest.

    Parameters
    ----------
    box : tuple of (int, int)
        First voxel of the fixed image and the one after the last, per array axis.
    share : float
        Of all tissue.
    median_um, rest_um : float
        Median radius there, and in the rest.
    axis, third : int or None
        Array axis along which it lies in one third, and which, 0 to 2; None where it does not.
    share_of_third : float
        Of the tissue of that third.
    """

    box: tuple[tuple[int, int], ...]
    share: float
    median_um: float
    rest_um: float
    axis: int | None = None
    third: int | None = None
    share_of_third: float = 0.0


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
    weak_part : WeakPart or None
        Where there is one.
    """

    median_um: float | None
    p95_um: float | None
    shares: dict[str, float]
    tissue_voxels: int
    regions: tuple[WorstRegion, ...]
    weak_part: WeakPart | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for a report."""
        return {
            "median_um": self.median_um,
            "p95_um": self.p95_um,
            **self.shares,
            "tissue_voxels": self.tissue_voxels,
            "regions": [region.facts for region in self.regions],
            "weak_part": None if self.weak_part is None else asdict(self.weak_part),
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
    lattice = _Cells(np.concatenate(found, axis=1), cells, fixed, error.shape)
    return ErrorSummary(
        _quantile(counts, 0.5),
        _quantile(counts, 0.95),
        {name: round(n / max(total, 1), 5) for name, n in shares.items()},
        int(mask.sum() * fixed.size / mask.size),
        _worst_regions(lattice),
        _weak_part(lattice, _NEAR_VOX * voxel),
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


@dataclass(frozen=True, eq=False)
class _Cells:
    """Numbers of all cells, as `_cell_numbers` finds them, and where they lie.

    `size` are radii per cell and axis, of so many `radii` in all.
    """

    numbers: NDArray[np.float64]
    size: tuple[int, ...]
    fixed: Grid
    radii: tuple[int, ...]

    @property
    def total(self) -> float:
        """Radii of tissue; 1 for none."""
        return max(float(self.numbers[0].sum()), 1.0)

    def voxels(self, box: Sequence[slice]) -> tuple[tuple[int, int], ...]:
        """Fixed voxels of a box of cells: the first, and the one after the last."""
        axes = zip(box, self.size, self.fixed.shape, self.radii, strict=True)
        return tuple(
            (round(s.start * c * n / m), min(n, round(s.stop * c * n / m))) for s, c, n, m in axes
        )


def _worst_regions(cells: _Cells) -> tuple[WorstRegion, ...]:
    """Boxes of cells that touch each other and hold much bad tissue."""
    tissue, bad, unknown, medians = cells.numbers
    labels, _ = ndimage.label((tissue > 0) & (bad >= _BAD_SHARE * tissue))
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        here = labels[box] == number
        known = medians[box][here & np.isfinite(medians[box])]
        held = float(tissue[box][here].sum())
        lost = float(unknown[box][here].sum())
        median = float(np.median(known)) if known.size else None
        share, lost_share = round(held / cells.total, 5), round(lost / held, 3)
        regions.append(WorstRegion(cells.voxels(box), share, median, lost_share))
    return tuple(sorted(regions, key=lambda r: -r.share)[:_REGIONS])


def _weak_part(cells: _Cells, least_um: float) -> WeakPart | None:
    """The largest part of raised radii, if it is large, and far less sure than the rest."""
    tissue, _, _, medians = cells.numbers
    known = (tissue > 0) & np.isfinite(medians)
    if not known.any():
        return None
    usual = _middle(medians[known], tissue[known])
    labels, count = ndimage.label(known & (medians > _RAISED * usual))
    if not count:
        return None
    part = labels == 1 + int(np.argmax(ndimage.sum(tissue, labels, range(1, count + 1))))
    rest, held = known & ~part, float(tissue[part].sum())
    if not rest.any() or held < _WEAK_SHARE * cells.total:
        return None
    inner, outer = (_middle(medians[some], tissue[some]) for some in (part, rest))
    if inner < max(_WEAKER * outer, least_um):
        return None
    box = cells.voxels(ndimage.find_objects(part.astype(np.int8))[0])
    return WeakPart(box, round(held / cells.total, 5), inner, outer, *_third_of(part, tissue))


def _third_of(
    part: NDArray[np.bool_], tissue: NDArray[np.float64]
) -> tuple[int | None, int | None, float]:
    """The axis and the third of it that hold most of a part, and the part's share of all there."""
    best = 0.0
    found: tuple[int | None, int | None, float] = (None, None, 0.0)
    held = tissue[part].sum()
    for axis, count in enumerate(tissue.shape):
        which = 3 * (2 * np.indices(tissue.shape, sparse=True)[axis] + 1) // (2 * count)
        for third in range(3 if count >= 3 else 0):
            inside = which == third
            both = float(tissue[part & inside].sum())
            share = both / max(float(tissue[inside & np.ones_like(part)].sum()), 1.0)
            if both > _MOSTLY * held and both * share > best:
                best, found = both * share, (axis, third, round(share, 5))
    return found


def _middle(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The median of values that count by their weights."""
    order = np.argsort(values, kind="stable")
    counted = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(counted, counted[-1] / 2)])


def _quantile(counts: NDArray[np.int64], share: float) -> float | None:
    """A quantile of what was counted between bounds."""
    if not counts.sum():
        return None
    middles = np.sqrt(_BINS[1:] * _BINS[:-1])
    place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(f"{middles[min(place, len(middles) - 1)]:.4g}")

"""Starts from where the tissue lies: centres of mass, and axes of inertia laid upon each other."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Image
from itkstream.numerics.evidence.ground import bright_ground
from itkstream.numerics.evidence.quality import tissue_on

__all__ = ["moment_starts"]

Floats = NDArray[np.float64]


def moment_starts(fixed: Image, moving: Image) -> list[Floats]:
    """Shifts of one centre of mass to the other, alone and with every way the axes may lie."""
    (centre, axes), (target, others) = (_moments(image) for image in (fixed, moving))
    n = len(centre)
    turns = [np.eye(n)]
    for signs in product((1.0, -1.0), repeat=n):
        turn = (others * signs) @ axes.T
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    return [_about(turn, centre, target) for turn in turns]


def _about(turn: Floats, centre: Floats, target: Floats) -> Floats:
    """A turn that leads one point to another."""
    n = len(centre)
    matrix = np.eye(n + 1)
    matrix[:n, :n] = turn
    matrix[:n, n] = target - turn @ centre
    return matrix


def _moments(image: Image) -> tuple[Floats, Floats]:
    """Centre of mass and axes of inertia, as columns, of tissue brighter than the median.

    Of tissue that is darker than its ground, where that is bright.
    """
    voxels = np.asarray(image.read(), np.float64)
    ground = bright_ground(voxels)
    tissue = tissue_on(voxels.astype(np.float32), ground)
    voxels = np.nan_to_num(voxels if ground is None else ground - voxels, nan=-np.inf)
    known = np.isfinite(voxels)
    middle = np.median(voxels[known])
    weights = np.where(known & tissue, np.maximum(voxels - middle, 0), 0)
    points = image.grid.positions()[weights > 0]
    share = weights[weights > 0] / weights.sum()
    centre = np.einsum("m,mi->i", share, points)
    apart = points - centre
    return centre, np.linalg.eigh(np.einsum("m,mi,mj->ij", share, apart, apart))[1]

"""Affines of all blocks at once, each drawn by its own matches and by its neighbours.

A block with many matches is fitted to them. Where evidence thins out, the fit gives way step by
step: strain is held back first, then rotation, and a block without any match continues its
neighbours. A block whose matches contradict all its neighbours loses its say.

The unknowns of block b are the coefficients of the displacement ``t_b + G_b (p - centre_b)``. The
sum that is least, in squared micrometers,

    sum_b w_b sum_i |t_b + G_b x_i - d_i|²                    over the matches (x_i, d_i) of b
    + tie sum_(b, c) mean_y |displacement_b(y) - displacement_c(y)|²   over shared faces, y on it
    + sum_b h_b² (strain |sym G_b|² + rotation |skew G_b|²)            h_b half the block's size

is quadratic but for the weights w_b, which follow Geman and McClure: ``1 / (1 + (e_b / s)²)²`` for
a block whose own fit is e_b away from the common one.

References
----------
S. Geman and D. McClure, "Statistical methods for tomographic image reconstruction", Bulletin of
the International Statistical Institute 52 (1987) 5-21.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import cg

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import BlockGrid, Grid

__all__ = [
    "CONFIDENCE_COLUMNS",
    "ConsistencySettings",
    "Evidence",
    "evidence_of",
    "evidence_size",
    "own_confidence",
    "solve_consistent",
]

Floats = NDArray[np.float64]

CONFIDENCE_COLUMNS = ("matches", "residual", "disagreement", "confidence")
"""What the confidence map holds for each block; residual and disagreement in micrometers."""

# Far fewer rounds settle the weights of the phantoms tried; more change nothing.
_ROUNDS = 10
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class ConsistencySettings:
    """How strongly blocks are held together.

    Parameters
    ----------
    tie : float
        Matches that the agreement with one neighbour counts for.
    strain, rotation : float
        Matches that the absence of strain, and of rotation, counts for.
    scale_um : float
        Disagreement with the neighbours at which a block has lost three quarters of its say.

    Raises
    ------
    InputError
        For a value that is not positive.
    """

    tie: float = 4.0
    strain: float = 2.0
    rotation: float = 0.5
    scale_um: float = 4.0

    def __post_init__(self) -> None:
        for name in ("tie", "strain", "rotation", "scale_um"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name} must be a positive number; got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the matches of blocks say about their affines, however many they are.

    Parameters
    ----------
    normal : ndarray, (..., n + 1, n + 1)
        Sum of ``[x, 1] [x, 1]^T`` with x relative to the block's centre.
    cross : ndarray, (..., n, n + 1)
        Sum of ``d [x, 1]^T`` with the displacement d.
    square : ndarray, (...)
        Sum of ``|d|²``.
    """

    normal: Floats
    cross: Floats
    square: Floats

    def packed(self) -> Floats:
        """All numbers of a block in one row.

        Returns
        -------
        ndarray, (..., k)
            What `unpacked` takes.
        """
        lead = self.square.shape
        parts = (self.normal, self.cross, self.square)
        return np.concatenate([p.reshape((*lead, -1)) for p in parts], axis=-1)

    @classmethod
    def unpacked(cls, rows: Floats, ndim: int) -> Evidence:
        """The inverse of `packed`.

        Parameters
        ----------
        rows : ndarray, (..., k)
            One row a block.
        ndim : int
            Dimensions of the space.

        Returns
        -------
        Evidence
            With the leading axes of `rows`.
        """
        m = ndim + 1
        lead = rows.shape[:-1]
        normal = rows[..., : m * m].reshape((*lead, m, m))
        cross = rows[..., m * m : m * m + ndim * m].reshape((*lead, ndim, m))
        return cls(normal, cross, rows[..., -1])


def evidence_of(points: Floats, targets: Floats, centre: Floats) -> Evidence:
    """Sum up the matches of one block.

    Parameters
    ----------
    points, targets : ndarray, (m, n)
        Fixed points and where they lie in the aligned image, in micrometers; m may be 0.
    centre : ndarray, (n,)
        The block's centre.

    Returns
    -------
    Evidence
        Of one block.
    """
    homogeneous = np.concatenate([points - centre, np.ones((len(points), 1))], axis=1)
    moves = targets - points
    return Evidence(
        homogeneous.T @ homogeneous, moves.T @ homogeneous, np.asarray((moves**2).sum())
    )


def solve_consistent(
    evidence: Evidence,
    blocks: BlockGrid,
    grid: Grid,
    settings: ConsistencySettings | None = None,
) -> tuple[Floats, Floats]:
    """Find the affines of all blocks from their matches and their neighbours.

    Parameters
    ----------
    evidence : Evidence
        Arrays of shape ``blocks.numblocks + ...``; zeros where a block has no matches.
    blocks : BlockGrid
        The blocks.
    grid : Grid
        The fixed image's lattice.
    settings : ConsistencySettings, optional
        How strongly blocks are held together.

    Returns
    -------
    matrices : ndarray, blocks.numblocks + (n + 1, n + 1)
        Fixed to aligned points.
    confidence : ndarray, blocks.numblocks + (4,)
        See `CONFIDENCE_COLUMNS`; the last between 0 and 1. NaN where a block has no matches.

    Raises
    ------
    RegistrationError
        Where no block has any match.
    """
    settings = settings or ConsistencySettings()
    n = grid.ndim
    flat = Evidence.unpacked(evidence.packed().reshape(len(blocks), -1), n)
    matches = flat.normal[:, n, n]
    if not matches.any():
        raise RegistrationError(
            f"all {len(blocks)} blocks failed to find an affine: use larger blocks, a lower "
            "match_threshold, or radii that fit the nuclei"
        )
    centres = grid.to_physical(blocks.centres()).reshape(-1, n)
    held = _held(blocks, grid, centres, settings)
    own = _own_fits(flat)
    weights = np.ones(len(blocks))
    for _ in range(_ROUNDS):
        solution = _solve(flat, held, weights)
        apart = _distance(solution - own, flat)
        weights = 1.0 / (1.0 + (np.nan_to_num(apart) / settings.scale_um) ** 2) ** 2
    confidence = _confidence(flat, solution, apart, weights, settings)
    shape = blocks.numblocks
    return (
        _as_matrices(solution, centres).reshape((*shape, n + 1, n + 1)),
        confidence.reshape((*shape, len(CONFIDENCE_COLUMNS))),
    )


def own_confidence(evidence: Evidence, settings: ConsistencySettings | None = None) -> Floats:
    """The confidence of blocks that were not asked to agree.

    Parameters
    ----------
    evidence : Evidence
        Arrays of any leading shape.
    settings : ConsistencySettings, optional
        How many matches make a block trusted.

    Returns
    -------
    ndarray, (..., 4)
        See `CONFIDENCE_COLUMNS`; the disagreement is NaN.
    """
    n = evidence.cross.shape[-2]
    lead = evidence.square.shape
    flat = Evidence.unpacked(evidence.packed().reshape(-1, evidence_size(n)), n)
    unknown = np.full(len(flat.square), np.nan)
    rows = _confidence(
        flat, _own_fits(flat), unknown, np.ones(len(unknown)), settings or ConsistencySettings()
    )
    return rows.reshape((*lead, len(CONFIDENCE_COLUMNS)))


def evidence_size(ndim: int) -> int:
    """Numbers in a row of packed evidence.

    Parameters
    ----------
    ndim : int
        Dimensions of the space.

    Returns
    -------
    int
        29 in three dimensions.
    """
    return (ndim + 1) ** 2 + ndim * (ndim + 1) + 1


def _own_fits(evidence: Evidence) -> Floats:
    """Each block's fit to its own matches alone, (b, n, n + 1); NaN where it has none."""
    inverse = np.linalg.pinv(evidence.normal, rcond=1e-10, hermitian=True)
    fits = evidence.cross @ inverse
    n = fits.shape[1]
    fits[evidence.normal[:, n, n] == 0] = np.nan
    return np.asarray(fits)


def _distance(difference: Floats, evidence: Evidence) -> Floats:
    """Root mean square of what a difference of fits does to the matches of each block."""
    n = difference.shape[1]
    squared = np.einsum("bij,bjk,bik->b", difference, evidence.normal, difference)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(squared / evidence.normal[:, n, n]))


def _confidence(
    evidence: Evidence,
    solution: Floats,
    apart: Floats,
    weights: Floats,
    settings: ConsistencySettings,
) -> Floats:
    n = solution.shape[1]
    matches = evidence.normal[:, n, n]
    squared = (
        evidence.square
        - 2 * np.einsum("bij,bij->b", solution, evidence.cross)
        + np.einsum("bij,bjk,bik->b", solution, evidence.normal, solution)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        residual = np.sqrt(np.maximum(squared, 0) / matches)
    believed = weights * matches
    share = believed / (believed + settings.tie * 2 * n)
    return np.stack([matches, residual, apart, share], axis=1)


def _held(
    blocks: BlockGrid, grid: Grid, centres: Floats, settings: ConsistencySettings
) -> csr_matrix:
    """The quadratic form of ties and of strain and rotation, over all coefficients.

    Coefficient (b, i, j) of component i has the place ``(b n + i) (n + 1) + j``.
    """
    n = grid.ndim
    values, rows, columns = [], [], []

    def add(places: NDArray[np.intp], form: Floats) -> None:
        rows.append(np.repeat(places, len(places)))
        columns.append(np.tile(places, len(places)))
        values.append(form.ravel())

    for b, c, faces in _faces(blocks, grid):
        for i in range(n):
            places = np.concatenate([_places(k, i, n) for k in (b, c)])
            here, there = (_homogeneous(faces - centres[k]) for k in (b, c))
            gap = np.concatenate([here, -there], axis=1)
            add(places, settings.tie / len(faces) * gap.T @ gap)
    linear = np.array([i * (n + 1) + j for i in range(n) for j in range(n)])
    stiff = _stiffness(n, settings)
    for b, block in enumerate(blocks):
        half = np.mean(np.asarray(block.core_shape) * grid.spacing) / 2
        add(b * n * (n + 1) + linear, half**2 * stiff)
    size = len(blocks) * n * (n + 1)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return coo_matrix(entries, shape=(size, size)).tocsr()


def _stiffness(n: int, settings: ConsistencySettings) -> Floats:
    """``strain |sym G|² + rotation |skew G|²`` as a form of the n² entries of G."""
    identity = np.eye(n * n)
    transposed = identity.reshape(n, n, n, n).transpose(1, 0, 2, 3).reshape(n * n, n * n)
    symmetric, skew = (identity + transposed) / 2, (identity - transposed) / 2
    return settings.strain * symmetric.T @ symmetric + settings.rotation * skew.T @ skew


def _faces(blocks: BlockGrid, grid: Grid) -> Iterator[tuple[int, int, Floats]]:
    """Pairs of neighbouring blocks and the corners of the face they share."""
    for block in blocks:
        for axis, count in enumerate(blocks.numblocks):
            if block.index[axis] + 1 == count:
                continue
            other = tuple(i + (k == axis) for k, i in enumerate(block.index))
            ends = [(s.start - 0.5, s.stop - 0.5) for s in block.core]
            ends[axis] = (block.core[axis].stop - 0.5,) * 2
            corners = np.unique(np.array(list(product(*ends))), axis=0)
            b, c = (int(np.ravel_multi_index(i, blocks.numblocks)) for i in (block.index, other))
            yield b, c, grid.to_physical(corners)


def _places(block: int, component: int, n: int) -> NDArray[np.intp]:
    return (block * n + component) * (n + 1) + np.arange(n + 1)


def _homogeneous(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _solve(evidence: Evidence, held: csr_matrix, weights: Floats) -> Floats:
    n = evidence.cross.shape[1]
    count = len(weights) * n
    normal = np.repeat(evidence.normal * weights[:, None, None], n, axis=0)
    start = np.arange(count)[:, None, None] * (n + 1)
    rows = np.broadcast_to(start + np.arange(n + 1)[:, None], normal.shape)
    columns = np.broadcast_to(start + np.arange(n + 1), normal.shape)
    data = coo_matrix((normal.ravel(), (rows.ravel(), columns.ravel())), shape=held.shape)
    system = (held + data).tocsr()
    wanted = (evidence.cross * weights[:, None, None]).ravel()
    scale = csr_matrix((1.0 / system.diagonal(), (range(len(wanted)), range(len(wanted)))))
    found, status = cg(system, wanted, rtol=_TOLERANCE, maxiter=50 * (n + 1) * count, M=scale)
    if status:
        raise RegistrationError("the common solution of the local affines did not converge")
    return np.asarray(found.reshape(len(weights), n, n + 1))


def _as_matrices(solution: Floats, centres: Floats) -> Floats:
    n = centres.shape[1]
    matrices = np.broadcast_to(np.eye(n + 1), (len(centres), n + 1, n + 1)).copy()
    matrices[:, :n, :n] += solution[:, :, :n]
    shift = np.einsum("bij,bj->bi", solution[:, :, :n], centres)
    matrices[:, :n, n] = solution[:, :, n] - shift
    return matrices

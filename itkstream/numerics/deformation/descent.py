"""Deformable registration in memory: coarse to fine, by local correlation or self-similarity.

The transform is ``T(p) = affine(p + u(p))``, fixed points to moving points. Each iteration samples
the moving image once, from its own voxels, through the affine and the current u; takes the force
of a `Likeness`, such as squared local correlation; smooths it; composes the small step with u (u
acts after the step, so maps are chained, never added); and smooths u. The iterate that makes both
images most alike is kept.

Several channels drive one field: each is warped and compared by itself, and their forces and
Gauss-Newton matrices are added up by weight. Where a channel shows nothing its local correlation is
low, and so is its share of both.

u lives on nodes, the centres of groups of voxels: both smoothings pass little above half the
Nyquist frequency, so every second voxel holds what they leave, at an eighth of time and memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Grid, Landmarks
from itkstream.geometry.grid import voxels_spanning
from itkstream.numerics.checks import check_image, mark_voxels
from itkstream.numerics.deformation.continuation import (
    BORDER_VOX,
    Beyond,
    Continuation,
    counting_share,
    say_of,
)
from itkstream.numerics.deformation.kernels import SmoothingKernel
from itkstream.numerics.deformation.landmarks import (
    LandmarkPull,
    Targets,
    expect_moves,
)
from itkstream.numerics.deformation.mind import ARM_VOX, PATCH_VOX, PatchPairs
from itkstream.numerics.deformation.operations import HOST, Likeness, Operations
from itkstream.numerics.deformation.settings import (
    PIPELINE_DEFAULTS,
    DescentSettings,
    LevelSettings,
)
from itkstream.numerics.gpu.arrays import Array
from itkstream.numerics.lift import lift_field, lift_grid, lift_homogeneous, lift_values
from itkstream.numerics.sampling.fields import Places, pick_vectors, shrink_field
from itkstream.numerics.sampling.folds import FoldRepair

__all__ = [
    "PIPELINE_DEFAULTS",
    "Channel",
    "Descent",
    "DescentSettings",
    "Frame",
    "LevelReport",
    "LevelSettings",
    "descend",
    "measure_likeness",
    "node_factors",
]

logger = logging.getLogger(__name__)

Proposal = Callable[[NDArray[np.float32], NDArray[np.float32], Grid], NDArray[np.float32]]
"""From fixed image, warped image and their lattice to the small step in front of the warp."""

WINDOWS = {"gradient": 5, "newton": 2}
"""Iterations per window of the convergence test.

With field smoothing, gradient steps overshoot and come back within a few iterations before they
settle: shorter windows take that for the end.
"""

SMALLEST_SHARE = 1 / 8
"""Share of the first step below which it is not shortened any further."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The lattices of two images and the affine between them.

    Parameters
    ----------
    fixed_grid, moving_grid : Grid
        Where the voxels of the images lie.
    affine : ndarray, (n + 1, n + 1)
        Fixed physical points to moving physical points.

    Raises
    ------
    InputError
        Where dimensions differ or the affine is not finite and invertible.
    """

    fixed_grid: Grid
    moving_grid: Grid
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = self.fixed_grid.ndim
        if self.moving_grid.ndim != n:
            raise InputError(
                f"both images need the same number of axes; got {n} and {self.moving_grid.ndim}"
            )
        matrix = np.array(self.affine, np.float64)
        if matrix.shape != (n + 1, n + 1) or not np.isfinite(matrix).all():
            raise InputError(
                f"the affine must be a finite matrix of shape {(n + 1, n + 1)}; got {matrix!r}"
            )
        if abs(np.linalg.det(matrix[:n, :n])) < 1e-12:
            raise InputError(f"the affine must be invertible; got {matrix.tolist()}")
        object.__setattr__(self, "affine", matrix)


@dataclass(frozen=True, eq=False)
class Channel:
    """A further channel of both images on their lattices; the leading one has weight 1."""

    fixed: NDArray[Any]
    moving: NDArray[Any]
    weight: float


@dataclass(frozen=True)
class LevelReport:
    """Result of one level of the descent.

    Parameters
    ----------
    shrink_factor : int
        Of the level.
    before, after : float
        How alike the images were at its start and are by its best iterate: mean squared local
        correlation, or the share of their descriptors' variance that they have in common.
    iterations : int
        Steps taken.
    stopped : str
        Why it ended: ``"iterations"``, ``"converged"``, ``"no overlap"`` or ``"no texture"``.
    """

    shrink_factor: int
    before: float
    after: float
    iterations: int
    stopped: str


@dataclass(frozen=True, eq=False)
class Descent:
    """A displacement field and how it came about.

    Parameters
    ----------
    displacement : ndarray, fixed shape + (n,), float32
        u in ``T(p) = affine(p + u(p))``, micrometres; at as many places as were wanted.
    levels : tuple of LevelReport
        Coarse to fine.
    folds : int
        Voxels that had to be repaired.
    """

    displacement: NDArray[np.float32]
    levels: tuple[LevelReport, ...]
    folds: int


def descend(
    fixed: NDArray[Any],
    moving: NDArray[Any],
    frame: Frame,
    settings: DescentSettings,
    *,
    initial: DisplacementField | NDArray[np.floating[Any]] | None = None,
    propose: Proposal | None = None,
    landmarks: Landmarks | None = None,
    keep: bool = False,
    beyond: Beyond | None = None,
    others: Sequence[Channel] = (),
    places: Places | None = None,
    operations: Operations = HOST,
) -> Descent:
    """Find the displacement that registers two images after an affine.

    NaN voxels do not count. `initial` is a coarser solution on its own grid, or vectors on the
    fixed one, fixed shape + (n,). `propose` finds the small step instead of the force of local
    correlation. Landmarks inside the fixed image are soft constraints; with `keep` they alone move
    the initial displacement, which the images hold where they show anything. `beyond` says how the
    field goes on where no fixed voxel counts: along its own affine part, or along the initial
    displacement; None leaves these parts to the smoothing. `others` are further channels, which
    pull as well, by their weights. Vectors are wanted at `places` between the fixed voxels, or at
    all of these. `operations` are those of the engine that computes it. The map found has a
    positive Jacobian determinant at every voxel.

    Avants et al., Medical Image Analysis 12 (2008) 26-41, doi:10.1016/j.media.2007.06.004: greedy
    diffeomorphic registration by local correlation. Lucas and Kanade, IJCAI (1981) 674-679: the
    Gauss-Newton step with matrices averaged over a neighbourhood.
    """
    ops = operations
    pair = _pair((Channel(fixed, moving, 1.0), *others), frame, ops)
    u, nodes = _initial(initial, frame)
    u = ops.put(u)
    # Held for as long as it is needed only: it is a fifth of a block's memory.
    home = (u, nodes) if keep else None
    targets = None if landmarks is None else Targets.of(landmarks, frame.fixed_grid, frame.affine)
    reports = []
    for number in range(len(settings.shrink_factors)):
        level = replace(_prepare(pair, settings, number), propose=propose)
        if targets is not None:
            pull = targets.pull(level.nodes, _finest(level.lattice))
            level = replace(level, pull=pull)
        if home is not None:
            level = replace(level, home=ops.resize(*home, level.nodes))
        u = ops.resize(u, nodes, level.nodes)
        nodes = level.nodes
        if beyond is not None:
            level, u = _continuing(level, u, beyond)
        u, report = _descend_level(level, u)
        logger.debug("level %d: %s", number, report)
        reports.append(report)
        del level
    # The images make room for a field of all voxels.
    del pair
    repair = _finish((u, nodes), frame, settings, ops)
    vectors = pick_vectors(repair.displacement, places, ops.xp)
    return Descent(ops.get(vectors), tuple(reports), repair.folded_before)


def measure_likeness(
    fixed: NDArray[Any], moving: NDArray[Any], frame: Frame, settings: DescentSettings
) -> float:
    """Measure how alike two images are after an affine, as the first level of a descent does."""
    level = _prepare(_pair((Channel(fixed, moving, 1.0),), frame, HOST), settings, 0)
    still = np.zeros((*level.nodes.shape, 3), np.float32)
    return _compare(level, still, level.room)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Both images as 3-D arrays on axis-aligned lattices, and the map between these."""

    channels: tuple[Channel, ...]
    lattice: Grid
    moving_lattice: Grid
    affine: NDArray[np.float64]
    ops: Operations


@dataclass(frozen=True, eq=False)
class _Drive:
    """A channel of a level that pulls, and how much it counts."""

    moving: Array
    likeness: Likeness
    weight: float


@dataclass(frozen=True, eq=False)
class _Level:
    """All an iteration needs to know; `fixed` is NaN where no channel counts."""

    ops: Operations
    fixed: Array
    drives: tuple[_Drive, ...]
    index: NDArray[np.float64]
    vector: NDArray[np.float64]
    lattice: Grid
    stride: tuple[int, ...]
    gradient_kernel: SmoothingKernel
    field_kernel: SmoothingKernel
    iterations: int
    step: float
    factor: int
    settings: DescentSettings
    propose: Proposal | None = None
    pull: LandmarkPull | None = None
    home: Array | None = None
    continuation: Continuation | None = None

    @cached_property
    def nodes(self) -> Grid:
        return self.lattice.shrink(self.stride)

    @property
    def weight(self) -> float:
        """Weight of all channels together."""
        return sum(drive.weight for drive in self.drives)

    @property
    def room(self) -> Array:
        """Room for the warped channels."""
        return self.ops.xp.empty((len(self.drives), *self.lattice.shape), np.float32)

    def penalty(self, u: Array) -> float:
        """Squared correlation that the landmarks' misses count for."""
        return 0.0 if self.pull is None else self.pull.penalty(self.ops.get(u))

    def smooth(
        self,
        field: Array,
        kernel: SmoothingKernel,
        spare_affine: bool = False,
        overwrite: bool = False,
    ) -> Array:
        """Smooth a field on the nodes; its affine part may be spared, itself overwritten."""
        spacings = self.nodes.spacing, self.lattice.spacing
        return self.ops.smooth(field, spacings[0], kernel, spacings[1], spare_affine, overwrite)


def _lifted(name: str, image: NDArray[Any], grid: Grid, ops: Operations) -> Array:
    """An image of either number of axes as a 3-D one of the engine."""
    check_image(f"the {name} image", image, grid.shape)
    voxels = mark_voxels(name, ops.send(image, np.float32), ops.xp)
    return voxels.reshape(lift_values(grid.shape, 1))


def _pair(channels: Sequence[Channel], frame: Frame, ops: Operations) -> _Pair:
    lifted = tuple(
        Channel(
            _lifted("fixed", channel.fixed, frame.fixed_grid, ops),
            _lifted("moving", channel.moving, frame.moving_grid, ops),
            channel.weight,
        )
        for channel in channels
    )
    affine = (
        np.linalg.inv(_placement(frame.moving_grid))
        @ lift_homogeneous(frame.affine)
        @ _placement(frame.fixed_grid)
    )
    return _Pair(lifted, lift_grid(frame.fixed_grid), lift_grid(frame.moving_grid), affine, ops)


def _finest(grid: Grid) -> float:
    """Smallest spacing among the axes that have neighbours at all."""
    return min((h for h, n in zip(grid.spacing, grid.shape, strict=True) if n > 1), default=1.0)


def _placement(grid: Grid) -> NDArray[np.float64]:
    """From coordinates along the axes of a grid to physical positions."""
    matrix = np.eye(grid.ndim + 1)
    matrix[:-1, :-1] = grid.direction
    matrix[:-1, -1] = grid.origin
    return lift_homogeneous(matrix)


def _prepare(pair: _Pair, settings: DescentSettings, number: int) -> _Level:
    s = settings.level(number)
    factors = _factors(s.shrink_factor, pair.lattice, settings.isotropic)
    ops, drives, shown = pair.ops, [], []
    for channel in pair.channels:
        fixed, lattice = ops.shrink(channel.fixed, pair.lattice, factors, s.smooth_sigma)
        moving, moving_lattice = ops.shrink(
            channel.moving, pair.moving_lattice, _moving_factors(pair, factors), s.smooth_sigma
        )
        likeness = _likeness(pair, (fixed, moving), lattice, settings, s.cc_radius)
        drives.append(_Drive(moving, likeness, channel.weight))
        shown.append(fixed)
    matrix = moving_lattice.inverse_matrix @ pair.affine
    step = (settings.step or _finest(pair.lattice)) * s.shrink_factor
    return _Level(
        ops=ops,
        fixed=_any_channel(shown, ops.xp),
        drives=tuple(drives),
        index=np.ascontiguousarray((matrix @ lattice.matrix)[:3]),
        vector=np.ascontiguousarray(matrix[:3, :3]),
        lattice=lattice,
        stride=_factors(s.node_stride, lattice, True),
        gradient_kernel=s.gradient_smoothing,
        field_kernel=s.field_smoothing,
        iterations=s.iterations,
        step=step,
        factor=s.shrink_factor,
        settings=settings,
    )


def _any_channel(channels: Sequence[Array], xp: Any) -> Array:
    """An image that is NaN where all are."""
    first, *others = channels
    for other in others:
        first = xp.where(xp.isfinite(first), first, other)
    return first


def _likeness(
    pair: _Pair, images: tuple[Array, Array], lattice: Grid, settings: DescentSettings, radius: int
) -> Likeness:
    """The measure that the settings name, for a channel of a level."""
    window = _window(radius, lattice) if settings.isotropic else (radius,) * 3
    if settings.similarity == "mind":
        steps, patch = (_factors(n, lattice, settings.isotropic) for n in (ARM_VOX, PATCH_VOX))
        pairs = PatchPairs.along(lattice.shape, steps, patch)
        return pair.ops.self_similarity(*images, pairs, window)
    return pair.ops.correlation(*images, window, len(pair.channels) > 1)


def _factors(factor: int, grid: Grid, even: bool) -> tuple[int, ...]:
    """The factor on every axis, or as many voxels as span the same length."""
    if not even:
        return (factor,) * grid.ndim
    return voxels_spanning(factor * _finest(grid), grid.spacing)


def node_factors(grid: Grid, settings: DescentSettings) -> tuple[int, ...]:
    """Voxels per axis between the nodes of what `descend` finds, which is linear between them."""
    level = settings.level(len(settings.shrink_factors) - 1)
    shrinks = _factors(level.shrink_factor, grid, settings.isotropic)
    strides = _factors(level.node_stride, grid.shrink(shrinks), True)
    return tuple(a * b for a, b in zip(shrinks, strides, strict=True))


def _window(radius: int, grid: Grid) -> tuple[int, ...]:
    """Radii of the widest window, near to a cube, with no more voxels than cubic voxels give it."""
    most = (2 * radius + 1) ** grid.ndim
    while math.prod(2 * r + 1 for r in _factors(radius + 1, grid, True)) <= most:
        radius += 1
    return _factors(radius, grid, True)


def _moving_factors(pair: _Pair, factors: tuple[int, ...]) -> tuple[int, ...]:
    """Moving voxels that a fixed voxel of the level spans along each moving axis."""
    steps = (pair.moving_lattice.inverse_matrix @ pair.affine @ pair.lattice.matrix)[:3, :3]
    spans = np.abs(steps * factors).max(axis=1)
    return tuple(max(1, round(float(span))) for span in spans)


def _initial(
    initial: DisplacementField | NDArray[np.floating[Any]] | None, frame: Frame
) -> tuple[NDArray[np.float32], Grid]:
    """The start in coordinates along the fixed axes, with the grid it is on relative to these."""
    if initial is None:
        return np.zeros((1, 1, 1, 3), np.float32), Grid((1, 1, 1), (1.0, 1.0, 1.0))
    if not isinstance(initial, DisplacementField):
        initial = DisplacementField(np.asarray(initial), frame.fixed_grid)
    field, grid, n = np.asarray(initial.data, np.float32), initial.grid, frame.fixed_grid.ndim
    if grid.ndim != n or not np.isfinite(field).all():
        raise InputError(f"the initial displacement must be finite and {n}-D, as the images are")
    vectors = lift_field(_turned(field, np.asarray(frame.fixed_grid.direction), np))
    relative = (np.linalg.inv(_placement(frame.fixed_grid)) @ _placement(grid))[:3]
    direction_along = tuple(map(tuple, relative[:, :3]))
    return vectors, replace(
        lift_grid(grid), origin=tuple(relative[:, 3]), direction=direction_along
    )


def _turned(field: Array, matrix: NDArray[np.float64], xp: Any) -> Array:
    """Each vector times a matrix; the field itself where that is the identity."""
    if np.array_equal(matrix, np.eye(len(matrix))):
        return field
    return field @ xp.asarray(matrix.astype(np.float32))


def _descend_level(level: _Level, u: Array) -> tuple[Array, LevelReport]:
    warped = level.room
    correlations: list[float] = []
    history: list[float] = []
    best, after, share, since, stopped = u, 0.0, 1.0, 0, ""
    while not stopped:
        correlations.append(_compare(level, u, warped))
        history.append(correlations[-1] - level.penalty(u))
        if history[-1] >= max(history):
            best, after = u, correlations[-1]
        trend = _trend(history[since:], level)
        if trend < 0 and share > SMALLEST_SHARE:
            share, since = share / 2, len(history)
        stopped = _reason(correlations, trend, level, warped)
        if not stopped:
            u = _advance(level, u, warped, share)
    return best, LevelReport(level.factor, correlations[0], after, len(history) - 1, stopped)


def _continuing(level: _Level, u: Array, beyond: Beyond) -> tuple[_Level, Array]:
    """The level and its start, continued to where no fixed voxel counts."""
    share = counting_share(level.fixed, level.stride, level.ops.xp)
    if share is None:
        return level, u
    margin = BORDER_VOX * _finest(level.lattice) / level.factor
    home = u if beyond == "start" else None
    say = level.ops.put(say_of(level.ops.get(share), level.nodes.spacing, margin))
    continuation = Continuation(share, say, home, level.ops.xp)
    return replace(level, continuation=continuation), continuation.begin(u)


def _compare(level: _Level, u: Array, warped: Array) -> float:
    """Warp the moving channels, in place, and measure how alike the images are."""
    alike = 0.0
    for drive, out in zip(level.drives, warped, strict=True):
        level.ops.warp(drive.moving, (level.index, level.vector), u, level.stride, out)
        alike += drive.weight * drive.likeness.compare(out)
    return alike / level.weight


def _trend(history: list[float], level: _Level) -> float:
    """Gain of likeness per iteration, between two windows; infinite before there are two."""
    window = WINDOWS[level.settings.update]
    if len(history) < 2 * window:
        return math.inf
    return (sum(history[-window:]) - sum(history[-2 * window : -window])) / window**2


def _reason(correlations: list[float], trend: float, level: _Level, warped: Array) -> str:
    """Why to stop here; empty to go on."""
    if correlations[-1] == 0:
        overlap = bool(level.ops.xp.isfinite(warped).any())
        if not overlap or level.pull is None:
            return "no texture" if overlap else "no overlap"
    if len(correlations) > level.iterations:
        return "iterations"
    newton = level.settings.update == "newton"
    settled = trend < level.settings.tolerance if newton else 0 <= trend < level.settings.tolerance
    return "converged" if settled else ""


def _advance(level: _Level, u: Array, warped: Array, share: float) -> Array:
    """One step: the small field acts first, then u; then u is smoothed.

    A share of a step comes with the same share of smoothing: the balance of both is kept.
    """
    small = _small_step(level, u, warped, share)
    kernel = replace(level.field_kernel, d=level.field_kernel.d * share)
    moved = level.ops.compose(small, u, level.nodes)
    if level.continuation is not None:
        return level.continuation.smooth(moved, u, partial(level.smooth, kernel=kernel))
    return level.smooth(moved, kernel, spare_affine=True, overwrite=True)


def _small_step(level: _Level, u: Array, warped: Array, share: float) -> Array:
    """The smoothed field by which an iteration goes ahead, at the nodes."""
    step, ops = level.step * share, level.ops
    if level.propose is not None:
        moves = _proposed(level, level.propose, warped)
        moves *= np.float32(share)
        return _bounded(level.smooth(moves, level.gradient_kernel, overwrite=True), step, ops)
    newton = level.settings.update == "newton"
    force = _smooth_force(_collected(level, 9 if newton else 3), level)
    if level.home is not None:
        expect_moves(force, level.home - u)
    if level.pull is not None:
        force = _pulled(level, level.pull, force, u)
    return _bounded_newton(level, force, step) if newton else _scaled_gradient(force, step, ops)


def _proposed(level: _Level, propose: Proposal, warped: Array) -> Array:
    """The step that another engine proposes, at the nodes."""
    get = level.ops.get
    moves = propose(get(level.fixed), get(warped[0]), level.lattice)
    return level.ops.put(shrink_field(moves, level.stride))


def _pulled(level: _Level, pull: LandmarkPull, force: Array, u: Array) -> Array:
    """Forces and matrices with those of the landmarks, which are few."""
    drawn = level.ops.get(force)
    pull.add(drawn, level.ops.get(u))
    return level.ops.put(drawn)


def _collected(level: _Level, components: int) -> Array:
    """Forces at the nodes, and matrices where there is room for them: the channels' mean."""
    spacing, shape = level.lattice.spacing, (*level.nodes.shape, components)
    force = level.ops.xp.empty(shape, np.float32)
    level.drives[0].likeness.collect(spacing, level.stride, force)
    for drive in level.drives[1:]:
        further = level.ops.xp.empty(shape, np.float32)
        drive.likeness.collect(spacing, level.stride, further)
        force += np.float32(drive.weight) * further
    if len(level.drives) > 1:
        force /= np.float32(level.weight)
    return force


def _smooth_force(force: Array, level: _Level) -> Array:
    """The forces smoothed, which may overwrite them."""
    kernel = level.gradient_kernel
    if kernel.b == 0 or force.shape[-1] == 3:
        return level.smooth(force, kernel, overwrite=True)
    # The grad-div term couples the components of a vector; a matrix's elements have none.
    apart = level.smooth(force[..., 3:], replace(kernel, b=0.0))
    return level.ops.xp.concatenate([level.smooth(force[..., :3], kernel), apart], axis=-1)


def _scaled_gradient(force: Array, step: float, ops: Operations) -> Array:
    longest = math.sqrt(float(ops.squares(force).max()))
    force *= np.float32(step / longest if longest > 0 else 0.0)
    return force


def _bounded_newton(level: _Level, normal: Array, step: float) -> Array:
    damping = level.settings.damping / _finest(level.lattice) ** 2
    return _bounded(level.ops.solve(normal, damping), step, level.ops)


def _bounded(small: Array, step: float, ops: Operations) -> Array:
    """Vectors longer than the step, cut to its length, in place."""
    length = ops.xp.sqrt(ops.squares(small))
    small *= (step / ops.xp.maximum(length, step))[..., None]
    return small


def _finish(
    found: tuple[Array, Grid], frame: Frame, settings: DescentSettings, ops: Operations
) -> FoldRepair:
    """To the fixed grid and its physical axes, without folds."""
    n = frame.fixed_grid.ndim
    field = ops.resize(*found, lift_grid(frame.fixed_grid))
    field = field.reshape((*frame.fixed_grid.shape, 3))[..., 3 - n :]
    turn = np.asarray(frame.fixed_grid.direction).T
    field = ops.xp.ascontiguousarray(_turned(field, turn, ops.xp))
    repair = ops.repair(field, frame.fixed_grid, settings.minimum_jacobian)
    if repair.folded_after:
        logger.warning("%d voxels stay folded after repair", repair.folded_after)
    return repair

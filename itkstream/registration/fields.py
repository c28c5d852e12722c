"""The fields of a registration on disk: written, sampled or thinned out by the workers.

Each is an OME-Zarr store of a displacement field and the affine after it. Blocks that an earlier
run stored are kept where their files are sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dask.array as da

from itkstream.apply.coarsening import (
    MAX_FIELD_FACTOR,
    CoarseField,
    CoarseLattices,
    decimate,
    prepare_decimated,
)
from itkstream.apply.folds import unfold
from itkstream.apply.resampling import prepare_field
from itkstream.compute.execute import compute, open_or_create, store
from itkstream.geometry import AffineTransform, CompositeTransform, Grid, Transform
from itkstream.geometry.chains import FieldChain
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.ngff.store import (
    FIELD_ARRAY,
    as_stored,
    create_transform,
    read_transform,
)
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.registration.scene import Scene

__all__ = ["measure_coarser", "store_coarser", "store_field", "store_transform"]

LEAST_JACOBIAN = 0.05
"""Local volume ratio above which a field is handed out.

Nodes left out may leave less than the blocks had: .014 instead of .1 between two people's lungs.
"""


def store_transform(
    scene: Scene, transform: Transform, path: Location, blocksize: int
) -> CompositeTransform:
    """Write any transform as a displacement field, on half the fixed resolution, and an affine.

    A block has `blocksize` fixed voxels per axis, an even number.
    """
    half = scene.fixed.grid.shrink((2,) * scene.fixed.ndim)
    lazy = prepare_field(transform, half, (blocksize // 2,) * scene.fixed.ndim)
    return store_field(scene, lazy, half, path, affine_part(transform))


def measure_coarser(
    scene: Scene, transform: CompositeTransform, tolerance_vox: float
) -> CoarseField:
    """Find the coarsest lattice that keeps a stored field within a tolerance, block by block.

    The tolerance is the greatest error at any node, in the smallest fixed voxel spacing; factors
    are 1 where no coarser lattice will do.
    """
    field = FieldChain.of(transform).field
    allowed = tolerance_vox * min(scene.fixed.spacing)
    lattices = CoarseLattices(field, allowed, MAX_FIELD_FACTOR)
    return lattices.best(compute(lattices.prepare_errors(), scene.resources))


def store_coarser(
    scene: Scene, transform: CompositeTransform, factors: Sequence[int], path: Location
) -> CompositeTransform:
    """Write every `factors`-th node of a stored field, unfolded, and the affine after it."""
    chain = FieldChain.of(transform)
    kept = unfold(decimate(chain.field, factors), scene.resources, LEAST_JACOBIAN)
    return store_field(scene, prepare_decimated(kept, factors), kept.grid, path, chain.affine)


def store_field(
    scene: Scene, lazy: da.Array, grid: Grid, path: Location, affine: AffineTransform
) -> CompositeTransform:
    """Write a displacement field and the affine after it, or finish one that was begun."""
    stored = as_stored(lazy, grid)
    chunks = tuple(_chunk(c) for c in lazy.chunks[:-1])
    create = partial(create_transform, path, affine, grid, chunks=chunks)
    target = open_or_create(stored, path, FIELD_ARRAY, create)
    store(stored, target, scene.resources, scene.reporter.blocks)
    return read_transform(path, scene.fixed.grid.axes)


def _chunk(blocks: tuple[int, ...]) -> int:
    """Find a length of chunks of some 64 voxels that no two blocks share."""
    if len(blocks) == 1:
        return min(64, blocks[0])
    return next(n for n in range(min(64, blocks[0]), 0, -1) if blocks[0] % n == 0)

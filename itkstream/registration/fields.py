"""The fields of a registration on disk: found, sampled or thinned out by the workers.

Each is an OME-Zarr store of a displacement field and the affine after it. Blocks that an earlier
run stored are kept where their files are sound.
"""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np

from itkstream.apply.coarsening import (
    MAX_FIELD_FACTOR,
    CoarseField,
    CoarseLattices,
    prepare_decimation,
)
from itkstream.apply.resampling import prepare_field
from itkstream.compute.execute import compute, open_begun, store
from itkstream.estimate.deformation import deform_blocks, field_factors, prepare_displacement
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
from itkstream.registration.scene import Scene, State
from itkstream.registration.steps import Deformable

__all__ = ["measure_coarser", "store_coarser", "store_deformation", "store_transform"]


def store_deformation(
    scene: Scene, state: State, step: Deformable, path: Location
) -> CompositeTransform:
    """Find the displacement in front of the affine, coarse to fine; stored as it is computed.

    Its lattice is that of `itkstream.estimate.deformation.field_factors`. Blocks that an earlier
    run stored are kept where their files are sound.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    state : State
        Where to start.
    step : Deformable
        How.
    path : Location
        The store.

    Returns
    -------
    CompositeTransform
        A displacement field and an affine, on disk.
    """
    fixed, settings = scene.fixed, step.settings_for(scene.fixed.spacing)
    start = state.transform or AffineTransform(np.eye(fixed.ndim + 1))
    blocks = deform_blocks(fixed.grid, step.blocksize, step.overlap, scene.coarse_voxels)
    factors = field_factors(settings, fixed.grid, blocks)
    lazy = prepare_displacement(
        fixed,
        scene.moving,
        start,
        blocks.blocksize,
        settings,
        overlap=step.overlap,
        coarse_voxels=scene.coarse_voxels,
        factors=factors,
        skip_empty=True,
        levels=scene.levels if len(blocks) > 1 else None,
    )
    return _store(scene, lazy, fixed.grid.shrink(factors), path, affine_part(start))


def store_transform(
    scene: Scene, transform: Transform, path: Location, blocksize: int
) -> CompositeTransform:
    """Write any transform as a displacement field, on half the fixed resolution, and an affine.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : Transform
        From fixed to moving points.
    path : Location
        The new store.
    blocksize : int
        Fixed voxels per block and axis, an even number.

    Returns
    -------
    CompositeTransform
        Both, on disk.
    """
    blocks = (blocksize // 2,) * scene.fixed.ndim
    lazy = prepare_field(transform, _half(scene), blocks)
    return _store(scene, lazy, _half(scene), path, affine_part(transform))


def measure_coarser(
    scene: Scene, transform: CompositeTransform, tolerance_vox: float
) -> CoarseField:
    """Find the coarsest lattice that keeps a stored field within a tolerance, block by block.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : CompositeTransform
        A displacement field and an affine, on disk.
    tolerance_vox : float
        Greatest error at any node, in the smallest fixed voxel spacing.

    Returns
    -------
    CoarseField
        Lazy; with factors of 1 where no coarser lattice will do.
    """
    field = FieldChain.of(transform).field
    allowed = tolerance_vox * min(scene.fixed.spacing)
    lattices = CoarseLattices(field, allowed, MAX_FIELD_FACTOR)
    return lattices.best(compute(lattices.prepare_errors(), scene.resources))


def store_coarser(
    scene: Scene, transform: CompositeTransform, factors: Sequence[int], path: Location
) -> CompositeTransform:
    """Write some of the nodes of a stored field, and the affine after it.

    Blocks that an earlier run stored are kept where their files are sound.

    Parameters
    ----------
    scene : Scene
        Images and resources.
    transform : CompositeTransform
        A displacement field and an affine, on disk.
    factors : sequence of int
        Voxels of the field per voxel that is written, per axis.
    path : Location
        The store.

    Returns
    -------
    CompositeTransform
        Both, on disk.
    """
    chain = FieldChain.of(transform)
    kept = prepare_decimation(chain.field, factors)
    return _store(scene, kept.data, kept.grid, path, chain.affine)


def _store(
    scene: Scene, lazy: da.Array, grid: Grid, path: Location, affine: AffineTransform
) -> CompositeTransform:
    """Write a displacement field and the affine after it, or finish one that was begun."""
    stored = as_stored(lazy, grid)
    target = open_begun(stored, path / FIELD_ARRAY)
    if target is None:
        path.remove()
        chunks = tuple(_chunk(c) for c in lazy.chunks[:-1])
        target = create_transform(path, affine, grid, chunks=chunks)
    store(stored, target, scene.resources, scene.reporter.blocks)
    return read_transform(path, scene.fixed.grid.axes)


def _chunk(blocks: tuple[int, ...]) -> int:
    """A chunk of some 64 voxels that no two blocks share."""
    if len(blocks) == 1:
        return min(64, blocks[0])
    return next(n for n in range(min(64, blocks[0]), 0, -1) if blocks[0] % n == 0)


def _half(scene: Scene) -> Grid:
    return scene.fixed.grid.shrink((2,) * scene.fixed.ndim)

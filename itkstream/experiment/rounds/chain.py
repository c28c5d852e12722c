"""A chain of rounds: registered onto a neighbour that shows more of them than the reference does.

The transform from the reference is that of the neighbour and that of the round, one after the
other, as one field and one affine; images are interpolated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.apply.products import compute_pyramid
from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import open_or_create, store
from itkstream.experiment.folder import TO_REFERENCE, TO_REFERENCE_ERROR
from itkstream.geometry import (
    AffineTransform,
    Block,
    CompositeTransform,
    Grid,
    Image,
    Transform,
    compose,
)
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.warping import NAN_OUTSIDE, warp_block
from itkstream.progress.reporters import Reporter
from itkstream.registration.fields import measure_coarser, store_coarser, store_transform
from itkstream.registration.folder import ERROR
from itkstream.registration.scene import Scene
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import RansacAffine
from itkstream.workers import Resources

__all__ = ["Overlap", "add_errors", "arms_outwards", "find_overlap", "store_through"]

# A neighbour must show so much more of a round's tissue than the reference does: two registrations
# have more error than one.
_MORE = 0.1
_ERROR_BLOCK = 64


@frozen
class Overlap:
    """Share of a round's tissue that another round shows; None where they do not match."""

    share: float | None

    def is_worth(self, direct: Overlap) -> bool:
        """Whether a way by this round is better than the `direct` one."""
        if self.share is None:
            return False
        return direct.share is None or self.share > direct.share + _MORE

    def __str__(self) -> str:
        return "no match" if self.share is None else f"{100 * self.share:.0f} %"


def arms_outwards(count: int, reference: int, chain: bool) -> list[list[tuple[int, int]]]:
    """Rounds from the reference to both ends, each with its neighbour on the way back.

    In a chain, where a round needs its neighbour, they are two arms; else each is one of its own.
    """
    after = [(k, k - 1) for k in range(reference + 1, count)]
    before = [(k, k + 1) for k in range(reference - 1, -1, -1)]
    return [after, before] if chain else [[one] for one in after + before]


def find_overlap(other: Image, own: Image, resources: Resources, reporter: Reporter) -> Overlap:
    """Find how much of a round's tissue another one shows, by the key points of small levels."""
    scene = Scene(
        other,
        own,
        float(max(other.grid.size, own.grid.size)),
        resources,
        reporter,
        (lambda: other, lambda: own),
    )
    found = RansacAffine().attempt(scene, None).affine
    if found.matrix is None or found.outcome == "chance":
        return Overlap(None)
    return Overlap(scene.overlap(AffineTransform(found.matrix))["moving"])


def store_through(
    pair: tuple[Image, Image],
    ways: Sequence[Transform],
    folder: Location,
    settings: RegisterSettings,
    resources: Resources,
    reporter: Reporter,
) -> CompositeTransform:
    """Store transforms that follow each other as one field and affine, or finish it.

    The field is thinned out as that of a registration is.
    """
    scene = Scene(
        *pair, settings.coarse_voxels, resources, reporter, (lambda: pair[0], lambda: pair[1])
    )
    whole = store_transform(
        scene, compose(*ways), folder / "steps" / TO_REFERENCE, settings.blocksize
    )
    coarse = measure_coarser(scene, whole, settings.field_tolerance_vox or 1e-3)
    return store_coarser(scene, whole, coarse.factors, folder / TO_REFERENCE)


def add_errors(
    neighbour: Location,
    way: Transform,
    folder: Location,
    reference: Image,
    resources: Resources,
) -> Location:
    """Store the error of a round registered onto its neighbour, on the lattice of that one's error.

    The radii of both are added, which is more than independent ones would be: a bound.
    """
    axes = stored_axes(reference.grid)
    first = open_image(str(neighbour), axes=axes).reorder(reference.grid.axes)
    second = open_image(str(folder / ERROR), axes=axes).reorder(reference.grid.axes)
    shared = {"second": second, "way": way, "grid": first.grid}
    blocks = block_grid(first.shape, (_ERROR_BLOCK,) * first.ndim, 0)
    found = map_blocks(_sum_block, blocks, first.data, shared, Result(np.float32))
    lazy = found.transpose(first.grid.axis_order(axes))
    place, chunks = folder / TO_REFERENCE_ERROR, tuple(c[0] for c in lazy.chunks)
    grid = first.grid.reorder(axes)
    create = partial(create_ome_zarr, place, grid, lazy.dtype, chunks=chunks)
    store(lazy, open_or_create(lazy, place, "0", create), resources)
    compute_pyramid(place, resources=resources)
    return place


def _sum_block(
    part: NDArray[np.float32], block: Block, *, second: Image, way: Transform, grid: Grid
) -> NDArray[np.float32]:
    there = warp_block(second, way, grid.crop(block.core), NAN_OUTSIDE)
    return np.asarray(part + there, np.float32)

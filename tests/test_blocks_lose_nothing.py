"""Many blocks against the whole image in one: known truth, large displacements, an empty block."""

from itertools import product

import numpy as np
import pytest

from itkstream.compute.execute import compute
from itkstream.estimate.deformation import prepare_displacement
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Image
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS
from itkstream.phantoms import Motion, PhantomSettings, make_pair

BLOCKS = (64, 56, 48)
OVERLAP = 6


@pytest.fixture(scope="module")
def rounds():
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.02, shift=0.03, warp_um=9)
    return make_pair(PhantomSettings((128, 112, 96), (1.0, 1.0, 1.2), 3, motion=motion))


@pytest.fixture(scope="module")
def start(rounds):
    """The affine part of the truth: all that is left is the deformation."""
    return AffineTransform(np.array(rounds.truth.matrix))


@pytest.fixture(scope="module", params=["textured", "one block empty"])
def solved(request, rounds, start):
    """Errors of both ways at the same tissue points, and the blocks' displacement."""
    fixed = rounds.fixed
    if request.param != "textured":
        voxels = fixed.read().copy()
        voxels[BLOCKS[0] :, BLOCKS[1] :, BLOCKS[2] :] = 120
        fixed = Image(voxels, fixed.grid)
    settings = PIPELINE_DEFAULTS.for_voxels(fixed.spacing)
    errors, fields = [], []
    for blocksize, overlap in ((fixed.shape, 0), (BLOCKS, OVERLAP)):
        lazy = prepare_displacement(fixed, rounds.moving, start, blocksize, settings, overlap)
        fields.append(compute(lazy))
        found = CompositeTransform((DisplacementField(fields[-1], fixed.grid), start))
        errors.append(rounds.error(found.apply, 2).vox)
    return errors, fields[1]


def test_the_displacement_exceeds_the_overlap(rounds, start):
    assert rounds.error(start.apply, 2).vox.max() > OVERLAP


def test_blocks_are_as_accurate_as_the_whole_image(solved):
    (whole, blocks), _ = solved
    # The bound. The same levels see the same voxels, but for the finest one at borders.
    for q in (50, 95):
        assert np.percentile(blocks, q) <= 1.05 * np.percentile(whole, q)


def test_no_jump_at_the_borders_of_blocks(solved):
    _, field = solved
    for axis, component in product(range(3), range(3)):
        steps = np.abs(np.diff(field[..., component], axis=axis))
        before, border, after = (np.take(steps, BLOCKS[axis] + k, axis=axis) for k in (-2, -1, 0))
        inside = np.delete(steps, BLOCKS[axis] - 1, axis=axis)
        # The field's own gradient bounds what is smooth; a jump would stand out of it, and out of
        # the steps on either side. Steps are differences of vectors in single precision.
        rounding = np.spacing(np.abs(field).max())
        assert border.max() <= inside.max() + rounding
        assert border.mean() <= 1.1 * max(before.mean(), after.mean())

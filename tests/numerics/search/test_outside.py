"""What lies outside of both images is told where it belongs together, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from itkstream.geometry import Image
from itkstream.numerics.search.evidence import Evidence
from itkstream.numerics.search.outside import find_outside
from itkstream.numerics.search.witnesses import Witnesses
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair

SLAB = 20
EVIDENCE = Evidence(100, (), 300)


@pytest.fixture(scope="module")
def nuclei() -> PhantomPair:
    """Both images of the same nuclei, with noise of their own."""
    still = Motion(rotation_deg=0, stretch=0, shear=0, shift=0, warp_um=0)
    return make_pair(PhantomSettings((80, 64, 56), (1.0, 1.0, 1.0), 5, motion=still))


def shifted(by: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = by
    return matrix


def test_a_slab_at_the_other_end_is_found(nuclei: PhantomPair) -> None:
    """The affine brings three of four slabs together; the fourth is 80 µm from where it puts it."""
    rolled = Image(np.roll(nuclei.moving.read(), SLAB, axis=0), nuclei.moving.grid)
    found = find_outside(Witnesses(nuclei.fixed, rolled), shifted(SLAB), EVIDENCE)
    assert found is not None
    # Cubes of 80 / 48 µm tell it to one of them.
    assert found.apart_um == pytest.approx(80, abs=2)
    assert found.inliers >= 20
    assert found.agree == EVIDENCE.supported


def test_two_views_that_overlap_have_nothing_else_in_common(nuclei: PhantomPair) -> None:
    whole = tuple(slice(0, n) for n in nuclei.fixed.shape[1:])
    left, right = (
        Image(image.read()[box], image.grid.crop(box))
        for image, box in (
            (nuclei.fixed, (slice(0, 80 - SLAB), *whole)),
            (nuclei.moving, (slice(SLAB, 80), *whole)),
        )
    )
    assert find_outside(Witnesses(left, right), np.eye(4), EVIDENCE) is None


def test_where_all_of_one_image_is_seen_nothing_is_looked_for(nuclei: PhantomPair) -> None:
    assert find_outside(Witnesses(nuclei.fixed, nuclei.moving), shifted(4), EVIDENCE) is None

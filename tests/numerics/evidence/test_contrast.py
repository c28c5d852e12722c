"""Choice of a similarity: images of one contrast, of another, and of none in common."""

from functools import partial

import numpy as np
import pytest
from waves import texture as waves

from itkstream.geometry import Grid, Image
from itkstream.numerics.evidence.contrast import (
    coherence,
    descriptor_likeness,
    find_similarity,
    mutual_information,
)

SHAPE = (56, 52, 48)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0))
CONTRASTS = {
    "same": lambda v: v,
    "inverted": lambda v: 300 - v,
    "squared": lambda v: v**2,
    "folded": lambda v: 100 * np.cos((v - 100) / 30),
}


texture = partial(waves, shortest=8)


def pair(contrast, grid=GRID, noise=8.0):
    """Two images two units apart in places, the second in another contrast and with noise."""
    points = grid.positions()
    moved = points + 2 * np.sin(2 * np.pi / 60 * points)
    rng = np.random.default_rng(3)
    other = CONTRASTS[contrast](texture(points))
    other = other + noise / 55 * other.std() * rng.normal(size=grid.shape)
    return Image(texture(moved).astype(np.float32), grid), other.astype(np.float32)


@pytest.mark.parametrize(
    ("contrast", "similarity"),
    [("same", "lcc"), ("inverted", "lcc"), ("squared", "lcc"), ("folded", "mind")],
)
@pytest.mark.parametrize("grid", [GRID, Grid((150, 130), (0.4, 0.4))], ids=["volume", "plane"])
def test_correlation_serves_where_its_signs_agree(contrast, similarity, grid):
    wide = Grid(grid.shape, tuple(1.0 for _ in grid.shape))
    fixed, aligned = pair(contrast, wide)
    found = find_similarity(Image(fixed.data, grid), aligned, np.ones(grid.shape, bool))
    assert found.similarity == similarity
    assert (found.information is None) == (similarity == "lcc")
    assert found.facts["similarity"] == similarity
    assert f"{found.coherence:.2f}" in found.reason
    assert not found.is_chance


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_nothing_to_compare_leaves_correlation(fill):
    fixed, aligned = pair("same")
    found = find_similarity(fixed, np.full_like(aligned, fill), np.ones(SHAPE, bool))
    assert found.similarity == "lcc"
    assert "contrast_coherence" not in found.facts
    assert "no texture" in found.reason


def test_unrelated_images_leave_correlation():
    fixed, _ = pair("same")
    foreign = texture(GRID.positions(), seed=1).astype(np.float32)
    assert find_similarity(fixed, foreign, np.ones(SHAPE, bool)).similarity == "lcc"


def test_what_descriptors_follow_in_unrelated_images_is_chance():
    fixed, _ = pair("same")
    foreign = texture(GRID.positions(), seed=1).astype(np.float32)
    found = find_similarity(fixed, foreign, np.ones(SHAPE, bool), given="mind")
    assert found.similarity == "mind"
    assert found.is_chance
    assert "information_gain_deviations" in found.facts


def test_only_tissue_is_asked():
    fixed, aligned = pair("folded")
    half = np.ones(SHAPE, bool)
    half[:28] = False
    # Outside the tissue both images agree fully.
    aligned[~half] = fixed.data[~half]
    assert find_similarity(fixed, aligned, half).similarity == "mind"


def test_voxels_without_value_are_left_out():
    fixed, aligned = pair("inverted")
    plain = coherence(fixed.data, aligned, np.ones(SHAPE, bool))
    aligned[20:, :10] = np.nan
    there = coherence(fixed.data, aligned, np.ones(SHAPE, bool))
    assert there == pytest.approx(plain, abs=0.05)  # of a fifth fewer windows
    assert there > 0.9


def test_information_is_that_of_a_known_distribution():
    rng = np.random.default_rng(0)
    a = rng.normal(size=200_000)
    for r in (0.0, 0.5, 0.9):
        b = r * a + np.sqrt(1 - r * r) * rng.normal(size=a.size)
        # Of two Gaussians with correlation r; 24 ranks lose some hundredths where it is high, and
        # chance adds 23^2 / (2 * 200000).
        assert mutual_information(a, b) == pytest.approx(-0.5 * np.log(1 - r * r), abs=0.05)
        # Ranks know no contrast that rises or falls.
        assert mutual_information(a, -np.exp(b)) == pytest.approx(
            mutual_information(a, b), abs=1e-3
        )
    b[::2] = np.nan
    assert mutual_information(a, b) == pytest.approx(mutual_information(a[1::2], b[1::2]))
    assert mutual_information(a, np.full_like(a, np.nan)) == 0.0


def test_descriptors_tell_what_lies_nearer():
    fixed, aligned = pair("folded", noise=0.0)
    tissue = np.zeros(SHAPE, bool)
    tissue[8:-8, 8:-8, 8:-8] = True
    points = GRID.positions()
    moved = points + 2 * np.sin(2 * np.pi / 60 * points)
    right = CONTRASTS["folded"](texture(moved))
    far, near, there = (
        descriptor_likeness(fixed, x, tissue) for x in (-points[..., 0], aligned, right)
    )
    assert far < near < there
    assert there > 0.5
    assert descriptor_likeness(fixed, np.full(SHAPE, np.nan), tissue) == 0.0

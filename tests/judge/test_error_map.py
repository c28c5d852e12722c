"""Error maps: right places have small radii, wrong ones large, those out of view none."""

import dask
import numpy as np
import pytest
from scipy import ndimage

from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.judge import error_map
from itkstream.judge.error_map import look_over, prepare_error_map


def tissue(shape, seed=0):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), [1.5 * (n > 3) for n in shape])
    return (100 * smooth / smooth.std()).astype(np.float32)


def seen_twice(shape, seed=0):
    """A fixed and a moving image of one tissue, each with noise of its own."""
    image, rng = tissue(shape, seed), np.random.default_rng(seed + 100)
    return [image + 20 * rng.standard_normal(shape).astype(np.float32) for _ in range(2)]


def shift(*by):
    matrix = np.eye(len(by) + 1)
    matrix[:-1, -1] = by
    return AffineTransform(matrix)


def radii(fixed, moving, transform, most_voxels=2.5e5):
    overview = look_over(fixed, moving, transform, most_voxels)
    lazy, grid = prepare_error_map((fixed, moving), transform, overview)
    found = lazy.compute(scheduler="synchronous")
    assert found.shape == grid.shape
    assert found.dtype == np.float32
    return found, grid


def images(voxels, spacing):
    grid = Grid(voxels[0].shape, spacing)
    return [Image(part, grid) for part in voxels]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((56, 48, 48), (1.0, 1.0, 1.0)),
        ((56, 48, 16), (0.5, 0.5, 1.5)),
        ((96, 80), (2.0, 2.0)),
        ((80, 72, 4), (1.0, 1.0, 4.0)),
        ((1, 80, 72), (1.0, 1.0, 1.0)),
    ],
)
def test_right_is_told_from_wrong(shape, spacing):
    pair = images(seen_twice(shape), spacing)
    right, grid = radii(*pair, shift(*(0.0,) * len(shape)))
    assert grid.ndim == len(shape)
    voxel = min(h for h, n in zip(spacing, shape, strict=True) if n > 1)
    assert np.nanmedian(right) < 1.5 * voxel
    off = [10 * voxel if n > 20 else 0.0 for n in shape]
    wrong, _ = radii(*pair, shift(*off))
    assert np.nanmedian(wrong) > 5 * voxel


@pytest.mark.parametrize(
    ("shape", "coarser"), [((72, 64, 60), 4), ((480, 448), 8), ((480, 448), 16)]
)
def test_radii_do_not_shrink_with_a_coarser_overview(shape, coarser):
    """An image a hundred times as large is seen on voxels as much coarser; an error stays it."""
    off = 2.5
    pair = images(seen_twice(shape), (1.0,) * len(shape))
    wrong = shift(off, *(0.0,) * (len(shape) - 1))
    fine, _ = radii(*pair, wrong)
    coarse, _ = radii(*pair, wrong, np.prod(shape) / coarser ** len(shape))
    assert np.nanmedian(fine) > off
    assert np.nanmean(coarse > off) > 0.9
    right, _ = radii(*pair, shift(*(0.0,) * len(shape)), np.prod(shape) / coarser ** len(shape))
    assert np.nanmedian(right) < 0.75 * np.nanmedian(coarse)


def test_a_half_of_other_tissue_is_flagged():
    first, second = seen_twice((72, 48, 48))
    other = np.where(np.arange(72)[:, None, None] < 36, second, tissue(first.shape, 9))
    found, _ = radii(*images([first, other.astype(np.float32)], (1.0,) * 3), shift(0.0, 0.0, 0.0))
    # 4.9 voxels: as far as deformations of other tissue lead there, each half elsewhere.
    sound, torn = np.median(found[:3]), np.median(found[6:])
    assert sound < 2
    assert torn > max(4, 3 * sound)


def test_out_of_view_nothing_is_said():
    first, second = seen_twice((72, 48, 48))
    fixed, moving = images([first, second], (1.0,) * 3)
    found, _ = radii(fixed, moving[:36], shift(0.0, 0.0, 0.0))
    assert np.isfinite(found[:4]).all()
    assert np.isnan(found[5:]).all()
    masked = first.copy()
    masked[:24] = np.nan
    found, _ = radii(Image(masked, fixed.grid), moving, shift(0.0, 0.0, 0.0))
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[4:]).all()


@pytest.mark.parametrize("contrast", ["inverted", "folded"])
def test_other_contrasts_are_compared_too(contrast):
    first, second = seen_twice((56, 48, 48))
    second = -second if contrast == "inverted" else np.abs(second)
    pair = images([first, second], (1.0,) * 3)
    right, wrong = (np.nanmedian(radii(*pair, shift(x, 0.0, 0.0))[0]) for x in (0.0, 10.0))
    assert right < wrong / 3


def test_blocks_give_what_the_whole_gives(monkeypatch):
    pair = images(seen_twice((200, 40, 40)), (1.0,) * 3)
    still = shift(0.0, 0.0, 0.0)
    whole, _ = radii(*pair, still)
    monkeypatch.setattr(error_map, "_BLOCK", 32)
    lattice = error_map.ErrorLattice.of(pair[0].grid)
    assert len(lattice.blocks) == len(lattice.node_blocks) > 1
    parts, _ = radii(*pair, still)
    # Running means over patches differ by their rounding.
    np.testing.assert_allclose(parts, whole, rtol=0.01)


def test_large_images_are_looked_at_half_as_finely(monkeypatch):
    monkeypatch.setattr(error_map, "_FINE_VOXELS", 1e5)
    pair = images(seen_twice((56, 48, 48)), (1.0,) * 3)
    found, grid = radii(*pair, shift(0.0, 0.0, 0.0))
    assert grid.spacing == (16.0,) * 3
    assert np.nanmedian(found) < 3


def test_a_map_is_the_same_bits_by_any_threads(monkeypatch):
    pair = images(seen_twice((56, 48, 48)), (1.0,) * 3)
    first, _ = radii(*pair, shift(1.0, 0.0, 0.0))
    monkeypatch.setenv("ITKSTREAM_THREADS", "3")
    with dask.config.set(num_workers=3):
        again, _ = radii(*pair, shift(1.0, 0.0, 0.0))
    np.testing.assert_array_equal(first, again)

"""The phantom is the ground truth of other tests: here it is held against independent means."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import Grid, Image
from itkstream.numerics.threads import using_threads
from itkstream.phantoms import (
    Motion,
    PhantomPair,
    PhantomSettings,
    SyntheticTransform,
    make_pair,
    target_registration_error,
    tutorial_settings,
)

RESOURCES = Path(__file__).parents[1] / "resources"
TINY = PhantomSettings(shape=(40, 36, 30), radii_um=(3.0, 5.0), motion=Motion(warp_um=2.0))


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(PhantomSettings(seed=3))


def transform(ndim: int, seed: int = 0) -> SyntheticTransform:
    rng = np.random.default_rng(seed)
    matrix = np.eye(ndim + 1)
    matrix[:ndim] += rng.normal(0, 0.05, (ndim, ndim + 1))
    matrix[:ndim, ndim] = rng.uniform(-30, 30, ndim)
    return SyntheticTransform(
        tuple(map(tuple, matrix)),
        tuple(map(tuple, rng.uniform(0, 80, (9, ndim)))),
        tuple(map(tuple, rng.uniform(-2, 2, (9, ndim)))),
        tuple(rng.uniform(12, 20, 9)),
    )


def sample(image: Image, points: np.ndarray) -> np.ndarray:
    index = np.moveaxis(image.grid.to_index(points), -1, 0)
    return ndimage.map_coordinates(image.read().astype(float), index, order=1, cval=np.nan)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    seen = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[seen], b[seen])[0, 1])


class TestSyntheticTransform:
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_is_the_formula_it_states(self, ndim):
        true = transform(ndim)
        points = np.random.default_rng(1).uniform(-20, 100, (4, 5, ndim))
        moved = points.copy()
        for centre, vector, width in zip(true.centres, true.vectors, true.widths, strict=True):
            far = ((points - centre) ** 2).sum(axis=-1, keepdims=True)
            moved += np.exp(-far / (2 * width**2)) * vector
        matrix = np.asarray(true.matrix)
        expected = moved @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim]
        # The same float64 sums in another order: some units in the last place of 100 µm.
        np.testing.assert_allclose(true(points), expected, rtol=0, atol=1e-11)

    @given(
        seed=st.integers(0, 50),
        ndim=st.sampled_from([2, 3]),
        point=st.tuples(*[st.floats(-500, 500)] * 3),
    )
    @settings(max_examples=60, deadline=None)
    def test_inverse_undoes_it(self, seed, ndim, point):
        true = transform(ndim, seed)
        start = np.array(point[:ndim])
        # The documented tolerance, 1e-9 µm, is on the deformation's residual; a Jacobian of 0.5
        # and a matrix near identity at most double it.
        np.testing.assert_allclose(true.inverse(true(start)), start, rtol=0, atol=4e-9)
        np.testing.assert_allclose(true(true.inverse(start)), start, rtol=0, atol=4e-9)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_jacobian_is_that_of_finite_differences(self, ndim):
        true = transform(ndim)
        points = np.random.default_rng(2).uniform(0, 80, (50, ndim))
        step = 1e-4 * np.eye(ndim)
        columns = [(true(points + s) - true(points - s)) / 2e-4 for s in step]
        expected = np.linalg.det(np.stack(columns, axis=-1))
        # Central differences: truncation 1e-10, rounding 1e-14 * 100 / 1e-4 = 1e-8, three columns.
        np.testing.assert_allclose(true.jacobian_determinant(points), expected, atol=1e-7)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_json_keeps_every_bit(self, ndim):
        true = transform(ndim)
        again = SyntheticTransform.from_json(true.to_json())
        assert again == true
        points = np.random.default_rng(3).uniform(0, 80, (20, ndim))
        np.testing.assert_array_equal(again(points), true(points))

    def test_without_bumps_it_is_affine(self):
        matrix = ((1.0, 0.1, 0.0, 5.0), (0.0, 1.0, 0.0, -3.0), (0, 0, 1, 2), (0, 0, 0, 1))
        np.testing.assert_allclose(SyntheticTransform(matrix)([1.0, 2.0, 3.0]), [6.2, -1.0, 5.0])

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("nonsense", "JSON text"),
            ("[]", "format"),
            ('{"format": "something else"}', "format"),
            ('{"format": "itkstream synthetic transform 1", "matrix": []}', "lacks the entry"),
        ],
    )
    def test_refuses_other_text(self, text, says):
        with pytest.raises(InputError, match=says):
            SyntheticTransform.from_json(text)

    def test_refuses_what_does_not_fit(self):
        eye = tuple(map(tuple, np.eye(4)))
        with pytest.raises(InputError, match="matrix must be"):
            SyntheticTransform(((1.0, 0.0), (0.0, 1.0)))
        with pytest.raises(InputError, match="centres must be"):
            SyntheticTransform(eye, ((0.0, 0.0),), ((0.0, 0.0, 1.0),), (5.0,))
        with pytest.raises(InputError, match="3 coordinates"):
            SyntheticTransform(eye)(np.zeros((5, 2)))


class TestMakePair:
    def test_same_settings_same_bits_on_any_threads(self):
        made = []
        for threads in (1, 3):
            with using_threads(threads):
                made.append(make_pair(TINY))
        for name in ("fixed", "moving"):
            np.testing.assert_array_equal(getattr(made[0], name).data, getattr(made[1], name).data)
        np.testing.assert_array_equal(made[0].tissue, made[1].tissue)
        assert made[0].truth == made[1].truth

    def test_another_seed_is_another_tissue(self):
        other = make_pair(PhantomSettings(TINY.shape, TINY.spacing, 1, motion=Motion(warp_um=2)))
        made = make_pair(TINY)
        assert other.truth != made.truth
        assert cKDTree(made.nuclei).query(other.nuclei)[0].min() > 1e-6
        assert correlation(made.fixed.data.ravel(), other.fixed.data.ravel()) < 0.5

    def test_grids_and_type_are_those_asked_for(self):
        made = make_pair(
            PhantomSettings(
                (40, 36, 30), (1, 1.2, 1.5), moving_shape=(44, 30, 24), moving_spacing=(1, 1.3, 1.8)
            )
        )
        assert made.fixed.grid == Grid((40, 36, 30), (1, 1.2, 1.5))
        assert made.moving.grid == Grid((44, 30, 24), (1, 1.3, 1.8))
        assert made.fixed.dtype == made.moving.dtype == np.uint16
        assert made.tissue.shape == made.fixed.shape

    def test_looks_like_a_camera_image(self, pair):
        for image in (pair.fixed, pair.moving):
            low, high = np.percentile(image.data, [1, 99.9])
            assert 100 < low < 200
            assert 3000 < high < 20000

    def test_nuclei_lie_in_the_tissue_and_margins_are_empty(self, pair):
        nearest = np.rint(pair.fixed.grid.to_index(pair.nuclei)).astype(int)
        # A centre on the tissue's surface may round to the voxel next to it.
        around = ndimage.binary_dilation(pair.tissue, np.ones((3, 3, 3)))
        assert around[tuple(nearest.T)].all()
        assert 0.4 < pair.tissue.mean() < 0.9
        # Background 120 counts, read noise 2.5; nuclei reach at most 11 µm out of the tissue.
        far = ndimage.distance_transform_edt(~pair.tissue, pair.fixed.spacing) > 11
        assert np.abs(np.median(pair.fixed.data[far]) - 120) <= 2

    @pytest.mark.parametrize("seed", range(4))
    def test_truth_takes_a_nucleus_to_where_it_shows(self, seed):
        made = make_pair(
            PhantomSettings(
                seed=seed, density=0.04, noise=0, missing=0, restaining=0, radii_um=(4.0, 6.0)
            )
        )
        apart = cKDTree(made.nuclei).query(made.nuclei, 2)[0][:, 1]
        compared = 0
        for centre, radius, gap in zip(made.nuclei, made.radii, apart, strict=True):
            reach = 1.35 * radius + 3  # half axes are up to 1.35 mean radii; 3 µm for the blur
            if gap < reach + 10:
                continue
            spots = [(made.fixed, centre), (made.moving, made.truth(centre))]
            if all(_surrounded(image.grid, spot, reach + 2) for image, spot in spots):
                seen = [_centroid(image, spot, reach) for image, spot in spots]
                miss = (seen[1] - made.truth(seen[0])) / made.moving.spacing
                assert np.linalg.norm(miss) < 0.2  # uneven light and faint fibres pull a little
                compared += 1
        assert compared >= 2

    def test_truth_aligns_the_images(self, pair):
        points = pair.fixed.grid.positions()[pair.tissue]
        fixed = pair.fixed.data[pair.tissue].astype(float)
        before = correlation(fixed, sample(pair.moving, points))
        after = correlation(fixed, sample(pair.moving, pair.truth(points)))
        affine = SyntheticTransform(pair.truth.matrix)
        between = correlation(fixed, sample(pair.moving, affine(points)))
        # 0.8, not 1: nuclei change brightness, some are missing, and the second camera is bent.
        assert after > 0.75
        assert before < 0.3
        assert between < after - 0.05

    @pytest.mark.parametrize("seed", range(6))
    def test_deformation_is_as_strong_as_asked_and_does_not_fold(self, seed):
        made = make_pair(PhantomSettings((48, 40, 32), (2, 2, 3), seed, noise=0))
        points = made.fixed.grid.positions()
        affine = SyntheticTransform(made.truth.matrix)
        bend = affine.inverse(made.truth(points)) - points
        # The peak was found on a lattice a third of the narrowest bump apart: 3 % covers it.
        assert np.linalg.norm(bend, axis=-1).max() == pytest.approx(4.0, rel=0.03)
        scale = np.linalg.det(np.asarray(made.truth.matrix))
        assert (made.truth.jacobian_determinant(points) / scale).min() >= 0.5

    def test_no_motion_is_identity(self):
        made = make_pair(
            PhantomSettings(
                TINY.shape, missing=0, restaining=0, noise=0, motion=Motion(0, 0, 0, 0, 0)
            )
        )
        points = made.fixed.grid.positions()
        np.testing.assert_allclose(made.truth(points), points, atol=1e-12)
        # The light sheet's phase is drawn anew for each round, its amplitude is 8 % per axis.
        assert correlation(made.fixed.data.ravel(), made.moving.data.ravel()) > 0.98

    def test_two_axes(self):
        made = make_pair(PhantomSettings((160, 120), (1, 1.2), motion=Motion(shift=0.05)))
        assert made.fixed.shape == made.moving.shape == made.tissue.shape == (160, 120)
        assert made.nuclei.shape == (len(made.radii), 2)
        points = made.fixed.grid.positions()[made.tissue]
        fixed = made.fixed.data[made.tissue].astype(float)
        assert correlation(fixed, sample(made.moving, made.truth(points))) > 0.75
        assert correlation(fixed, sample(made.moving, points)) < 0.4

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"density": -1.0}, "density"),
            ({"noise": np.nan}, "noise"),
            ({"missing": 1.5}, "missing"),
            ({"radii_um": (5.0, 4.0)}, "radii_um"),
            ({"shape": (8, 80, 64)}, "cannot hold nuclei"),
            ({"moving_shape": (80, 80), "moving_spacing": (1, 1)}, "same number of axes"),
            ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ],
    )
    def test_refuses_bad_settings(self, change, says):
        with pytest.raises(InputError, match=says):
            PhantomSettings(**change)

    def test_refuses_bad_motion(self):
        with pytest.raises(InputError, match="warp_um"):
            Motion(warp_um=-1)
        with pytest.raises(InputError, match="stretch"):
            Motion(stretch=1.0)
        with pytest.raises(InputError, match="Jacobian"):
            make_pair(PhantomSettings(motion=Motion(warp_um=40)))
        with pytest.raises(InputError, match="no nucleus"):
            make_pair(PhantomSettings(density=0.0))


class TestTargetError:
    @given(seed=st.integers(0, 1000), stride=st.integers(2, 7))
    @settings(max_examples=25, deadline=None)
    def test_truth_has_none(self, pair, seed, stride):
        offset = np.random.default_rng(seed).normal(size=3)
        exact = pair.error(pair.truth, stride)
        assert exact.um.max() == exact.vox.max() == 0
        shifted = pair.error(lambda p: pair.truth(p) + offset, stride)
        # float64 rounding of positions near 100 µm.
        np.testing.assert_allclose(shifted.um, np.linalg.norm(offset), rtol=1e-9)
        in_voxels = np.linalg.norm(offset / pair.moving.spacing)
        np.testing.assert_allclose(shifted.vox, in_voxels, rtol=1e-9)

    def test_takes_the_tissue_that_both_images_show(self, pair):
        points = pair.fixed.grid.positions()
        index = pair.moving.grid.to_index(pair.truth(points))
        seen = ((index >= 0) & (index <= np.subtract(pair.moving.shape, 1))).all(axis=-1)
        asked: list[np.ndarray] = []

        def spy(p: np.ndarray) -> np.ndarray:
            asked.append(p)
            return p

        third = (slice(None, None, 3),) * 3
        assert len(pair.error(spy, stride=3).um) == (seen & pair.tissue)[third].sum()
        np.testing.assert_allclose(asked[0], points[third][(seen & pair.tissue)[third]])

    def test_summary(self, pair):
        summary = pair.error(lambda p: np.add(pair.truth(p), [3.0, 0, 0])).summary()
        assert summary["median_um"] == pytest.approx(3)
        assert summary["p95_vox"] == pytest.approx(3)
        assert set(summary) == {f"{k}_{u}" for k in ("median", "p95", "max") for u in ("um", "vox")}

    def test_refuses_no_point_and_wrong_shape(self, pair):
        nothing = Image(np.zeros(pair.fixed.shape, bool), pair.fixed.grid)
        with pytest.raises(InputError, match="no tissue point"):
            target_registration_error(pair.truth, pair.truth, nothing, pair.moving.grid)
        with pytest.raises(InputError, match="one for each"):
            pair.error(lambda p: p[:5])


class TestTutorialData:
    def test_stands_as_described_and_small(self):
        size = sum(f.stat().st_size for f in RESOURCES.rglob("*") if f.is_file())
        assert size < 30e6
        wanted = tutorial_settings()
        for name, grid in (("fix", wanted.fixed_grid), ("mov", wanted.moving_grid)):
            for level, factor in (("highres", 1), ("lowres", 2)):
                path = RESOURCES / f"{name}.n5" / level
                attributes = json.loads((path / "attributes.json").read_text())
                assert attributes["dimensions"] == [n // factor for n in grid.shape]
                assert attributes["downsamplingFactors"] == [factor] * 3
                assert attributes["pixelResolution"] == list(grid.spacing)

    def test_truth_aligns_what_is_stored(self):
        truth = SyntheticTransform.from_json((RESOURCES / "truth.json").read_text())
        settings = tutorial_settings()
        fixed = Image(_read(RESOURCES / "fix.n5/lowres"), settings.fixed_grid.shrink((2, 2, 2)))
        moving = Image(_read(RESOURCES / "mov.n5/lowres"), settings.moving_grid.shrink((2, 2, 2)))
        tissue = _read(RESOURCES / "tissue.n5/lowres").astype(bool)
        points = fixed.grid.positions()[tissue][::7]
        values = fixed.data[tissue][::7].astype(float)
        assert correlation(values, sample(moving, truth(points))) > 0.75
        assert correlation(values, sample(moving, points)) < 0.3

    def test_script_writes_both_levels_and_overwrites_nothing(self, tmp_path):
        script = _script()
        made = make_pair(TINY)
        script.write_container(tmp_path / "fix.n5", made.fixed)
        np.testing.assert_array_equal(_read(tmp_path / "fix.n5/highres"), made.fixed.data)
        half = [ndimage.uniform_filter(made.fixed.data.astype(float), 2)[1::2, 1::2, 1::2]]
        # The average is rounded to whole counts; the filter's running sums round at 1e-10.
        np.testing.assert_allclose(_read(tmp_path / "fix.n5/lowres"), half[0], atol=0.5 + 1e-9)
        with pytest.raises(ExistingOutputError, match=r"fix\.n5"):
            script.clear(tmp_path, overwrite=False)
        script.clear(tmp_path, overwrite=True)
        assert not (tmp_path / "fix.n5").exists()


def _surrounded(grid: Grid, point: np.ndarray, reach: float) -> bool:
    return bool((point > reach).all() and (point < grid.to_physical(grid.shape) - 1 - reach).all())


def _centroid(image: Image, middle: np.ndarray, reach: float) -> np.ndarray:
    offsets = image.grid.positions() - middle
    far = np.linalg.norm(offsets, axis=-1)
    shell = (far > reach) & (far < reach + 2)
    weight = image.data[far < reach] - np.median(image.data[shell])
    return np.asarray(middle + weight @ offsets[far < reach] / weight.sum())


def _read(path: Path) -> np.ndarray:
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec).result().read().result())


def _script():
    spec = importlib.util.spec_from_file_location("made", RESOURCES / "make_tutorial_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

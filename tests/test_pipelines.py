"""The main job on a small phantom: what it finds, what it writes, what it refuses."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk

import itkstream
from itkstream.errors import ExistingOutputError, InputError, MissingDataError, RegistrationError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.fields import jacobian_determinant
from itkstream.numerics.itk_settings import DemonsSettings, IntensitySettings
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.pipelines import RegisterSettings, _Run, register
from itkstream.workers import Resources

SETTINGS = RegisterSettings(
    radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8, local_blocksize=64, blocksize=64
)


@pytest.fixture(scope="module")
def rounds():
    """Two rounds some voxels apart, of different shapes, with room for several blocks."""
    motion = Motion(rotation_deg=3, stretch=0.02, shear=0.02, shift=0.05, warp_um=3)
    return make_pair(
        PhantomSettings((128, 96, 64), (1.0, 1.0, 1.3), 11, (120, 100, 66), motion=motion)
    )


@pytest.fixture(scope="module")
def registered(rounds, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "registered"
    return register(rounds.fixed, rounds.moving, out, SETTINGS)


class Heard:
    """Keeps what a run reports."""

    def __init__(self):
        self.steps, self.done, self.notes = [], [], []

    def step(self, title):
        self.steps.append(title)

    def blocks(self, done, total):
        self.done.append((done, total))

    def note(self, text):
        self.notes.append(text)


def correlations(report):
    return [s["local_correlation"] for s in report["steps"] if "local_correlation" in s]


def test_finds_the_true_map(rounds, registered):
    error = rounds.error(registered.transform.apply, 3).summary()
    # The bounds the demo promises; noise and missing nuclei alone cost 0.1 and 0.5 voxel.
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 1.5


def test_every_step_raises_the_local_correlation(registered):
    found = correlations(registered.report)
    assert len(found) >= 3
    assert all(after > before for before, after in pairwise(found))


def test_no_voxel_is_folded(registered):
    step = next(s for s in registered.report["steps"] if s["name"] == "deformation")
    field = registered.transform.transforms[0]
    determinant = jacobian_determinant(np.asarray(field.data[(slice(None),) * 4]), field.grid)
    assert step["folded_voxels"] == 0
    assert determinant.min() == pytest.approx(step["least_jacobian"], abs=1e-6)
    assert determinant.min() > 0


def test_the_folder_holds_what_was_promised(rounds, registered):
    report = json.loads((registered.out / "registration.json").read_bytes())
    assert report["itkstream"] == itkstream.__version__
    assert report["fixed"]["grid"]["spacing"] == list(rounds.fixed.spacing)
    assert report["settings"]["seed"] == 0
    assert all(step["seconds"] >= 0 for step in report["steps"])
    aligned = itkstream.open_image(registered.out / "aligned.ome.zarr")
    assert aligned.grid.axes == ("z", "y", "x")
    assert registered.aligned.grid == rounds.fixed.grid
    assert registered.aligned.dtype == np.uint16


def test_aligned_image_is_the_moving_image_through_the_transform(rounds, registered):
    expected = itkstream.transform.apply_transform(
        rounds.fixed, rounds.moving, registered.transform
    )
    # Blocks number their voxels from their own corner: positions agree to 1e-12 voxel, so a
    # rounding tie may fall to the other side.
    apart = np.abs(registered.aligned.read().astype(int) - expected.astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_itk_reads_the_same_transform(rounds, registered):
    read = sitk.ReadTransform(str(registered.out / "itk" / "composite.h5"))
    points = rounds.nuclei[:200]
    mapped = np.array([read.TransformPoint(p) for p in points.tolist()])
    assert np.abs(mapped - registered.transform.apply(points)).max() < 1e-3 * min(
        rounds.moving.spacing
    )


def test_stores_and_worker_processes_give_the_same_bits(rounds, registered, tmp_path):
    for name, image in (("fix", rounds.fixed), ("mov", rounds.moving)):
        store = itkstream.io.create_ome_zarr(
            tmp_path / name, image.grid, image.dtype, chunks=(32, 32, 32)
        )
        store[:] = image.read()
    heard = Heard()
    again = register(
        tmp_path / "fix",
        tmp_path / "mov",
        tmp_path / "out",
        SETTINGS,
        resources=Resources(n_workers=2),
        reporter=heard,
    )
    field, field_again = (r.transform.transforms[0].data for r in (registered, again))
    everything = (slice(None),) * 4
    np.testing.assert_array_equal(field[everything], field_again[everything])
    np.testing.assert_array_equal(registered.aligned.read(), again.aligned.read())
    assert correlations(again.report) == correlations(registered.report)
    assert "affine" in heard.steps
    assert "aligned image" in heard.steps
    assert all(done <= total for done, total in heard.done)
    assert any(done == total > 1 for done, total in heard.done)


def test_blocks_at_full_resolution_start_from_the_whole_image(rounds, tmp_path):
    in_blocks = RegisterSettings(
        radii=((2.0, 6.0),),
        match_threshold=0.6,
        cc_radius=8,
        local_blocksize=0,
        deform_blocksize=64,
        coarse_voxels=rounds.fixed.grid.size / 3,
    )
    result = register(rounds.fixed, rounds.moving, tmp_path / "out", in_blocks)
    error = rounds.error(result.transform.apply, 3).summary()
    assert result.report["steps"][0]["coarse_shapes"][0] != list(rounds.fixed.shape)
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 1.5


def test_intensities_and_demons_in_place_of_the_defaults(rounds, tmp_path):
    settings = replace(
        SETTINGS, intensity=IntensitySettings(), local_blocksize=0, deform=DemonsSettings()
    )
    result = register(rounds.fixed, rounds.moving, tmp_path / "out", settings)
    step = next(s for s in result.report["steps"] if s["name"] == "intensity affine")
    assert step["metric_after"] < step["metric_before"]
    assert result.report["settings"]["intensity"]["metric"] == "correlation"
    assert result.report["settings"]["deform"]["method"] == "symmetric-demons"
    error = rounds.error(result.transform.apply, 3).summary()
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 2


def test_intensities_that_help_are_kept(rounds):
    settings = replace(SETTINGS, intensity=IntensitySettings())
    run = _Run((rounds.fixed, rounds.moving), settings, Resources(), None)
    rough = np.array(rounds.truth.matrix)
    rough[:3, 3] += (2.0, -1.5, 1.0)
    start = AffineTransform(rough)
    before = run.quality = run._correlation(start)
    refined = run.refine_affine(start)
    assert "dropped" not in run.steps[-1]
    assert run.quality == run._correlation(refined) > before
    medians = [rounds.error(t.apply, 3).summary()["median_vox"] for t in (refined, start)]
    assert medians[0] < medians[1] - 1  # of the 2.7 voxels that it was shifted by


@pytest.mark.parametrize(
    ("intensity", "reason"),
    [
        # Six voxels away there is nothing better.
        (
            IntensitySettings(
                "translation", optimizer="exhaustive", step=6.0, search_steps=1,
                iterations=(1,), shrink_factors=(1,), smooth_sigmas=(0.0,),
            ),
            "did not improve",
        ),
        (IntensitySettings(metric="mean-squares"), "lowered the local correlation"),
    ],
)  # fmt: skip
def test_intensities_that_do_not_help_are_dropped(rounds, intensity, reason):
    # Light from one side: squares fall where the images are pushed apart along it.
    shape = rounds.moving.shape
    lit = rounds.moving.read() * np.linspace(0.2, 3, shape[0])[:, None, None]
    moving = Image(lit.astype(np.uint16), rounds.moving.grid)
    run = _Run((rounds.fixed, moving), replace(SETTINGS, intensity=intensity), Resources(), None)
    start = AffineTransform(rounds.truth.matrix)
    run.quality = run._correlation(start)
    assert run.refine_affine(start) is start
    assert reason in run.steps[-1]["dropped"]


def test_somebody_elses_folder_is_left_alone(rounds, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ExistingOutputError, match="never replaced"):
            register(rounds.fixed, rounds.moving, tmp_path, SETTINGS, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_run_is_replaced_only_when_asked(rounds, registered):
    before = (registered.out / "registration.json").read_bytes()
    with pytest.raises(ExistingOutputError, match="earlier run"):
        register(rounds.fixed, rounds.moving, registered.out, SETTINGS)
    assert (registered.out / "registration.json").read_bytes() == before


def constant(image):
    return Image(np.full(image.shape, 100, np.uint16), image.grid)


def not_a_number(image):
    return Image(np.full(image.shape, np.nan, np.float32), image.grid)


def plane(image):
    return Image(image.read()[:, :, 20], Grid(image.shape[:2], image.spacing[:2]))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (constant, RegistrationError, "every voxel of the image is 100"),
        (not_a_number, RegistrationError, "finite"),
        (plane, InputError, "axes"),
    ],
)
def test_images_that_cannot_be_registered(rounds, tmp_path, spoil, error, message):
    with pytest.raises(error, match=message):
        register(rounds.fixed, spoil(rounds.moving), tmp_path / "out", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dataset_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere"):
        register(tmp_path / "nowhere.n5" / "s0", tmp_path / "other", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radii", ()),
        ("deform_blocksize", 63),
        ("blocksize", 8),
        ("local_blocksize", 5),
        ("coarse_voxels", 10),
    ],
)
def test_every_bad_setting_is_named(name, value):
    with pytest.raises(InputError, match=name):
        RegisterSettings(**{name: value})

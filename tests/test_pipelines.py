"""The main job on a small phantom: what it finds, what it writes, what it refuses."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import itkstream
from itkstream.apply.coarsening import decimate
from itkstream.blocks.masks import masked
from itkstream.errors import ExistingOutputError, InputError, MissingDataError, RegistrationError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import create_ome_zarr
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.numerics.sampling.fields import jacobian_determinant
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.pipelines import Registration, register
from itkstream.progress.reporters import LogReporter
from itkstream.registration.folder import RunFolder
from itkstream.registration.journal import next_from, note_of
from itkstream.registration.request import open_mask
from itkstream.registration.run import Run
from itkstream.registration.scene import Scene, next_state
from itkstream.registration.steps import (
    Deformable,
    IntensityAffine,
    LocalAffines,
    RansacAffine,
    RegisterSettings,
    step_from,
)
from itkstream.workers import Resources

MATCHING = {"match_threshold": 0.6, "cc_radius": 8}
AFFINE = RansacAffine(radii=((2.0, 6.0),), **MATCHING)
STEPS = (AFFINE, LocalAffines(blocksize=64, **MATCHING), Deformable())
SETTINGS = RegisterSettings(blocksize=64, error_map=False, report=False)


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
    return register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)


class Heard:
    """Keeps what a run reports."""

    def __init__(self):
        self.steps, self.done, self.notes = [], [], []

    def step(self, title):
        self.steps.append(title)

    def expect(self, parts):
        pass

    def blocks(self, done, total):
        self.done.append((done, total))

    def note(self, text):
        self.notes.append(text)


def correlations(report):
    return [s["local_correlation"] for s in report["steps"] if "local_correlation" in s]


def test_a_registration_is_a_value(rounds, registered):
    opened = Registration.open(str(registered.out))
    assert repr(opened) == repr(registered)
    assert registered.verdict.outcome in repr(opened)
    points = np.array([[40.0, 50.0, 40.0], [60.0, 30.0, 50.0]])
    there = opened.apply(points)
    np.testing.assert_array_equal(there, registered.transform.apply(points))
    # Of the inverse: a hundredth of a voxel.
    np.testing.assert_allclose(opened.apply_inverse(there), points, atol=0.02)
    aligned = opened.apply(rounds.moving)
    assert aligned.grid == opened.aligned.grid
    np.testing.assert_array_equal(aligned.read(), opened.aligned.read())
    shown = opened._repr_html_()
    assert "data:image/png;base64," in shown
    assert opened.verdict.describe()[0] in shown
    with pytest.raises(MissingDataError, match="no folder that `itkstream register` wrote"):
        Registration.open(registered.out / "steps")


def test_finds_the_true_map(rounds, registered):
    error = rounds.error(registered.transform.apply, 3).summary()
    # The bounds the demo promises; noise and missing nuclei alone cost 0.1 and 0.5 voxel.
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 1.5


def test_every_step_raises_the_local_correlation(registered):
    found = correlations(registered.facts)
    assert len(found) >= 3
    assert all(after > before for before, after in pairwise(found))


def test_no_voxel_is_folded(registered):
    certificate = registered.facts["certificate"]
    field = registered.transform.transforms[0]
    determinant = jacobian_determinant(np.asarray(field.data[(slice(None),) * 4]), field.grid)
    assert (certificate["folded_voxels"], certificate["voxels"]) == (0, field.grid.size)
    assert determinant.min() == pytest.approx(certificate["least_jacobian"], abs=1e-6)
    assert determinant.min() > 0


def test_the_folder_holds_what_was_promised(rounds, registered):
    report = json.loads((registered.out / "registration.json").read_bytes())
    assert report["itkstream"] == itkstream.__version__
    assert report["fixed"]["grid"]["spacing"] == list(rounds.fixed.spacing)
    assert report["settings"]["blocksize"] == 64
    steps = report["settings"]["steps"]
    assert [step_from(*s.popitem()) for s in steps] == list(STEPS)
    assert all(step["seconds"] >= 0 for step in report["steps"])
    certificate = report["certificate"]
    assert (certificate["passed"], certificate["regions"], certificate["repair"]) == (
        True,
        [],
        None,
    )
    assert certificate["largest_inverse_error_vox"] < 0.1
    aligned = itkstream.open_image(registered.out / "aligned.ome.zarr")
    assert aligned.grid.axes == ("z", "y", "x")
    assert registered.aligned.grid == rounds.fixed.grid
    assert registered.aligned.dtype == np.uint16


def vectors_of(transform):
    field = transform.transforms[0]
    return np.asarray(field.data[(slice(None),) * 4])


def field_step(report):
    return next(s for s in report["steps"] if s["name"] == "field")


def test_a_field_that_cannot_be_coarser_is_handed_out_as_it_was_computed(registered):
    """Its nodes are those of the deformation, four voxels apart: most of them are needed."""
    computed = read_transform(registered.out / "steps/3.ome.zarr", ("x", "y", "z"))
    np.testing.assert_array_equal(vectors_of(registered.transform), vectors_of(computed))
    step = field_step(registered.facts)
    assert (step["factors"], step["error_vox"]) == ((1, 1, 1), 0)
    assert step["field_spacing"] == pytest.approx((4, 4, 3.9))


@pytest.fixture(scope="module")
def smooth(rounds, tmp_path_factory):
    """Blended affines: with a tolerance, and as they were computed."""
    steps, found = STEPS[:2], []
    for tolerance in (0.2, 0):
        out = tmp_path_factory.mktemp("smooth") / "out"
        settings = replace(SETTINGS, field_tolerance_vox=tolerance)
        found.append(register(rounds.fixed, rounds.moving, out, steps, settings))
    return found


@pytest.mark.slow
def test_a_field_is_stored_as_coarse_as_the_tolerance_lets_it(rounds, smooth):
    coarse, computed = smooth
    step = field_step(coarse.facts)
    assert step["factors"] == (4, 4, 3)
    field, fine = (s.transform.transforms[0] for s in smooth)
    assert step["field_spacing"] == field.grid.spacing
    assert field.grid.spacing == tuple(np.multiply(fine.grid.spacing, step["factors"]))
    # The error is that at the worst node, and the next coarser lattice would be out of tolerance.
    nodes, voxel = fine.grid.positions(), min(rounds.fixed.spacing)
    coarser = decimate(fine, (6, 6, 4))
    errors = [
        np.linalg.norm(f.apply(nodes) - fine.apply(nodes), axis=-1).max() / voxel
        for f in (field, coarser)
    ]
    assert step["error_vox"] == pytest.approx(errors[0], abs=1e-6)
    assert 0 < step["error_vox"] <= step["tolerance_vox"] == 0.2 < errors[1]
    # As computed: half the resolution, and no word of another.
    assert fine.grid == rounds.fixed.grid.shrink((2, 2, 2))
    assert "field" not in [s["name"] for s in computed.facts["steps"]]
    assert not (computed.out / "steps/field.ome.zarr").is_dir()


def test_all_that_is_handed_out_is_made_with_one_field(rounds, smooth):
    coarse = smooth[0]
    field = coarse.transform.transforms[0]
    stored = read_transform(coarse.out, ("x", "y", "z"))
    np.testing.assert_array_equal(vectors_of(stored), vectors_of(coarse.transform))
    exported = read_transform(coarse.out / "itk/composite.h5", ("x", "y", "z")).transforms[0]
    assert exported.grid.shape == field.grid.shape
    # ITK's doubles hold every float32.
    np.testing.assert_array_equal(np.asarray(exported.data), vectors_of(stored))
    assert coarse.facts["certificate"]["voxels"] == field.grid.size
    expected = itkstream.apply.resampling.apply_transform(rounds.fixed, rounds.moving, stored)
    apart = np.abs(coarse.aligned.read().astype(int) - expected.astype(int))
    # Positions agree to 1e-12 voxel: a tie may be rounded to the other side.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_notes_and_computed_fields_are_not_needed_any_more(smooth, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(smooth[0].out, out)
    shutil.rmtree(out / "steps")
    points = np.random.default_rng(0).uniform(0, 60, (20, 3))
    np.testing.assert_array_equal(
        read_transform(out, ("x", "y", "z")).apply(points), smooth[0].transform.apply(points)
    )


def test_another_tolerance_changes_what_is_handed_out_and_no_step(rounds, smooth, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(smooth[0].out, out)
    (out / "registration.json").unlink()
    watch = Heard()
    settings = RegisterSettings(blocksize=64, field_tolerance_vox=0.3)
    again = register(rounds.fixed, rounds.moving, out, STEPS[:2], settings, reporter=watch)
    assert watch.notes.count("done by an earlier run") == 3  # reading and both steps
    assert field_step(again.facts)["tolerance_vox"] == 0.3
    assert again.transform.transforms[0].grid.size < smooth[0].transform.transforms[0].grid.size
    expected = itkstream.apply.resampling.apply_transform(
        rounds.fixed, rounds.moving, again.transform
    )
    apart = np.abs(again.aligned.read().astype(int) - expected.astype(int))
    assert (apart > 0).mean() < 1e-3


def test_a_chunk_of_the_field_that_rots_is_written_again(rounds, smooth, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(smooth[0].out, out)
    register(
        rounds.fixed, rounds.moving, out, STEPS[:2], replace(SETTINGS, field_tolerance_vox=0.2)
    )
    chunks = [p for p in (out / "transform.ome.zarr/displacement/0/c").rglob("*") if p.is_file()]
    sound = chunks[0].read_bytes()
    chunks[0].write_bytes(sound[: len(sound) // 2])
    register(
        rounds.fixed, rounds.moving, out, STEPS[:2], replace(SETTINGS, field_tolerance_vox=0.2)
    )
    assert chunks[0].read_bytes() == sound


def test_aligned_image_is_the_moving_image_through_the_transform(rounds, registered):
    expected = itkstream.apply.resampling.apply_transform(
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


@pytest.mark.nightly
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
        STEPS,
        SETTINGS,
        resources=Resources(n_workers=2),
        reporter=heard,
    )
    field, field_again = (r.transform.transforms[0].data for r in (registered, again))
    everything = (slice(None),) * 4
    np.testing.assert_array_equal(field[everything], field_again[everything])
    np.testing.assert_array_equal(registered.aligned.read(), again.aligned.read())
    assert correlations(again.facts) == correlations(registered.facts)
    assert "affine" in heard.steps
    assert "aligned image" in heard.steps
    assert all(done <= total for done, total in heard.done)
    assert any(done == total > 1 for done, total in heard.done)


@pytest.mark.slow
def test_blocks_at_full_resolution_start_from_the_whole_image(rounds, tmp_path):
    few = RegisterSettings(coarse_voxels=rounds.fixed.grid.size / 3, error_map=False, report=False)
    steps = (AFFINE, Deformable(blocksize=64))
    result = register(rounds.fixed, rounds.moving, tmp_path / "out", steps, few)
    error = rounds.error(result.transform.apply, 3).summary()
    assert result.facts["steps"][0]["coarse_shapes"][0] != list(rounds.fixed.shape)
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 1.5


@pytest.mark.nightly
def test_intensities_and_demons_in_place_of_the_defaults(rounds, tmp_path):
    steps = (AFFINE, IntensityAffine(), Deformable("symmetric-demons"))
    result = register(rounds.fixed, rounds.moving, tmp_path / "out", steps, SETTINGS)
    step = next(s for s in result.facts["steps"] if s["name"] == "intensity affine")
    assert step["metric_after"] < step["metric_before"]
    error = rounds.error(result.transform.apply, 3).summary()
    assert error["median_vox"] < 0.5
    assert error["p95_vox"] < 2


def begun(rounds, initial, moving=None):
    """A run about to take its first step."""
    pair = (rounds.fixed, moving or rounds.moving)
    levels = (lambda: pair[0], lambda: pair[1])
    scene = Scene(*pair, 20e6, Resources(), LogReporter(), levels)
    folder = RunFolder(tempfile.mkdtemp(), ("fixed", "moving"), False)
    run = Run(pair, (), RegisterSettings(), scene, folder)
    return run, run.begin(initial, "begin")


def test_intensities_that_help_are_kept(rounds):
    rough = np.array(rounds.truth.matrix)
    rough[:3, 3] += (2.0, -1.5, 1.0)
    start = AffineTransform(rough)
    run, before = begun(rounds, start)
    after = run.refine(before, IntensityAffine(), 1, "1")
    assert "dropped" not in run.facts[-1]
    assert after.quality == run.scene.correlation(after.transform) > before.quality
    medians = [rounds.error(s.transform.apply, 3).summary()["median_vox"] for s in (after, before)]
    assert medians[0] < medians[1] - 1  # of the 2.7 voxels that it was shifted by


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        # Six voxels away there is nothing better.
        (
            IntensityAffine(
                "translation", optimizer="exhaustive", step=6.0, search_steps=1,
                iterations=(1,), shrink_factors=(1,), smooth_sigmas=(0.0,),
            ),
            "did not improve",
        ),
        (IntensityAffine(metric="mean-squares"), "lowered the local correlation"),
        (RansacAffine(match_threshold=0.99), "matches above 0.99"),
        (LocalAffines(match_threshold=0.99, blocksize=64, radii=(2, 6)), "all .* blocks failed"),
    ],
)  # fmt: skip
def test_refinements_that_do_not_help_are_dropped(rounds, step, reason):
    # Light from one side: squares fall where the images are pushed apart along it.
    shape = rounds.moving.shape
    lit = rounds.moving.read() * np.linspace(0.2, 3, shape[0])[:, None, None]
    moving = Image(lit.astype(np.uint16), rounds.moving.grid)
    run, before = begun(rounds, AffineTransform(rounds.truth.matrix), moving)
    assert run.refine(before, step, 1, "1") is before
    assert re.search(reason, run.facts[-1]["dropped"])


def test_a_finding_says_all_there_is_to_know(rounds):
    """What is kept of a step, and the steps after it, do not need the step itself again."""
    run, state = begun(rounds, None)
    findings = []
    for step in STEPS[:2]:
        findings.append(step.find(run.scene, state, lambda: None))
        state, _ = next_state(run.scene, state, findings[-1])
    again = begun(rounds, None)[1]
    for finding in findings:
        kept, _ = next_state(run.scene, again, finding)
        folder = run.folder.claim()
        note = json.loads(json.dumps(note_of(finding, kept.quality, folder)))
        again = next_from(note, again, run.scene, folder)
    assert again.quality == state.quality
    assert again.radii == state.radii == (2.0, 6.0)


def test_somebody_elses_folder_is_left_alone(rounds, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ExistingOutputError, match="never replaced"):
            register(rounds.fixed, rounds.moving, tmp_path, STEPS, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_run_is_replaced_only_when_asked(rounds, registered):
    before = (registered.out / "registration.json").read_bytes()
    with pytest.raises(ExistingOutputError, match="earlier run"):
        register(rounds.fixed, rounds.moving, registered.out, STEPS[:1], SETTINGS)
    assert (registered.out / "registration.json").read_bytes() == before


def test_the_same_run_again_finds_all_done(rounds, registered):
    before = (registered.out / "registration.json").read_bytes()
    watch = Heard()
    again = register(rounds.fixed, rounds.moving, registered.out, STEPS, SETTINGS, reporter=watch)
    assert (registered.out / "registration.json").read_bytes() == before
    # Also what is read, field, image, certificate, verdict and files.
    assert watch.notes.count("done by an earlier run") == len(STEPS) + 6
    np.testing.assert_array_equal(again.aligned.read(), registered.aligned.read())


def test_a_chunk_that_rots_is_computed_again(rounds, registered, tmp_path):
    """Truth: the bytes before. The chunk is one of the middle of the aligned image."""
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    chunk = sorted(path for path in (out / "aligned.ome.zarr/0/c").rglob("*") if path.is_file())[3]
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[: len(sound) // 2])
    register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)
    assert chunk.read_bytes() == sound


@pytest.mark.parametrize(
    "name", ["itk/composite.h5", "itk/affine.tfm", "aligned.ome.zarr/1/c/0/0/0"]
)
def test_files_that_are_cut_short_are_written_again(
    rounds, registered, tmp_path, monkeypatch, name
):
    """Truth: what the files held before. Of images as small as these no levels are made."""
    monkeypatch.setattr("itkstream.io.images.stores.ome_zarr_writer._SMALLEST", 64)
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    (out / "steps" / "aligned.json").unlink()
    register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)
    sound = (out / name).read_bytes()
    (out / name).write_bytes(sound[: len(sound) // 2])
    register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)
    again = (out / name).read_bytes()
    if name.endswith(".h5"):  # tells when it was written
        assert len(again) == len(sound)
        assert read_transform(out / name).transforms
    else:
        assert again == sound


@pytest.mark.parametrize("name", ["1", "field", "aligned", "files"])
def test_a_note_that_is_lost_is_made_again(rounds, registered, tmp_path, name):
    """As after a loss of power, when the disk has the file and not what it held."""
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    note = out / "steps" / f"{name}.json"
    before = json.loads(note.read_bytes())
    note.write_bytes(b"")
    register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)
    assert json.loads(note.read_bytes())["key"] == before["key"]
    chunk = "aligned.ome.zarr/0/c/0/0/0"
    assert (out / chunk).read_bytes() == (registered.out / chunk).read_bytes()


def test_what_a_run_left_that_was_killed_as_it_wrote_is_removed(rounds, registered, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    (out / "itk" / "composite.h5").unlink()
    left = [
        "itk/.partial-0-composite.h5",
        "steps/.partial-0-1.json",
        ".partial-0-registration.json",
    ]
    others = ["itk/.partial-0-mine.h5", ".partial-0-mine.nrrd"]
    for name in left + others:
        (out / name).write_bytes(b"half")
    register(rounds.fixed, rounds.moving, out, STEPS, SETTINGS)
    assert not any((out / name).exists() for name in left)
    assert all((out / name).exists() for name in others)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(rounds, tmp_path):
    """Killed while its steps follow each other, the run has every byte of one that was not."""
    paths = []
    for name, image in (("fixed", rounds.fixed), ("moving", rounds.moving)):
        paths.append(tmp_path / f"{name}.ome.zarr")
        target = create_ome_zarr(paths[-1], image.grid, image.dtype, chunks=(64, 64, 64))
        target[...] = image.read()
    words = [tmp_path, *paths, "--radii", "2", "6", "--local-block", "64"]
    run = subprocess.run(
        [sys.executable, Path(__file__).parent / "killed_registrations.py", *words],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) > 3
    for whole in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        again = tmp_path / "out" / whole.relative_to(tmp_path / "whole")
        timed = whole.suffix == ".json" and "zarr" not in str(whole.relative_to(tmp_path / "whole"))
        # HDF5, the page and the notes of a run tell when they were written.
        told = whole.suffix in (".h5", ".html")
        if not timed and not told and ".itkstream" not in whole.parts:
            assert again.read_bytes() == whole.read_bytes(), whole


@pytest.mark.slow
def test_only_what_depends_on_a_change_is_done_again(rounds, registered, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    (out / "registration.json").unlink()
    watch = Heard()
    steps = (*STEPS[:-1], Deformable(shrink_factors=(2,)))
    result = register(rounds.fixed, rounds.moving, out, steps, SETTINGS, reporter=watch)
    assert watch.notes.count("done by an earlier run") == len(STEPS)
    fresh = register(rounds.fixed, rounds.moving, tmp_path / "fresh", steps, SETTINGS)
    np.testing.assert_array_equal(result.aligned.read(), fresh.aligned.read())


def test_an_unfinished_run_of_other_images_is_left_alone(rounds, registered, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(registered.out, out)
    (out / "registration.json").unlink()
    other = Image(rounds.moving.data, rounds.moving.grid, "another")
    with pytest.raises(ExistingOutputError, match="unfinished run"):
        register(rounds.fixed, other, out, STEPS, SETTINGS)


def constant(image):
    return Image(np.full(image.shape, 100, np.uint16), image.grid)


def not_a_number(image):
    return Image(np.full(image.shape, np.nan, np.float32), image.grid)


def plane(image):
    grid = Grid(image.shape[:2], image.spacing[:2], axes=("x", "y"))
    return Image(image.read()[:, :, 20], grid)


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
        register(rounds.fixed, spoil(rounds.moving), tmp_path / "out", STEPS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("names", "said"), [("zyx", None), ("xyz", "xyz")])
def test_a_mask_file_without_spacing_covers_its_image(tmp_path, names, said):
    order = [names.index(axis) for axis in "zyx"]
    voxels = np.arange(1.0, 8 * 6 * 4 + 1).reshape(8, 6, 4)
    keep = np.zeros((4, 3, 2), np.uint8)
    keep[1:, :2] = 1
    for name, array in (("image", voxels), ("mask", keep)):
        stored = array.transpose([2, 1, 0]) if names == "xyz" else array
        zarr.create_array(str(tmp_path / f"{name}.zarr"), data=stored, dimension_names=tuple(names))
    image = itkstream.open_image(tmp_path / "image.zarr", voxel_spacing=(1, 2, 3), axes=said)
    mask = open_mask(str(tmp_path / "mask.zarr"), image)
    shown = masked(image, mask).reorder("zyx").read()
    assert image.shape == tuple(voxels.shape[k] for k in order)
    np.testing.assert_array_equal(np.isfinite(shown), np.kron(keep, np.ones((2, 2, 2))) > 0)


def test_a_mask_of_several_channels_is_no_mask(tmp_path):
    for name, shape in (("image", (6, 5, 4)), ("mask", (2, 6, 5, 4))):
        axes = tuple("czyx")[-len(shape) :]
        voxels = np.ones(shape, np.uint8)
        zarr.create_array(str(tmp_path / f"{name}.zarr"), data=voxels, dimension_names=axes)
    image = itkstream.open_image(tmp_path / "image.zarr", voxel_spacing=1)
    with pytest.raises(InputError, match="several channels and a mask has one"):
        open_mask(str(tmp_path / "mask.zarr"), image)


def test_a_missing_dataset_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere"):
        register(tmp_path / "nowhere.n5" / "s0", tmp_path / "other", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("blocksize", 8),
        ("blocksize", 65),
        ("coarse_voxels", 10),
        ("coarse_voxels", "many"),
        ("field_tolerance_vox", -0.1),
        ("field_tolerance_vox", float("nan")),
        ("field_tolerance_vox", None),
    ],
)
def test_every_bad_setting_is_named(name, value):
    with pytest.raises(InputError, match=name):
        RegisterSettings(**{name: value})


@pytest.mark.parametrize("kind", ["matrix", "transform", "file", "field", "landmarks"])
def test_everything_refines_an_initial_transform(rounds, tmp_path, kind):
    """40 voxels off and no key points: only what is told leads there."""
    away = np.eye(4)
    away[:3, 3] = (40.0, -30.0, 5.0)
    grid = replace(rounds.moving.grid, origin=tuple(away[:3, 3]))
    moving = Image(rounds.moving.data, grid)
    known = AffineTransform(away @ rounds.truth.matrix)
    initial = {"matrix": known.matrix, "transform": known}.get(kind)
    if kind == "file":
        initial = tmp_path / "landmarks.tfm"
        write_transform(initial, known, rounds.fixed.grid.axes)
    if kind == "field":
        vectors = np.full((2, 2, 2, 3), 0.5, np.float32)
        box = Grid((2, 2, 2), (128.0, 96.0, 83.2))
        initial = CompositeTransform((DisplacementField(vectors, box), known))
    if kind == "landmarks":
        initial = tmp_path / "F.tfm"
        initial.write_text(landmark_file(rounds.nuclei[:20], known.apply(rounds.nuclei[:20])))
    steps = (IntensityAffine(iterations=(20, 10)),)
    out = tmp_path / "out"
    result = register(rounds.fixed, moving, out, steps, SETTINGS, initial_transform=initial)
    found = rounds.error(lambda p: result.transform.apply(p) - away[:3, 3], 3).summary()
    assert found["median_vox"] < 1.5  # the warp that is left
    first, second = result.facts["steps"][:2]
    assert second["local_correlation"] > first["local_correlation"]
    # A spline has no affine part of its own.
    told = np.eye(4) if kind == "landmarks" else known.matrix
    np.testing.assert_allclose(first["initial_affine"], told)
    read = sitk.ReadTransform(str(result.out / "itk" / "composite.h5"))
    point = rounds.nuclei[50].tolist()
    np.testing.assert_allclose(read.TransformPoint(point), result.transform.apply(point), atol=1e-3)


def landmark_file(fixed, moving):
    """As 3D Slicer writes it."""
    listed = [" ".join(map(repr, points.ravel().tolist())) for points in (fixed, moving)]
    return (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: ThinPlateSplineKernelTransform_double_3_3\n"
        f"Parameters: {listed[0]}\nFixedParameters: {listed[1]}\n"
    )


def test_key_points_refine_an_initial_transform(rounds, tmp_path):
    rough = np.array(rounds.truth.matrix)
    rough[:3, 3] += (3.0, -2.0, 1.0)
    run, before = begun(rounds, AffineTransform(rough))
    after = run.refine(before, AFFINE, 1, "1")
    assert after.quality > before.quality
    assert isinstance(after.transform, AffineTransform)
    errors = [rounds.error(s.transform.apply, 3).summary()["median_vox"] for s in (before, after)]
    assert errors[1] < 1.5 < errors[0]


@pytest.mark.nightly
def test_steps_may_come_in_any_order(rounds, tmp_path):
    """An affine after local affines and after a deformation acts before them."""
    # One that stops at half the resolution would gain so little that it is left out as chance.
    steps = (AFFINE, STEPS[1], IntensityAffine(), Deformable(stiffness=0.5), AFFINE)
    result = register(rounds.fixed, rounds.moving, tmp_path / "out", steps, SETTINGS)
    error = rounds.error(result.transform.apply, 3).summary()
    assert error["median_vox"] < 0.7
    assert (result.out / "steps" / "4.ome.zarr").is_dir()
    names = [s["name"] for s in result.facts["steps"]]
    assert names[1:6] == ["affine", "piecewise affine", "intensity affine", "deformation", "affine"]


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (np.eye(3), "initial transform is 2-D"),
        (np.full((4, 4), np.nan), "finite"),
        (np.zeros(4), "matrix"),
    ],
)
def test_bad_initial_transforms(rounds, tmp_path, initial, message):
    with pytest.raises(InputError, match=message):
        register(rounds.fixed, rounds.moving, tmp_path / "o", initial_transform=initial)
    with pytest.raises(MissingDataError, match="nowhere"):
        register(
            rounds.fixed, rounds.moving, tmp_path / "o", initial_transform=tmp_path / "nowhere.tfm"
        )
    assert list(tmp_path.iterdir()) == []


# Slicer's landmarks and ANTs' affines come as these; greedy writes the last kind.
@pytest.mark.parametrize("name", ["a.mat", "greedy.tfm", "field.h5"])
def test_starts_from_any_transform_file(tmp_path, name):
    motion = Motion(rotation_deg=6, stretch=0.02, shear=0.02, shift=0.2, warp_um=2)
    pair = make_pair(
        PhantomSettings((80, 72, 56), (1.0, 1.0, 1.3), 11, (76, 74, 58), motion=motion)
    )
    matrix = np.array(pair.truth.matrix)
    matrix[:3, 3] += 1.0
    rough, grid = AffineTransform(matrix), pair.fixed.grid
    if name == "greedy.tfm":
        numbers = " ".join(map(repr, [*matrix[:3, :3].ravel().tolist(), *matrix[:3, 3].tolist()]))
        (tmp_path / name).write_text(
            "#Insight Transform File V1.0\n#Transform 0\n"
            "Transform: MatrixOffsetTransformBase_double_3_3\n"
            f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
        )
    elif name == "field.h5":
        moves = rough.inverse().apply(pair.truth(grid.positions())) - grid.positions()
        field = DisplacementField(moves.astype(np.float32), grid)
        write_transform(tmp_path / name, CompositeTransform((field, rough)))
    else:
        write_transform(tmp_path / name, rough, grid.axes)
    found = register(
        pair.fixed,
        pair.moving,
        tmp_path / "out",
        [IntensityAffine("affine")],
        initial_transform=tmp_path / name,
    )
    # 20 voxels apart, which an intensity affine alone does not bridge; the start is 2.4 off, and
    # what remains of it is the warp, which the file with the field has.
    median = pair.error(found.transform.apply, 3).summary()["median_vox"]
    assert median < (0.05 if name == "field.h5" else 0.6)
    assert found.facts["initial_transform"] == str(tmp_path / name)

"""Sound transforms pass; folds and NaN do not; and the commands that use transform files."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.apply import folds
from itkstream.apply.certificate import certify, check_transform
from itkstream.apply.folds import repair_transform, unfold
from itkstream.apply.points import apply_to_points
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.io.transforms.files import write_transform
from itkstream.io.transforms.ngff.store import as_stored, create_transform
from itkstream.numerics.sampling.fields import jacobian_determinant

GRID = Grid((20, 22, 40), (2.0, 1.0, 0.5), (5.0, -7.0, 3.0), axes=("z", "y", "x"))


def waves(amplitude: float) -> DisplacementField:
    """Displacements along x whose slope is at most the amplitude: it folds above 1."""
    x = GRID.positions()[..., 2]
    data = np.zeros((*GRID.shape, 3), np.float32)
    data[..., 2] = amplitude * 3 * np.sin(x / 3)
    return DisplacementField(data, GRID)


def test_a_sound_transform() -> None:
    affine = np.diag([1.1, 0.9, 1.0, 1.0])
    found = check_transform(CompositeTransform((waves(0.7), AffineTransform(affine))))
    # cos reaches -1 within a few voxels; central differences see nearly all of it.
    assert found.least_jacobian == pytest.approx(0.3, abs=0.02)
    assert (found.folded_voxels, found.voxels) == (0, GRID.size)
    assert found.largest_inverse_error_vox < 0.02
    assert found.failures == ()


def test_where_the_inverse_is_worst_is_told() -> None:
    bent = waves(0.9)
    found = check_transform(bent)
    errors = [worst.error_vox for worst in found.inverse_worst]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == found.largest_inverse_error_vox
    assert errors[-1] >= found.median_inverse_error_vox
    points = np.array([worst.point for worst in found.inverse_worst])
    assert (np.abs(GRID.to_index(points) - (np.array(GRID.shape) - 1) / 2) <= 20).all()
    back = apply_to_points(bent, bent.apply(points), inverse=True).points
    np.testing.assert_allclose(np.linalg.norm(back - points, axis=1) / 0.5, errors, atol=1e-9)
    assert check_transform(AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0]))).inverse_worst == ()


def test_folds() -> None:
    found = check_transform(waves(1.4))
    x = GRID.positions()[..., 2]
    assert found.folded_voxels == pytest.approx((1 + 1.4 * np.cos(x / 3) <= 0).sum(), rel=0.1)
    assert found.least_jacobian < 0
    assert any("folded" in reason for reason in found.failures)
    # A fold has several points that map to one, so no inverse leads back from all.
    assert any("the worst point" in reason for reason in found.failures)


def dented(folds: tuple[tuple[int, int, int], ...]) -> DisplacementField:
    """Gentle everywhere, with bumps along x so steep that they fold."""
    grid = Grid((48, 40, 60), (1.5, 1.0, 1.2), (3.0, 1.0, 2.0), axes=("z", "y", "x"))
    data = np.zeros((*grid.shape, 3), np.float32)
    data[..., 1] = 0.3 * np.sin(grid.positions()[..., 1] / 9)
    index = np.stack(np.indices(grid.shape), -1)
    for centre in folds:
        far = ((index - centre) ** 2).sum(-1)
        data[..., 2] -= 1.9 * (index[..., 2] - centre[2]) * np.exp(-far / 8)
    return DisplacementField(data, grid)


# Blocks of 16 voxels: the first fold lies across the corner of eight of them.
FOLDS = ((16, 16, 32), (36, 25, 9))


@pytest.mark.parametrize("lazy", [False, True])
def test_folded_regions_are_listed_and_repaired(monkeypatch, lazy) -> None:
    monkeypatch.setattr(folds, "_BLOCK", 16)
    field = dented(FOLDS)
    whole = jacobian_determinant(field.data, field.grid)
    data = da.from_array(field.data, chunks=20) if lazy else field.data
    affine = AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0]))
    transform = CompositeTransform((DisplacementField(data, field.grid), affine))
    found = check_transform(transform)
    assert len(found.regions) == len(FOLDS)
    assert sum(r.voxels for r in found.regions) == (whole <= 0).sum() == found.folded_voxels
    for region in found.regions:
        box = tuple(slice(a, b) for a, b in zip(region.first, region.stop, strict=True))
        assert (whole[box] <= 0).sum() == region.voxels
        assert whole[box].min() == pytest.approx(region.least_jacobian, abs=1e-6)
        # Some fold of the list lies inside.
        assert any(all(s.start <= c < s.stop for s, c in zip(box, f, strict=True)) for f in FOLDS)
    repaired = repair_transform(transform)
    after = np.asarray(repaired.transforms[0].data)
    assert jacobian_determinant(after, field.grid).min() > 0
    changed = (after != field.data).any(axis=-1)
    # No further than the repair of the whole field would reach; most of it keeps its bits.
    assert 0 < changed.mean() < 0.2
    assert changed[whole <= 0].all()
    inner = np.asarray(repaired.transforms[0].data[10:30, 4:17, 20:50])
    np.testing.assert_array_equal(inner, after[10:30, 4:17, 20:50])
    np.testing.assert_array_equal(repaired.transforms[1].matrix, affine.matrix)
    assert check_transform(repaired).folded_voxels == 0


def test_many_folds_are_patches_side_by_side() -> None:
    grid = Grid((96, 120), (1.0, 1.0))
    data = np.zeros((*grid.shape, 2), np.float32)
    data[6::12, 6::12, 1] = 3
    repaired = repair_transform(DisplacementField(data, grid))
    assert check_transform(repaired).folded_voxels == 0
    # One over the other, a thousand would be deeper than Python's calls may be.
    assert repaired.data.source is data
    assert len(repaired.data.patches) > 10
    # Patches stay in memory: no more of them than what a repair did change.
    changed = (np.asarray(repaired.data) != data).any(axis=-1)
    assert sum(patch[..., 0].size for _, patch in repaired.data.patches) < 3 * changed.sum()


def test_what_is_sound_is_left_alone() -> None:
    field = waves(0.5)
    assert repair_transform(field) is field
    affine = AffineTransform(np.eye(4))
    assert repair_transform(affine) is affine


def test_the_certificate_is_json() -> None:
    found = certify(dented(FOLDS), name="run")
    again = json.loads(json.dumps(found))
    assert again["regions"][0]["first"] == list(found["regions"][0]["first"])
    assert len(again["regions"]) == len(FOLDS)
    assert found["passed"] is False
    assert found["repair"] == "itkstream repair run repaired.ome.zarr"
    sound = certify(waves(0.5))
    assert (sound["passed"], sound["failures"], sound["repair"]) == (True, [], None)


def test_affines_and_what_cannot_be_checked() -> None:
    affine = AffineTransform(np.diag([2.0, 1.0, -1.5, 1.0]))
    assert check_transform(affine).failures == ()
    assert check_transform(affine).least_jacobian == pytest.approx(3)
    with pytest.raises(InputError, match="can be checked; got AffineTransform, DisplacementField"):
        check_transform(CompositeTransform((affine, waves(0.1))))
    holes = waves(0.1)
    holes.data[3, 4, 5] = np.nan
    with pytest.raises(InputError, match="holds NaN"):
        check_transform(holes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A registration folder's transform, files of it, and points."""
    here = tmp_path_factory.mktemp("transforms")
    matrix = np.eye(4)
    matrix[:3, 3] = 4, 5, 6
    field, affine = waves(0.5), AffineTransform(matrix)
    target = create_transform(here / "run/transform.ome.zarr", affine, GRID, chunks=(8, 8, 8))
    target[:] = as_stored(field.data, GRID)
    write_transform(here / "folded.h5", waves(1.4))
    (here / "p.csv").write_text("id,y,x,z\na,3,7,20\nb,3,900,20\n")
    return here


def test_export_check_and_points(folder, command) -> None:
    for name in ("t.h5", "t.nii.gz", "t.nrrd", "t.mha"):
        assert command("export", "run", name, cwd=folder).returncode == 0
    assert sitk.ReadTransform(str(folder / "t.h5")).GetName() == "CompositeTransform"
    again = command("export", "run", "t.h5", cwd=folder)
    assert again.returncode == 3
    assert "is there already" in again.stderr
    sound = command("check", "run", cwd=folder)
    assert (sound.returncode, sound.stdout.splitlines()[-1]) == (0, "passed")
    folded = command("check", "folded.h5", cwd=folder)
    assert folded.returncode == 1
    assert "failed: " in folded.stdout
    assert "itkstream repair folded.h5 repaired.ome.zarr" in folded.stdout
    listed = command("check", "folded.h5", "--json", cwd=folder)
    assert (listed.returncode, json.loads(listed.stdout)["passed"]) == (1, False)
    assert command("repair", "folded.h5", "repaired.ome.zarr", cwd=folder).returncode == 0
    mended = json.loads(command("check", "repaired.ome.zarr", "--json", cwd=folder).stdout)
    assert mended["folded_voxels"] == 0
    assert command("check", "p.csv", cwd=folder).returncode == 2
    done = command("points", "t.h5", "p.csv", "--out", "q.csv", cwd=folder)
    assert done.stdout.startswith("2 points mapped, 1 outside")
    rows = [line.split(",") for line in (folder / "q.csv").read_text().splitlines()]
    assert rows[0] == ["id", "y", "x", "z", "outside"]
    assert [row[-1] for row in rows[1:]] == ["0", "1"]
    moved = sitk.ReadTransform(str(folder / "t.h5")).TransformPoint((7.0, 3.0, 20.0))
    found = [float(rows[1][k]) for k in (2, 1, 3)]
    np.testing.assert_allclose(found, moved, atol=1e-6)
    command("points", "run", "q.csv", "--out", "back.csv", "--inverse", cwd=folder)
    back = (folder / "back.csv").read_text().splitlines()[1].split(",")
    # A hundredth of the smallest voxel is the tolerance.
    np.testing.assert_allclose([float(v) for v in back[1:4]], [3, 7, 20], atol=0.005)


def test_bad_input(folder, command) -> None:
    for words, message in (
        (("points", "none.h5", "p.csv", "--out", "z.csv"), "there is no transform"),
        (("points", "run", "none.csv", "--out", "z.csv"), "no file of points"),
        (("export", "run", "z.tfm"), "write it as .h5"),
        (("export", "p.csv", "z.h5"), "no transform that ITK can read"),
    ):
        done = command(*words, cwd=folder)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_field_is_smoothed_where_it_shrinks_too_much() -> None:
    thin, sound = dented(FOLDS), waves(0.9)
    assert unfold(sound, least=0.05) is sound
    wide = unfold(thin, least=0.05)
    assert jacobian_determinant(np.asarray(wide.data), wide.grid).min() > 0.05
    # What only has to be free of folds is changed less.
    barely = unfold(thin)
    apart = [np.abs(np.asarray(f.data) - thin.data).sum() for f in (barely, wide)]
    assert 0 < apart[0] <= apart[1]

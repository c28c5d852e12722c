"""Files of ITK's world hold numbers alone: they are in the unit of the images they go with."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from itkstream.cli.app import commands
from itkstream.errors import InputError
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
)
from itkstream.io import open_image
from itkstream.io.images.units import itk_unit, rescaled
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.pipelines import register
from itkstream.registration.folder import registered_unit
from itkstream.registration.steps import IntensityAffine, RegisterSettings

LATTICE = Grid((7, 8, 9), (20.0, 30.0, 40.0), (5.0, -6.0, 7.0), axes=("z", "y", "x"))
RNG = np.random.default_rng(5)
AFFINE = AffineTransform(np.vstack([np.eye(3, 4) + RNG.normal(0, 0.01, (3, 4)), np.eye(4)[3]]))
FIELD = DisplacementField(RNG.normal(0, 2, (*LATTICE.shape, 3)).astype(np.float32), LATTICE)
SPLINES = BSplineTransform(RNG.normal(0, 2, (*LATTICE.shape, 3)), LATTICE)
ALL = {"affine": AFFINE, "field": FIELD, "B-splines": SPLINES,
       "chain": CompositeTransform((FIELD, AFFINE))}  # fmt: skip

PLAIN = RegisterSettings(error_map=False, report=False)


@pytest.mark.parametrize("kind", ALL)
@given(factor=st.sampled_from([0.001, 1000.0, 1e-6, 0.25, 1.0]))
@settings(max_examples=5, deadline=None)
def test_points_and_their_images_are_multiplied(kind, factor):
    points = LATTICE.to_physical(np.random.default_rng(1).uniform(2, 4, (20, 3)))
    got = rescaled(ALL[kind], factor).apply(points * factor)
    np.testing.assert_allclose(got, ALL[kind].apply(points) * factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "suffix"), [("affine", "tfm"), ("chain", "h5"), ("B-splines", "tfm"), ("field", "mha")]
)
def test_files_in_millimeters_come_back(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    write_transform(path, ALL[kind], ("z", "y", "x"), unit="millimeter")
    points = LATTICE.to_physical(np.random.default_rng(1).uniform(2, 4, (20, 3)))
    back = read_transform(path, unit="millimeter")
    np.testing.assert_allclose(back.apply(points), ALL[kind].apply(points), rtol=1e-5)
    if suffix != "mha":
        itk = sitk.ReadTransform(str(path))
        got = [itk.TransformPoint((p[::-1] / 1000).tolist())[::-1] for p in points]
        np.testing.assert_allclose(got, ALL[kind].apply(points) / 1000, rtol=1e-5)
    with pytest.raises(InputError, match="unknown length unit 'mile'"):
        read_transform(path, unit="mile")


def similarity(folder, transform):
    fixed, moving = (sitk.ReadImage(str(folder / f"{n}.nii")) for n in ("fixed", "moving"))
    aligned = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, -1.0)
    got, wanted = (sitk.GetArrayFromImage(image) for image in (aligned, fixed))
    inside = got >= 0
    assert inside.mean() > 0.5
    return np.corrcoef(got[inside], wanted[inside])[0, 1]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Two NIfTI files that say mm, of voxels of 20 and 30 µm, some voxels apart."""
    folder = tmp_path_factory.mktemp("millimeters")
    fixed = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(40, 44, 48)), 3)
    fixed = ((fixed - fixed.min()) / np.ptp(fixed) * 1000).astype(np.float32)
    moving = ndimage.shift(fixed, (1.5, -2, 3), order=1, mode="nearest")
    for name, array in (("fixed", fixed), ("moving", moving)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.02, 0.02, 0.03))
        image.SetOrigin((5, 6, 7))
        sitk.WriteImage(image, str(folder / f"{name}.nii"))
    files = folder / "fixed.nii", folder / "moving.nii"
    register(*files, folder / "out", (IntensityAffine(),), PLAIN)
    return folder


def test_itk_files_fit_the_images_that_were_registered(registered):
    assert itk_unit(open_image(registered / "fixed.nii").grid) == "millimeter"
    assert open_image(registered / "out" / "aligned.ome.zarr").spacing == pytest.approx(
        (30, 20, 20)
    )
    before = similarity(registered, sitk.Transform())
    assert before < 0.9
    for name in ("affine.tfm", "composite.h5"):
        path = registered / "out" / "itk" / name
        assert similarity(registered, sitk.ReadTransform(str(path))) > 0.99
    assert registered_unit(registered / "out") == "millimeter"
    assert registered_unit(registered / "out" / "transform.ome.zarr") == "millimeter"
    assert registered_unit(registered / "fixed.nii") == "micrometer"


def test_commands_write_and_read_the_same_unit(registered):
    out = str(registered / "out")
    for command in (
        ["export", out, str(registered / "again.h5")],
        ["export", f"{out}/transform.ome.zarr", str(registered / "below.h5")],
        ["apply", f"{out}/itk/composite.h5", str(registered / "moving.nii"),
         str(registered / "aligned.ome.zarr"), "--like", str(registered / "fixed.nii")],
    ):  # fmt: skip
        done = CliRunner().invoke(commands, command)
        assert done.exit_code == 0, done.output
    for name in ("again.h5", "below.h5"):
        assert similarity(registered, sitk.ReadTransform(str(registered / name))) > 0.99
    ours = open_image(registered / "aligned.ome.zarr").read()
    theirs = open_image(registered / "out" / "aligned.ome.zarr").read()
    np.testing.assert_allclose(ours, theirs, atol=0.5)


def test_a_start_is_read_in_the_unit_of_the_fixed_image(registered):
    start = registered / "out" / "itk" / "affine.tfm"
    again = register(
        registered / "fixed.nii",
        registered / "moving.nii",
        registered / "again",
        (IntensityAffine(),),
        PLAIN,
        initial_transform=start,
    )
    first = again.facts["steps"][0]["local_correlation"]
    assert first > 0.9

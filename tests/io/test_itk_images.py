"""Files of the ITK world against what SimpleITK says of them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError, MissingDataError
from itkstream.io import itk_images, open_image

SPACING = (0.5, 0.75, 2.0)  # x, y, z; binary fractions survive NIfTI's float32
ORIGIN = (10.0, -20.0, 30.5)
ANGLE = np.deg2rad(30)
TURN = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
) @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
KINDS = [
    ("nii", False), ("nii.gz", True), ("nrrd", False), ("nrrd", True), ("nhdr", False),
    ("mha", False), ("mha", True), ("mhd", False), ("mhd", True),
]  # fmt: skip


def written(tmp_path, suffix, compressed=False, array=None):
    if array is None:
        array = np.random.default_rng(2).integers(0, 999, (6, 8, 11)).astype(np.uint16)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(SPACING[: array.ndim])
    image.SetOrigin(ORIGIN[: array.ndim])
    if array.ndim == 3:
        image.SetDirection(TURN.ravel())
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    return path, image, array


@pytest.mark.parametrize(("suffix", "compressed"), KINDS)
def test_every_voxel_lies_where_itk_puts_it(tmp_path, suffix, compressed):
    path, itk_image, array = written(tmp_path, suffix, compressed)
    image = open_image(path)
    np.testing.assert_array_equal(image.read(), array)
    assert image.grid.axes == ("z", "y", "x")
    # NIfTI keeps spacing, origin and rotation in float32.
    tolerance = 1e-5 if "nii" in suffix else 1e-12
    for index in np.ndindex(2, 2, 2):
        voxel = [int(k * (n - 1)) for k, n in zip(index, array.shape, strict=True)]
        expected = itk_image.TransformIndexToPhysicalPoint(voxel[::-1])[::-1]
        np.testing.assert_allclose(image.grid.to_physical(voxel), expected, atol=tolerance)


def test_the_whole_file_is_read_only_where_itk_cannot_stream(tmp_path):
    for suffix, compressed in KINDS:
        folder = tmp_path / f"{suffix}{compressed}"
        folder.mkdir()
        path, _, array = written(folder, suffix, compressed)
        itk_images._whole.cache_clear()
        part = open_image(path)[1:4, 2:5, 3:9].read()
        np.testing.assert_array_equal(part, array[1:4, 2:5, 3:9])
        streamed = suffix in ("nii", "nrrd", "mha", "mhd") and not compressed
        assert itk_images._whole.cache_info().currsize == (0 if streamed else 1)


def test_a_file_written_anew_is_read_anew(tmp_path):
    path, _, array = written(tmp_path, "nrrd", True)
    assert open_image(path).read()[0, 0, 0] == array[0, 0, 0]
    written(tmp_path, "nrrd", True, array[::-1, :, :7] + 1)
    np.testing.assert_array_equal(open_image(path).read(), array[::-1, :, :7] + 1)


def test_what_a_reader_does_to_its_part_does_not_reach_the_next(tmp_path):
    path, _, array = written(tmp_path, "nrrd", True)
    image = open_image(path)
    image.read()[:] = 0
    np.testing.assert_array_equal(image.read(), array)


def test_two_axes_stay_two_and_one_slice_stays_three(tmp_path):
    plane = np.arange(30, dtype=np.float32).reshape(5, 6)
    for suffix in ("nii", "nrrd", "mha"):
        path, _, _ = written(tmp_path, suffix, array=plane)
        image = open_image(path)
        assert (image.shape, image.grid.axes) == ((5, 6), ("y", "x"))
        assert image.spacing == SPACING[1::-1]
        np.testing.assert_array_equal(image.read(), plane)
        path, _, _ = written(tmp_path, suffix, array=plane[None])
        assert open_image(path).shape == (1, 5, 6)


@pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha"])
def test_channel_of_a_vector_image(tmp_path, suffix):
    array = np.random.default_rng(3).integers(0, 255, (5, 6, 7, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"v.{suffix}"))
    image = open_image(tmp_path / f"v.{suffix}", channel=2)
    np.testing.assert_array_equal(image[1:3, 2:6, 0:4].read(), array[1:3, 2:6, 0:4, 2])
    for choice in ({"channel": 3}, {"channel": -1}, {"time": 1}, {"level": 1}):
        with pytest.raises(InputError, match="no"):
            open_image(tmp_path / f"v.{suffix}", **choice)


@pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha"])
def test_time_of_a_series(tmp_path, suffix):
    array = np.random.default_rng(3).integers(0, 255, (3, 5, 6, 7)).astype(np.int16)
    series = sitk.JoinSeries([sitk.GetImageFromArray(a) for a in array])
    series.SetSpacing((*SPACING, 9.0))
    sitk.WriteImage(series, str(tmp_path / f"t.{suffix}"))
    image = open_image(tmp_path / f"t.{suffix}", time=1)
    assert image.spacing == SPACING[::-1]
    np.testing.assert_array_equal(image.read(), array[1])
    with pytest.raises(InputError, match="no time 3"):
        open_image(tmp_path / f"t.{suffix}", time=3)


def test_tiff_needs_its_spacing_stated(tmp_path):
    path, _, array = written(tmp_path, "tif")
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(path)
    image = open_image(path, voxel_spacing=(2, 0.5, 0.5), unit="nm")
    assert (image.spacing, image.grid.unit) == ((2, 0.5, 0.5), "nanometer")
    np.testing.assert_array_equal(image.read(), array)
    np.testing.assert_array_equal(image[2:4, 1:3, 0:9].read(), array[2:4, 1:3, 0:9])


def test_unit_is_micrometer_unless_stated(tmp_path):
    path, _, _ = written(tmp_path, "nii")
    assert open_image(path).grid.unit == "micrometer"
    stated = open_image(path, unit="mm")
    assert (stated.grid.unit, stated.spacing) == ("millimeter", SPACING[::-1])
    with pytest.raises(InputError, match="parsec"):
        open_image(path, unit="parsec")


def test_scaled_nifti_values_come_scaled(tmp_path):
    path, _, array = written(tmp_path, "nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, 3.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    image = open_image(path)
    assert image.dtype.kind == "f"
    np.testing.assert_array_equal(image[2:5, 1:3, 4:9].read(), array[2:5, 1:3, 4:9] * 0.5 + 3)


def test_broken_missing_and_foreign_files(tmp_path):
    (tmp_path / "broken.nrrd").write_bytes(b"no image at all")
    (tmp_path / "notes.txt").write_text("no image at all")
    with pytest.raises(InputError, match="ITK cannot read"):
        open_image(tmp_path / "broken.nrrd")
    with pytest.raises(InputError, match=r"N5.*OME-Zarr.*\.nrrd"):
        open_image(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="Known"):
        open_image(tmp_path)
    with pytest.raises(MissingDataError, match="does not exist"):
        open_image(tmp_path / "none.nii")
    with pytest.raises(MissingDataError, match="holds no datasets"):
        open_image(tmp_path / "notes.txt", dataset="s0")
    with pytest.raises(FileNotFoundError):
        open_image("/no/such/place.n5")
    complex_image = sitk.Cast(sitk.Image(4, 4, sitk.sitkFloat32), sitk.sitkComplexFloat32)
    sitk.WriteImage(complex_image, str(tmp_path / "c.nii"))
    with pytest.raises(InputError, match="real numbers"):
        open_image(tmp_path / "c.nii")

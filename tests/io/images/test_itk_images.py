"""Files of the ITK world against what SimpleITK says of them."""

from __future__ import annotations

import gzip
import logging
import os
import zlib

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from dask.tokenize import tokenize

from itkstream.errors import InputError, ItkstreamError, MissingDataError, UnreadableDataError
from itkstream.geometry import Grid, Image
from itkstream.io import open_image
from itkstream.io.images.files import itk_images

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
    assert open_image(tmp_path / f"t.{suffix}").recipe["time"] == 0
    image = open_image(tmp_path / f"t.{suffix}", time=1)
    assert image.spacing == SPACING[::-1]
    np.testing.assert_array_equal(image.read(), array[1])
    with pytest.raises(InputError, match="no time 3"):
        open_image(tmp_path / f"t.{suffix}", time=3)


def test_the_unit_that_a_file_states_counts(tmp_path):
    array = np.zeros((4, 5, 6), np.int16)
    place = np.diag([2.0, 3.0, 4.0, 1.0])
    place[:3, 3] = 10, 20, 30
    path = tmp_path / "a.nii"
    for unit, micrometers in (("meter", 1e6), ("mm", 1e3), ("micron", 1.0)):
        image = nibabel.Nifti1Image(array, place)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, path)
        grid = open_image(path).grid
        # ITK converts to millimeters; in micrometers it is what the file says.
        assert grid.unit == "millimeter"
        np.testing.assert_allclose(
            grid.in_unit("micrometer").spacing, micrometers * np.array((4, 3, 2)), rtol=1e-6
        )
        read = sitk.ReadImage(str(path))
        np.testing.assert_allclose(grid.origin, read.GetOrigin()[::-1])
        # A unit given by hand is one of the file's own numbers.
        other = open_image(path, unit="nm").grid
        assert other.unit == "nanometer"
        np.testing.assert_allclose(other.spacing, (4, 3, 2), rtol=1e-6)
    image.header.set_xyzt_units("unknown")
    nibabel.save(image, path)
    assert open_image(path).grid.unit == "micrometer"
    with pytest.raises(InputError, match="parsec"):
        open_image(path, unit="parsec")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("unit", ["micrometer", "millimeter"])
def test_what_is_written_comes_back_in_its_unit(tmp_path, suffix, unit):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    grid = Grid(array.shape, (2, 0.5, 0.25), (1, 2, 3), axes=("z", "y", "x"), unit=unit)
    itk_images.write_itk(tmp_path / f"a.{suffix}", Image(array, grid))
    assert sitk.ReadImage(str(tmp_path / f"a.{suffix}")).GetSpacing() == (0.25, 0.5, 2)
    back = open_image(tmp_path / f"a.{suffix}", unit=None if "nii" in suffix else unit)
    np.testing.assert_array_equal(back.read(), array)
    assert (back.spacing, back.grid.unit) == ((2, 0.5, 0.25), unit)


def nrrd_text(lines, data, path):
    common = ["NRRD0005", "type: uint16", "encoding: raw", "endian: little"]
    path.write_bytes("\n".join([*common, *lines, "", ""]).encode() + data)
    return path


COUNT = np.arange(360, dtype="<u2")
BOX = ["dimension: 3", "sizes: 12 5 6", "spacings: 1 2 3"]


def test_units_of_nrrd_and_metaimage(tmp_path):
    path = tmp_path / "a.nrrd"
    space = ["space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)"]
    for lines, unit in (
        (BOX, "micrometer"),
        ([*BOX, 'units: "mm" "mm" "mm"'], "millimeter"),
        ([*BOX[:2], *space, 'space units: "nm" "nm" "nm"'], "nanometer"),
        ([*BOX[:2], *space, 'space units: "" "" ""'], "micrometer"),
    ):
        grid = open_image(nrrd_text(lines, COUNT.tobytes(), path)).grid
        assert (grid.spacing, grid.unit) == ((3, 2, 1), unit)
    for units in ('"mm" "um" "mm"', '"mm" "mm" "furlong"'):
        nrrd_text([*BOX, f"units: {units}"], COUNT.tobytes(), path)
        with pytest.raises(InputError, match=r"a\.nrrd.*unit"):
            open_image(path)
    path, _, _ = written(tmp_path, "mha")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"ElementType", b"DistanceUnits = mm\nElementType"))
    assert open_image(path).grid.unit == "millimeter"


def test_spacing_that_is_not_stated_is_asked_for(tmp_path):
    nrrd_text(BOX[:2], COUNT.tobytes(), tmp_path / "a.nrrd")
    (tmp_path / "a.raw").write_bytes(COUNT.tobytes())
    (tmp_path / "a.mhd").write_text(META.replace("ElementSpacing = 1 2 3\n", ""))
    for name in ("a.nrrd", "a.mhd"):
        with pytest.raises(InputError, match=r"does not say how far its voxels lie apart; pass"):
            open_image(tmp_path / name)
        assert open_image(tmp_path / name, voxel_spacing=(3, 2, 1)).spacing == (3, 2, 1)


@pytest.mark.parametrize(
    "lines",
    [
        BOX,
        [*BOX, "byte skip: -1"],
        [*BOX, "line skip: 1", "byte skip: 2"],
        ["dimension: 4", "sizes: 3 4 5 6", "kinds: RGB-color domain domain domain",
         "spacings: nan 1 2 3"],
        ["dimension: 4", "sizes: 4 5 6 3", "kinds: domain domain domain list",
         "space dimension: 3", "space directions: (1,0,0) (0,2,0) (0,0,3) none"],
        ["dimension: 4", "sizes: 4 3 5 6", "kinds: domain vector domain domain",
         "spacings: 1 nan 2 3"],
        ["dimension: 4", "sizes: 4 5 6 3", "kinds: space space space time", "spacings: 1 2 3 9"],
    ],
    ids=["plain", "byte skip -1", "skips", "colours", "list last", "vector second", "time"],
)  # fmt: skip
def test_voxels_of_nrrd_are_those_of_pynrrd(tmp_path, lines):
    skip = b"xx\nyy" if "line skip: 1" in lines else b"junk" if "byte skip: -1" in lines else b""
    path = nrrd_text(lines, skip + COUNT.tobytes(), tmp_path / "a.nrrd")
    expected, _ = nrrd.read(str(path))
    kinds = next((x.split()[1:] for x in lines if x.startswith("kinds")), ["domain"] * 3)
    apart = next((k for k, kind in enumerate(kinds) if kind not in ("domain", "space")), None)
    word = "time" if "time" in kinds else "channel"
    for k in range(1 if apart is None else 3):
        one = expected if apart is None else expected.take(k, apart)
        image = open_image(path, **{word: k})
        np.testing.assert_array_equal(image.read(), one.T)
        np.testing.assert_array_equal(image[1:3, 2:4, 1:4].read(), one.T[1:3, 2:4, 1:4])
        assert image.spacing == (3, 2, 1)


@pytest.mark.parametrize("encoding", ["gzip", "ascii", "hex"])
def test_encodings_of_nrrd(tmp_path, encoding):
    data = {"gzip": gzip.compress(COUNT.tobytes()), "hex": COUNT.tobytes().hex().encode(),
            "ascii": " ".join(map(str, COUNT)).encode()}[encoding]  # fmt: skip
    path = nrrd_text(BOX, data, tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", f"encoding: {encoding}".encode()))
    np.testing.assert_array_equal(open_image(path).read(), COUNT.reshape(6, 5, 12))


def test_detached_headers_name_their_files(tmp_path):
    for k in range(6):
        (tmp_path / f"s {k}.raw").write_bytes(COUNT[60 * k : 60 * k + 60].tobytes())
        (tmp_path / f"s{k}.raw").write_bytes(COUNT[60 * k : 60 * k + 60].tobytes())
    (tmp_path / "my scan.raw").write_bytes(COUNT.tobytes())
    listed = "\n".join(f"s {k}.raw" for k in range(6))
    fields = "\n".join(["NRRD0005", "type: uint16", "encoding: raw", "endian: little", *BOX])
    headers = {
        "list.nhdr": f"{fields}\ndata file: LIST 2\n{listed}\n",
        "pattern.nhdr": f"{fields}\ndata file: s%d.raw 0 5 1 2\n",
        "one.nhdr": f"{fields}\ndata file: my scan.raw\n",
        "list.mhd": META.replace("a.raw", f"LIST\n{listed}"),
        "pattern.mhd": META.replace("a.raw", "s%d.raw 0 5 1"),
        "one.mhd": META.replace("a.raw", "my scan.raw"),
    }
    for name, text in headers.items():
        (tmp_path / name).write_text(text)
        image = open_image(tmp_path / name)
        np.testing.assert_array_equal(image.read(), COUNT.reshape(6, 5, 12), err_msg=name)
        assert len(image.data.source.files()) == (2 if "one" in name else 7), name
    token = tokenize(open_image(tmp_path / "one.mhd").data)
    (tmp_path / "my scan.raw").write_bytes((COUNT + 1).tobytes())
    os.utime(tmp_path / "my scan.raw", (1e9, 1e9))
    assert tokenize(open_image(tmp_path / "one.mhd").data) != token
    (tmp_path / "my scan.raw").unlink()
    for name in ("one.mhd", "one.nhdr"):
        with pytest.raises(MissingDataError, match=r"my scan\.raw"):
            open_image(tmp_path / name)


META = (
    "NDims = 3\nDimSize = 12 5 6\nElementSpacing = 1 2 3\nElementType = MET_USHORT\n"
    "ElementDataFile = a.raw\n"
)


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (("ElementSpacing", "ElementSize"), COUNT.tobytes()),
        (("NDims = 3", "NDims = 3\nHeaderSize = 4"), b"head" + COUNT.tobytes()),
        (("NDims = 3", "NDims = 3\nHeaderSize = -1"), b"headers" + COUNT.tobytes()),
        (("NDims = 3", "NDims = 3\nBinaryDataByteOrderMSB = True"), COUNT.astype(">u2").tobytes()),
        (("NDims = 3", "NDims = 3\nCompressedData = True"), zlib.compress(COUNT.tobytes())),
        (("MET_USHORT", "MET_LONG"), COUNT.astype("<i4").tobytes()),
        (("MET_USHORT", "MET_ULONG_LONG"), COUNT.astype("<u8").tobytes()),
    ],
)
def test_keys_of_metaimage(tmp_path, change, data):
    (tmp_path / "a.raw").write_bytes(data)
    (tmp_path / "a.mhd").write_text(META.replace(*change))
    image = open_image(tmp_path / "a.mhd")
    np.testing.assert_array_equal(image.read(), COUNT.reshape(6, 5, 12))
    np.testing.assert_array_equal(image[1:3, 1:2, 4:9].read(), image.read()[1:3, 1:2, 4:9])
    assert image.spacing == (3, 2, 1)


DATA_FILES = {"mhd": "a.raw", "nhdr": "a.raw"}
PACKED_FILES = {"mhd": "a.zraw", "nhdr": "a.raw.gz"}


@pytest.mark.parametrize("suffix", ["nii", "nrrd", "nhdr", "mha", "mhd"])
def test_files_cut_short_are_errors_on_opening(tmp_path, suffix):
    path, _, _ = written(tmp_path, suffix)
    data = tmp_path / DATA_FILES.get(suffix, path.name)
    whole = data.read_bytes()
    for share in (0.7, 0.99):
        data.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnreadableDataError, match=rf"a\.{suffix} is cut short"):
            open_image(path)


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "nhdr", "mha", "mhd"])
def test_compressed_files_that_are_damaged_are_errors(tmp_path, suffix):
    path, _, array = written(tmp_path, suffix, True)
    data = tmp_path / PACKED_FILES.get(suffix, path.name)
    whole = data.read_bytes()
    np.testing.assert_array_equal(open_image(path).read(), array)
    for share in (0.6, 0.95):
        data.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnreadableDataError, match=rf"{data.name} is (cut short|damaged)"):
            open_image(path).read()
        changed = bytearray(whole)
        changed[int(share * len(whole))] ^= 0x10
        data.write_bytes(changed)
        with pytest.raises(ItkstreamError, match=str(tmp_path)):
            open_image(path).read()


def test_nifti_2_is_named(tmp_path):
    nibabel.save(nibabel.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii is NIfTI-2"):
        open_image(tmp_path / "a.nii")


def test_pairs_and_further_axes_of_nifti(tmp_path):
    array = np.arange(4 * 5 * 6 * 2 * 3, dtype=np.int16).reshape(4, 5, 6, 2, 3)
    image = nibabel.Nifti1Pair(array[..., 0, 0], np.diag([2.0, 3, 4, 1]))
    nibabel.save(image, tmp_path / "pair.hdr")
    for name in ("pair.hdr", "pair.img"):
        opened = open_image(tmp_path / name)
        np.testing.assert_array_equal(opened.read(), array[..., 0, 0].T)
        assert len(opened.data.source.files()) == 2
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 3, 4, 1])), tmp_path / "a.nii")
    one = open_image(tmp_path / "a.nii", channel=2, time=1)
    np.testing.assert_array_equal(one.read(), array[..., 1, 2].T)


def test_geometries_of_nifti_that_disagree_are_told(tmp_path, caplog):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    image.set_sform(np.diag([2.0, 3, 4, 1]), 1)
    image.set_qform(np.diag([2.0, 3, 4, 1]), 1)
    nibabel.save(image, tmp_path / "same.nii")
    turned = np.array([[0, -3.0, 0, 9], [2, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    image.set_qform(turned, 1)
    nibabel.save(image, tmp_path / "other.nii")
    with caplog.at_level(logging.WARNING):
        open_image(tmp_path / "same.nii")
        assert not caplog.text
        open_image(tmp_path / "other.nii")
    assert "sform and qform" in caplog.text


@pytest.mark.parametrize(("slope", "intercept"), [(2, 1), (0.5, 0), (1, 5), (0, 0), (np.nan, 0)])
def test_scaling_of_nifti_is_that_of_nibabel(tmp_path, slope, intercept):
    path, _, _ = written(tmp_path, "nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(raw)
    expected = np.asarray(nibabel.load(path).dataobj).T
    np.testing.assert_allclose(open_image(path).read(), expected)


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
    with pytest.raises(InputError, match=r"broken\.nrrd is no NRRD file"):
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "bzip2"}, "encoding 'bzip2', which ITK does not read"),
        ({"type": "block"}, "type 'block' is no type"),
        ({"dimension": "4"}, "dimension is '4' and sizes has 3"),
        ({"sizes": "12 -5 6"}, "sizes must be whole numbers"),
        ({"sizes": "12 5 600000"}, "cut short, or its header is damaged"),
        ({"endian": "middle"}, "endian must be little or big"),
        ({"kinds": "vector domain list"}, "several axes of components"),
        ({"kinds": "time domain domain"}, "time must be the last axis"),
        ({"kinds": "domain domain"}, "kinds has 2 words for 3 axes"),
        ({"spacings": "1 2"}, "spacings has 2 entries for 3 axes"),
        ({"byte skip": "few"}, "whole numbers"),
    ],
)
def test_what_is_wrong_in_a_nrrd_header_is_named(tmp_path, changes, message):
    fields = {"type": "uint16", "encoding": "raw", "endian": "little", "dimension": "3"}
    fields |= {"sizes": "12 5 6", "spacings": "1 2 3"} | changes
    lines = ["NRRD0005", *(f"{key}: {value}" for key, value in fields.items()), "", ""]
    (tmp_path / "a.nrrd").write_bytes("\n".join(lines).encode() + COUNT.tobytes())
    with pytest.raises(ItkstreamError, match=rf"a\.nrrd.*{message}"):
        open_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("NDims = 3", "NDims = 4"), "NDims is '4' and DimSize has 3"),
        (("12 5 6", "12 5 nan"), "DimSize must be whole numbers"),
        (("12 5 6", "12 5 7"), "cut short, or its header is damaged"),
        (("1 2 3", "1 2"), "ElementSpacing must be 3 numbers"),
        (("1 2 3", "1 2 inf"), "ElementSpacing must be 3 numbers"),
        (("1 2 3", "1 2 0"), "spacing must be positive"),
        (("MET_USHORT", "MET_STRING"), "ElementType 'MET_STRING'"),
        (("NDims = 3", "NDims = 3\nBinaryData = False"), "voxels as text"),
        (("NDims = 3", "NDims = 3\nDistanceUnits = furlong"), "DistanceUnits"),
        (("a.raw", "b.raw"), "names b.raw in 'ElementDataFile'"),
        (("a.raw", "LIST\na.raw"), "lists 1 files for 6 slices"),
    ],
)
def test_what_is_wrong_in_a_metaimage_header_is_named(tmp_path, change, message):
    (tmp_path / "a.raw").write_bytes(COUNT.tobytes())
    (tmp_path / "a.mhd").write_text(META.replace(*change))
    with pytest.raises(ItkstreamError, match=rf"a\.mhd.*{message}"):
        open_image(tmp_path / "a.mhd")


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (40, np.array([9], "<i2"), "dim must be"),
        (42, np.array([-1], "<i2"), "dim must be"),
        (42, np.array([32000], "<i2"), "cut short, or its header is damaged"),
        (70, np.array([99], "<i2"), "datatype 99"),
        (72, np.array([64], "<i2"), "bitpix 64"),
        (80, np.array([np.nan], "<f4"), "pixdim must be finite"),
        (108, np.array([-5], "<f4"), "vox_offset is -5"),
        (112, np.array([0, 7], "<f4"), "scl_slope is 0"),
        (344, np.array([0], "<i4"), "is no NIfTI file"),
    ],
)
def test_what_is_wrong_in_a_nifti_header_is_named(tmp_path, place, content, message):
    path, _, _ = written(tmp_path, "nii")
    raw = bytearray(path.read_bytes())
    raw[place : place + content.nbytes] = content.tobytes()
    path.write_bytes(raw)
    with pytest.raises(ItkstreamError, match=rf"a\.nii.*{message}"):
        open_image(path)


@pytest.mark.parametrize("unit", ["micrometer", "millimeter"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_what_is_written_states_its_unit_and_is_read_alike(tmp_path, ending, ndim, unit):
    voxels = np.random.default_rng(0).integers(0, 999, (6, 8, 10)[-ndim:]).astype(np.uint16)
    spacing, origin = (2.0, 0.5, 0.25)[-ndim:], (-3.0, 5.0, 7.0)[-ndim:]
    grid = Grid(voxels.shape, spacing, origin, axes=("z", "y", "x")[-ndim:], unit=unit)
    file = tmp_path / f"image{ending}"
    itk_images.write_itk(file, Image(voxels, grid))
    again, theirs = open_image(file), sitk.ReadImage(str(file))
    assert again.grid.unit == unit
    np.testing.assert_allclose(again.spacing, spacing)
    np.testing.assert_array_equal(again.read(), voxels)
    # Numbers are kept, in whatever unit.
    np.testing.assert_allclose(theirs.GetSpacing()[::-1], spacing)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), voxels)

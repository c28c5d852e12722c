"""TIFF files against tifffile, the reference reader: voxels, axes, spacing and units."""

from __future__ import annotations

import itertools
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.errors import InputError, ItkstreamError, MissingDataError, UnreadableDataError
from itkstream.io import open_image, open_series

RNG = np.random.default_rng(3)
STACK = RNG.integers(0, 4000, (6, 48, 64)).astype(np.uint16)
SERIES = RNG.integers(0, 4000, (2, 3, 4, 24, 32)).astype(np.uint16)  # t, c, z, y, x
COLOURS = RNG.integers(0, 255, (5, 40, 50, 3)).astype(np.uint8)
GRAY = {"photometric": "minisblack"}
CODECS = ("zlib", "lzw", "packbits", "zstd", "lzma", "jpeg2000")
LAYOUTS = {
    "in one piece": {},
    "strips": {"compression": "zlib", "rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "planes of blocks": {"volumetric": True, "tile": (2, 16, 16)},
    "BigTIFF, big-endian": {"bigtiff": True, "byteorder": ">"},
    "big-endian and predicted": {"byteorder": ">", "compression": "zlib", "predictor": True},
    **{codec: {"compression": codec, "tile": (32, 32)} for codec in CODECS},
}
TYPES = ("bool", "int8", "int16", "int32", "int64", "uint32", "uint64", "float16", "float32")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_box_by_box(tmp_path, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **GRAY, **LAYOUTS[layout])
    image = open_image(path, voxel_spacing=1)
    assert (image.grid.axes, image.dtype) == (("z", "y", "x"), np.uint16)
    np.testing.assert_array_equal(image.read(), STACK)
    there = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(there[2:5, 10:37, 5:60].read(), STACK[2:5, 10:37, 5:60])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_keeps_its_values(tmp_path, name, compression):
    array = STACK > 2000 if name == "bool" else (STACK - 2000.0).astype(name)
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, **GRAY)
    image = open_image(tmp_path / "a.tif", voxel_spacing=1)
    assert (image.dtype, image.dtype.char) == (array.dtype, array.dtype.char)
    np.testing.assert_array_equal(image.read(), array)


def test_only_the_tiles_of_a_box_are_decoded(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, tile=(16, 16), compression="zlib", **GRAY)
    with tifffile.TiffFile(path) as file:
        spans = [(p.dataoffsets, p.databytecounts) for p in file.pages]
    with path.open("r+b") as file:
        for plane, (offsets, lengths) in enumerate(spans):
            for tile, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
                if plane not in (1, 2) or tile not in (1, 2):
                    file.seek(offset)
                    file.write(b"\xff" * length)
    image = open_image(path, voxel_spacing=1)
    assert image.chunk_shape == (1, 16, 16)
    np.testing.assert_array_equal(image[1:3, 0:16, 16:48].read(), STACK[1:3, 0:16, 16:48])
    with pytest.raises(UnreadableDataError):
        image[0:3, 0:16, 16:48].read()


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_threads_read_the_same(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "threads.tif"
    if not path.exists():
        tifffile.imwrite(path, STACK, rowsperstrip=5, compression="zlib", **GRAY)
    image = open_image(path, voxel_spacing=1)
    keys = [
        tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in STACK.shape)
        for _ in range(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        for key, got in zip(keys, pool.map(lambda k: image.data[k], keys), strict=True):
            np.testing.assert_array_equal(got, STACK[key])


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("TCZ")])
def test_channels_and_times_of_ome_tiff_in_every_order(tmp_path, axes):
    order = ["TCZ".index(a) for a in axes]
    stored = np.ascontiguousarray(SERIES.transpose(*order, 3, 4))
    about = {"axes": f"{axes}YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 250.0}
    about |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata=about, compression="zlib")
    image = open_image(tmp_path / "a.ome.tif", channel=2, time=1)
    np.testing.assert_array_equal(image.read(), SERIES[1, 2])
    assert (image.grid.axes, image.grid.unit) == (("z", "y", "x"), "micrometer")
    np.testing.assert_allclose(image.spacing, (2.0, 0.25, 0.5))
    assert len(open_series(tmp_path / "a.ome.tif", "channel")) == 3


@pytest.mark.parametrize("unit", ["nm", "µm", "mm", "Å"])
def test_units_of_ome_tiff(tmp_path, unit):
    about = {"axes": "ZYX"} | {f"PhysicalSize{a}": 4.0 for a in "XYZ"}
    about |= {f"PhysicalSize{a}Unit": unit for a in "XYZ"}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=about)
    grid = open_image(tmp_path / "a.ome.tif").grid
    names = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "Å": "angstrom"}
    assert (grid.spacing, grid.unit) == ((4.0, 4.0, 4.0), names[unit])
    assert open_image(tmp_path / "a.ome.tif", unit="cm").grid.unit == "centimeter"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("micron", ((3.0, 0.25, 0.5), "micrometer")),
        ("\\u00B5m", ((3.0, 0.25, 0.5), "micrometer")),
        ("mm", ((3.0, 0.25, 0.5), "millimeter")),
        ("inch", ((76200.0, 6350.0, 12700.0), "micrometer")),
    ],
)
@pytest.mark.parametrize("truncate", [False, True])
def test_hyperstacks_of_imagej(tmp_path, unit, expected, truncate):
    stored = np.ascontiguousarray(SERIES.swapaxes(1, 2))
    about = {"axes": "TZCYX", "spacing": 3.0, "unit": unit, "finterval": 2.0}
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        imagej=True,
        resolution=(2, 4),
        metadata=about,
        truncate=truncate,
    )
    image = open_image(tmp_path / "a.tif", channel=1, time=1)
    np.testing.assert_array_equal(image.read(), SERIES[1, 1])
    np.testing.assert_allclose(image.spacing, expected[0])
    assert image.grid.unit == expected[1]


def test_numbers_without_a_unit_need_one(tmp_path):
    about = {"axes": "ZYX", "spacing": 3.0, "unit": "pixel"}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 4), metadata=about)
    with pytest.raises(InputError, match=r"z 3, y 0\.25, x 0\.5 apart, and not in which unit"):
        open_image(tmp_path / "a.tif")
    grid = open_image(tmp_path / "a.tif", unit="nm").grid
    assert (grid.spacing, grid.unit) == ((3.0, 0.25, 0.5), "nanometer")


def test_what_is_not_stated_is_named(tmp_path):
    about = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=about)
    with pytest.raises(InputError, match=r"along z; it does say y 0\.25, x 0\.5 micrometer; pass"):
        open_image(tmp_path / "a.ome.tif")
    assert open_image(tmp_path / "a.ome.tif", voxel_spacing=(2, 1, 1)).spacing == (2, 1, 1)


def test_resolutions_count_where_no_printer_has_them(tmp_path):
    path = tmp_path / "a.tif"
    for dots, unit, spacing in ((20000, 3, 0.5), (72, 2, None), (300, 2, None), (1, 1, None)):
        tifffile.imwrite(path, STACK[0], resolution=(dots, dots), resolutionunit=unit, **GRAY)
        if spacing is None:
            with pytest.raises(InputError, match="along y, x; pass voxel_spacing"):
                open_image(path)
        else:
            assert open_image(path).spacing == (spacing, spacing)


@pytest.mark.parametrize("planar", [False, True])
def test_samples_are_channels(tmp_path, planar):
    stored = np.moveaxis(COLOURS, -1, 1) if planar else COLOURS
    about = {"planarconfig": "separate", "compression": "zlib"} if planar else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **about)
    for channel in range(3):
        image = open_image(tmp_path / "a.tif", voxel_spacing=1, channel=channel)
        np.testing.assert_array_equal(image.read(), COLOURS[..., channel])
    with pytest.raises(InputError, match="no channel 3"):
        open_image(tmp_path / "a.tif", voxel_spacing=1, channel=3)


def test_axes_that_are_not_named_are_asked_for(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", SERIES[0], **GRAY)
    with pytest.raises(InputError, match=r"not clear what 'Q', 'Q' stand for: pass axes="):
        open_image(tmp_path / "a.tif", voxel_spacing=1)
    image = open_image(tmp_path / "a.tif", voxel_spacing=1, axes="czyx", channel=2)
    np.testing.assert_array_equal(image.read(), SERIES[0, 2])


def test_levels_of_a_pyramid(tmp_path):
    path = tmp_path / "a.ome.tif"
    about = {"axes": "ZYX"} | {
        f"PhysicalSize{a}": n for a, n in zip("XYZ", (4, 4, 40), strict=True)
    }
    about |= {f"PhysicalSize{a}Unit": "nm" for a in "XYZ"}
    coarse = STACK[:, ::2, ::2]
    with tifffile.TiffWriter(path) as file:
        file.write(STACK, subifds=1, tile=(16, 16), metadata=about, **GRAY)
        file.write(coarse, subfiletype=1, tile=(16, 16), **GRAY)
    image = open_image(path, level=1)
    np.testing.assert_array_equal(image.read(), coarse)
    assert (image.spacing, image.grid.origin) == ((40, 8, 8), (0, 2, 2))
    np.testing.assert_array_equal(open_image(path).read(), STACK)
    assert open_image(path, spacing=0.008).shape == coarse.shape
    with pytest.raises(InputError, match="no level 2"):
        open_image(path, level=2)


def test_a_file_of_several_images_says_which(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(STACK, **GRAY)
        file.write(STACK[:2, :20], **GRAY)
    with pytest.raises(InputError, match=r"2 series .*0 '': QYX 6x48x64.*1 '': QYX 2x20x64"):
        open_image(path, voxel_spacing=1)
    for choice in (open_image(path, dataset="1", voxel_spacing=1),
                   open_image(path / "1", voxel_spacing=1)):  # fmt: skip
        np.testing.assert_array_equal(choice.read(), STACK[:2, :20])
    with pytest.raises(MissingDataError, match="no series '2'"):
        open_image(path, dataset="2")


def test_an_orientation_is_told_and_voxels_come_as_stored(tmp_path, caplog):
    tag = (274, "H", 1, 8, True)
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], extratags=[tag], **GRAY)
    with caplog.at_level(logging.WARNING):
        image = open_image(tmp_path / "a.tif", voxel_spacing=1)
    np.testing.assert_array_equal(image.read(), STACK[0])
    assert "orientation 8" in caplog.text


def test_files_of_a_set(tmp_path):
    whole, half = tmp_path / "whole.ome.tif", tmp_path / "b.ome.tif"
    tifffile.imwrite(whole, STACK, metadata={"axes": "ZYX"}, **GRAY)
    xml = tifffile.tiffcomment(whole)
    begin, end = xml.index("<TiffData"), xml.index("</Pixels>")
    parts = "".join(
        f'<TiffData FirstC="0" FirstT="0" FirstZ="{z}" IFD="{z % 3}" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for z, name in enumerate(["a.ome.tif"] * 3 + ["b.ome.tif"] * 3)
    )
    xml = (xml[:begin] + parts + xml[end:]).encode()
    for name, planes in (("a.ome.tif", STACK[:3]), ("b.ome.tif", STACK[3:])):
        tifffile.imwrite(tmp_path / name, planes, description=xml, metadata=None, **GRAY)
    image = open_image(tmp_path / "a.ome.tif", voxel_spacing=1)
    np.testing.assert_array_equal(image.read(), STACK)
    np.testing.assert_array_equal(image[2:4, 5:9, 7:30].read(), STACK[2:4, 5:9, 7:30])
    assert len(image.data.source.files()) == 2
    half.unlink()
    with pytest.raises(MissingDataError, match="3 of 6 planes"):
        open_image(tmp_path / "a.ome.tif", voxel_spacing=1)


KINDS = {
    "plain": {"metadata": None, **GRAY},
    "shaped": GRAY,
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}, **GRAY},
}


@pytest.mark.parametrize("layout", ["in one piece", "strips", "tiles", "lzw"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_an_error_on_opening(tmp_path, layout, kind):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **KINDS[kind], **LAYOUTS[layout])
    whole = path.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ItkstreamError, match=r"a\.tif.*cut short"):
            open_image(path, voxel_spacing=1)


def test_what_cannot_be_decoded_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib", **GRAY)
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.aspage().tags[259].overwrite(50505)
    with pytest.raises(InputError, match=r"a\.tif has the compression 50505"):
        open_image(path, voxel_spacing=1)
    tifffile.imwrite(path, STACK.astype(np.complex64), **GRAY)
    with pytest.raises(InputError, match="real numbers"):
        open_image(path, voxel_spacing=1)


def test_a_strip_that_is_damaged_is_an_error_on_reading(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib", rowsperstrip=8, **GRAY)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[3].dataoffsets[2]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    image = open_image(path, voxel_spacing=1)
    np.testing.assert_array_equal(image[:3, :, :].read(), STACK[:3])
    with pytest.raises(UnreadableDataError, match=r"a\.tif cannot be read at"):
        image.read()


def test_ome_xml_that_means_the_impossible_is_refused(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"}, compression="zlib")
    xml = tifffile.tiffcomment(path)
    for old, new, message in (
        ('SizeZ="6"', 'SizeZ="99999999"', "99999999 planes"),
        ('SizeZ="6"', 'SizeZ="-6"', "SizeZ"),
        ("</Pixels>", "", "malformed"),
    ):
        tifffile.tiffcomment(path, xml.replace(old, new, 1).encode())
        with pytest.raises(InputError, match=message):
            open_image(path, voxel_spacing=1)


def test_axes_of_one_element_need_no_name(tmp_path):
    for number, lead in enumerate([(1,), (1, 1), (1, 1, 1)]):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, STACK.reshape(*lead, *STACK.shape), **GRAY)
        image = open_image(path, voxel_spacing=(2, 1, 1))
        assert (image.grid.axes, image.spacing) == (("z", "y", "x"), (2, 1, 1))
        np.testing.assert_array_equal(image.read(), STACK)
    tifffile.imwrite(path, SERIES[0], **GRAY)
    with pytest.raises(InputError, match="what 'Q', 'Q' stand for"):
        open_image(path, voxel_spacing=1)

"""Bare arrays and folders of planes: voxels against numpy and tifffile, and what has to be said."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from dask.base import tokenize

from itkstream.errors import (
    InputError,
    MissingDataError,
    UnknownSpacingError,
    UnreadableDataError,
    UnstatedChannelError,
)
from itkstream.geometry import Grid
from itkstream.io import open_image, open_series

VOXELS = np.random.default_rng(2).integers(0, 999, (12, 40, 50)).astype(np.uint16)
GRID = Grid(VOXELS.shape, (2.0, 0.5, 0.25), axes=("z", "y", "x"))
SAID = {"voxel_spacing": (2.0, 0.5, 0.25)}


def npy(folder: Path, **_: object) -> Path:
    np.save(folder / "a.npy", VOXELS)
    return folder / "a.npy"


def planes(folder: Path, name: str = "p_{}.tif", **how: object) -> Path:
    place = folder / "planes"
    place.mkdir()
    # Without zeros in front: 10 is not before 2.
    for number, plane in enumerate(VOXELS, 1):
        tifffile.imwrite(place / name.format(number), plane, **how)  # type: ignore[arg-type]
    return place


@pytest.mark.parametrize("make", [npy, planes])
@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_voxels_are_sliced_lazily(tmp_path: Path, make: Callable[..., Path], how: dict) -> None:
    path = make(tmp_path, **how)
    with pytest.raises(UnknownSpacingError, match=r"pass voxel_spacing=.* order z, y, x"):
        open_image(path)
    image = open_image(path, **SAID)
    assert (image.grid, image.dtype) == (GRID, np.uint16)
    np.testing.assert_array_equal(image.read(), VOXELS)
    sent = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(sent[3:11, 7:30, 20:45].read(), VOXELS[3:11, 7:30, 20:45])
    np.testing.assert_array_equal(image[9:2:-3, ::7].read(), VOXELS[9:2:-3, ::7])
    again = open_image(**image.recipe)
    assert (again.grid, tokenize(again.data)) == (image.grid, tokenize(image.data))
    np.testing.assert_array_equal(open_image(path, **SAID, crop="2:4,:,:").read(), VOXELS[2:4])


def test_axes_of_bare_arrays_are_said(tmp_path: Path) -> None:
    stored = np.asfortranarray(VOXELS.reshape(2, 6, 40, 50).astype(">f4"))
    np.save(tmp_path / "a.npy", stored)
    with pytest.raises(InputError, match="4 axes without names: pass axes="):
        open_image(tmp_path / "a.npy", **SAID)
    with pytest.raises(UnstatedChannelError, match="2 channels"):
        open_image(tmp_path / "a.npy", **SAID, axes="czyx")
    image = open_image(tmp_path / "a.npy", voxel_spacing=300, unit="nm", axes="czyx", channel=1)
    assert (image.dtype, image.grid.unit) == (np.dtype("f4"), "nanometer")
    np.testing.assert_array_equal(image.read(), stored[1])
    turned = open_image(tmp_path / "a.npy", voxel_spacing=1, axes="txyz", time=1)
    assert turned.grid.axes == ("x", "y", "z")
    np.save(tmp_path / "b.npy", VOXELS[0])
    assert open_image(tmp_path / "b.npy", voxel_spacing=(1, 2)).grid.axes == ("y", "x")


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    whole = npy(tmp_path).read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-7])
    (tmp_path / "other.npy").write_bytes(b"PK" + whole)
    for name in ("short.npy", "other.npy"):
        with pytest.raises(UnreadableDataError, match=f"{name} cannot be read as an array"):
            open_image(tmp_path / name, **SAID)
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(UnreadableDataError, match="objects"):
        open_image(tmp_path / "objects.npy", **SAID)
    np.save(tmp_path / "complex.npy", VOXELS * 1j)
    with pytest.raises(InputError, match=r"real numbers are read; .* complex128"):
        open_image(tmp_path / "complex.npy", **SAID)
    np.save(tmp_path / "empty.npy", VOXELS[:0])
    with pytest.raises(InputError, match="empty image"):
        open_image(tmp_path / "empty.npy", **SAID)


def test_planes_say_what_they_know(tmp_path: Path) -> None:
    # ImageJ's planes know their pixels, in a unit; how far they lie apart they do not.
    path = planes(
        tmp_path, imagej=True, resolution=(4, 2), metadata={"axes": "YX", "unit": "micron"}
    )
    with pytest.raises(
        UnknownSpacingError, match=r"apart along z; it does say y 0\.5, x 0\.25 micrometer"
    ):
        open_image(path)
    assert open_image(path, **SAID).grid == GRID
    assert open_image(path, voxel_spacing=3, unit="mm").grid.unit == "millimeter"


def test_planes_of_colours_have_channels(tmp_path: Path) -> None:
    colours = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=-1)
    for number, plane in enumerate(colours):
        tifffile.imwrite(tmp_path / f"{number:03}.tif", plane, photometric="rgb")
    for channel, image in enumerate(open_series(tmp_path, "channel", **SAID)):
        np.testing.assert_array_equal(image.read(), colours[..., channel])


@pytest.mark.parametrize("name", ["z{:03}_t20240101.tif", "b-{}-of-12.tiff", "1_{}.TIF"])
def test_one_number_counts_the_planes(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(open_image(planes(tmp_path, name), **SAID).read(), VOXELS)


def test_a_missing_plane_is_told(tmp_path: Path) -> None:
    path = planes(tmp_path)
    (path / "p_7.tif").unlink()
    with pytest.raises(MissingDataError, match="lacks planes: numbers go from 6 to 8"):
        open_image(path, **SAID)


def test_names_that_do_not_count_are_told(tmp_path: Path) -> None:
    for z in range(2):
        for c in range(2):
            tifffile.imwrite(tmp_path / f"z{z}_c{c}.tif", VOXELS[0])
    with pytest.raises(InputError, match=r"no number in the names of the 4 TIFF files .* counts"):
        open_image(tmp_path, **SAID)


def test_planes_are_alike(tmp_path: Path) -> None:
    path = planes(tmp_path)
    for other in (VOXELS[0, :-1], VOXELS[0].astype("u1"), VOXELS[:2]):
        tifffile.imwrite(path / "p_5.tif", other)
        with pytest.raises(InputError, match=r"p_5.tif holds . planes .* must be alike"):
            open_image(path, **SAID)
    tifffile.imwrite(path / "p_1.tif", VOXELS[:2])
    with pytest.raises(InputError, match=r"no single planes: p_1\.tif has axes"):
        open_image(path, **SAID)


def test_a_folder_of_other_images_is_none(tmp_path: Path) -> None:
    path = planes(tmp_path)
    np.save(path / "a.npy", VOXELS)
    with pytest.raises(InputError, match="is no image this package reads"):
        open_image(path, **SAID)


def test_a_folder_of_ome_tiff_is_the_set(tmp_path: Path) -> None:
    """Each file holds planes of one image, and the first says how they lie."""
    names = [f"s_{z}.ome.tif" for z in range(2)]
    files = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}'
        "</UUID></TiffData>"
        for z, name in enumerate(names)
    )
    for z, name in enumerate(names):
        about = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{z}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYZCT" Type="uint16" SizeX="50" SizeY="40" SizeZ="2" SizeC="1" '
            'SizeT="1" PhysicalSizeX="0.25" PhysicalSizeY="0.5" PhysicalSizeZ="2">'
            f'<Channel ID="Channel:0:0"/>{files}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / name, VOXELS[z], description=about, metadata=None)
    image = open_image(tmp_path)
    assert image.spacing == GRID.spacing
    np.testing.assert_array_equal(image.read(), VOXELS[:2])

"""N5 against files written byte by byte here, and the real pair."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from itkstream.errors import ExistingOutputError, InputError, MissingDataError
from itkstream.geometry import Grid
from itkstream.io import create_n5, open_image, write_n5
from itkstream.io.storage.stored import tiles

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "easifish"


def write_by_hand(folder: Path, array: np.ndarray, chunks: tuple[int, ...], **attributes) -> None:
    """An N5 dataset as the N5 specification has it: big endian, x fastest, one file per chunk."""
    folder.mkdir(parents=True)
    metadata = {
        "dimensions": array.shape,
        "blockSize": chunks,
        "dataType": array.dtype.name,
        "compression": {"type": "gzip"},
        **attributes,
    }
    (folder / "attributes.json").write_text(json.dumps(metadata))
    for box in tiles(array.shape, chunks):
        block = array[box]
        header = struct.pack(f">HH{block.ndim}I", 0, block.ndim, *block.shape)
        body = block.astype(block.dtype.newbyteorder(">")).tobytes(order="F")
        index = [str(s.start // c) for s, c in zip(box, chunks, strict=True)]
        file = folder.joinpath(*index)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header + gzip.compress(body))


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 60000, (13, 10, 7)).astype(np.uint16)


def test_reads_what_the_specification_says_in_x_y_z_order(tmp_path, array):
    write_by_hand(
        tmp_path / "a.n5" / "deep" / "low",
        array,
        (5, 4, 3),
        pixelResolution=[0.92, 0.92, 0.84],
        downsamplingFactors=[2, 2, 1],
    )
    image = open_image(tmp_path / "a.n5", dataset="deep/low")
    # Averaging two voxels moves the centre of the first by half a fine one, as n5-viewer has it.
    assert image.grid == Grid(
        array.shape, (1.84, 1.84, 0.84), (0.46, 0.46, 0), axes=("x", "y", "z")
    )
    assert image.dtype == np.uint16
    assert image.dtype.isnative
    np.testing.assert_array_equal(image.read(), array)


def test_spacing_comes_from_the_groups_around_with_their_unit(tmp_path, array):
    container = tmp_path / "a.n5"
    write_by_hand(container / "g" / "low", array, (5, 4, 3), downsamplingFactors=[2, 2, 2])
    stated = {"dimensions": [500, 500, 1000], "unit": "nm"}
    (container / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(container / "g" / "low")
    assert open_image(container / "g/low", voxel_spacing=(1, 2, 3)).spacing == (1, 2, 3)
    (container / "attributes.json").write_text(json.dumps({"pixelResolution": stated}))
    image = open_image(container / "g" / "low")
    assert (image.spacing, image.grid.unit) == ((1000, 1000, 2000), "nanometer")
    assert open_image(container / "g" / "low", unit="um").grid.unit == "micrometer"
    assert open_image(container / "g" / "low", voxel_spacing=7).spacing == (7, 7, 7)


def test_levels_of_a_group_are_chosen_by_number_or_spacing(tmp_path, array):
    group = tmp_path / "a.n5" / "c0"
    for level in (0, 1, 2):
        write_by_hand(group / f"s{level}", array[: 13 - level], (5, 4, 3))
    scales = [[1, 1, 1], [2, 2, 1], [4, 4, 2]]
    metadata = {"scales": scales, "pixelResolution": {"dimensions": [0.5, 0.5, 1], "unit": "µm"}}
    (group / "attributes.json").write_text(json.dumps(metadata))
    assert open_image(group).shape == (13, 10, 7)
    assert open_image(group, level=1).spacing == (1, 1, 1)
    assert open_image(group / "s2").spacing == (2, 2, 2)
    assert open_image(group, spacing=1.7).shape[0] == 11
    assert open_image(group, spacing=(0.6, 0.6, 1)).shape[0] == 13
    with pytest.raises(InputError, match="no level 3"):
        open_image(group, level=3)


def test_a_missing_dataset_is_answered_with_those_that_are_there(tmp_path, array):
    write_by_hand(tmp_path / "a.n5" / "g" / "low", array, (5, 4, 3))
    write_by_hand(tmp_path / "a.n5" / "high", array, (5, 4, 3))
    for wrong in ("a.n5", "a.n5/g", "a.n5/nothing", "a.n5/g/low/typo"):
        with pytest.raises(MissingDataError, match="g/low"):
            open_image(tmp_path / wrong)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pixelResolution": [1, 1]},
        {"pixelResolution": {"dimensions": [1, 1, 1], "unit": "parsec"}},
        {"pixelResolution": [1, 1, 1], "downsamplingFactors": [2]},
        {"pixelResolution": [1, 1, 1], "compression": {"type": "unheard-of"}},
        {"pixelResolution": [1, 1, 1], "dataType": "text"},
    ],
)
def test_refuses_attributes_that_make_no_sense(tmp_path, array, attributes):
    write_by_hand(tmp_path / "a.n5" / "x", array, (5, 4, 3), **attributes)
    with pytest.raises(InputError):
        open_image(tmp_path / "a.n5" / "x")


def test_writes_what_it_reads(tmp_path, array):
    grid = Grid(array.shape, (1840.0, 1840.0, 1680.0), unit="nanometer")
    write_n5(tmp_path / "a.n5", "low", array, grid, (2, 2, 2), chunks=(5, 4, 3))
    image = open_image(tmp_path / "a.n5/low")
    assert image.spacing == pytest.approx((1.84, 1.84, 1.68), rel=1e-15)  # one rounding
    np.testing.assert_array_equal(image.read(), array)
    attributes = json.loads((tmp_path / "a.n5/low/attributes.json").read_text())
    assert attributes["pixelResolution"]["unit"] == "um"
    assert attributes["pixelResolution"]["dimensions"] == pytest.approx([0.92, 0.92, 0.84])
    assert attributes["downsamplingFactors"] == [2, 2, 2]
    assert json.loads((tmp_path / "a.n5/attributes.json").read_text())["n5"]
    with pytest.raises(ExistingOutputError):
        create_n5(tmp_path / "a.n5", "low", grid, np.uint8, (5, 4, 3))


@pytest.mark.parametrize("origin", [(0, 0, 0), (0.46, 0.46, 0.42), (-7.5, 1e3, 0)])
@pytest.mark.parametrize("factors", [(), (1, 1, 1), (2, 2, 2), (4, 4, 1)])
def test_what_is_written_comes_back_in_its_place(tmp_path, array, origin, factors):
    grid = Grid(array.shape, (1.84, 1.84, 1.68), origin)
    write_n5(tmp_path / "a.n5", "s0", array, grid, factors)
    found = open_image(tmp_path / "a.n5/s0").grid
    np.testing.assert_allclose(found.origin, origin, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.spacing, grid.spacing, rtol=1e-12)
    assert found.unit == "micrometer"


def test_writes_two_axes(tmp_path, array):
    write_n5(tmp_path / "a.n5", "flat", array[..., 0], Grid(array.shape[:2], (1, 2)))
    image = open_image(tmp_path / "a.n5/flat")
    assert image.grid == Grid((13, 10), (1, 2))
    np.testing.assert_array_equal(image.read(), array[..., 0])


def test_refuses_grids_that_n5_cannot_hold(tmp_path, array):
    turned = Grid(array.shape, (1, 1, 1), direction=[[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    for grid in (turned, Grid(array.shape, (1, 1, 1), axes=("z", "y", "x"))):
        with pytest.raises(InputError):
            create_n5(tmp_path / "a.n5", "x", grid, np.uint8, (5, 4, 3))
    with pytest.raises(InputError, match="bool"):
        create_n5(tmp_path / "a.n5", "x", Grid(array.shape, (1, 1, 1)), bool, (5, 4, 3))
    assert not (tmp_path / "a.n5").exists()


@pytest.mark.skipif(not REAL.exists(), reason="the real pair is not beside the repository")
def test_the_real_pair():
    fixed = open_image(REAL / "fix.n5" / "lowres")
    assert fixed.shape == (456, 241, 149)
    assert fixed.spacing == pytest.approx((1.84, 1.84, 1.68), rel=1e-15)
    assert fixed.grid.origin == pytest.approx((0.46, 0.46, 0.42))
    moving = open_image(str(REAL / "mov.n5"), dataset="/lowres")
    assert moving.shape == (456, 241, 144)
    part = moving[100:140, 50:60, 70:75].read()
    np.testing.assert_array_equal(part, moving.read()[100:140, 50:60, 70:75])
    assert part.std() > 0


def test_a_path_that_goes_up_again_is_the_same_place(tmp_path):
    voxels = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    (tmp_path / "run").mkdir()
    around = tmp_path / "run" / ".." / "a.n5"
    write_n5(around, "s0", voxels, Grid(voxels.shape, (1.0, 2.0, 3.0)))
    np.testing.assert_array_equal(open_image(around / "s0").read(), voxels)

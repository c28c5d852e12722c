"""Annotations opened and refused; regions counted block by block."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile

from itkstream.atlas.annotation import open_annotation
from itkstream.atlas.regions import list_regions, read_names, tally, write_regions
from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid, Image
from itkstream.io.storage.locations import Location

IDS = np.array([0, 1, 2**24 + 1, 2**24 + 2, 2**32 - 1, 2**53 + 1], np.uint64)
AXES = ("z", "y", "x")


def labels_and_light(shape: tuple[int, ...] = (140, 20, 30)) -> tuple[Image, Image]:
    rng = np.random.default_rng(0)
    grid = Grid(shape, (10.0, 20.0, 25.0), axes=AXES)
    light = rng.integers(0, 65536, shape).astype(np.uint16)
    return Image(IDS[rng.integers(0, len(IDS), shape)], grid), Image(light, grid)


def test_blocks_count_what_the_whole_counts() -> None:
    """Truth: numpy over the whole array. The first axis is longer than a block."""
    labels, light = labels_and_light()
    holes = np.where(light.data > 60000, np.nan, light.data).astype(np.float32)
    found = tally(labels, (light, Image(holes, labels.grid)))
    assert sorted(found) == IDS[1:].tolist()
    for label in IDS[1:]:
        here = labels.data == label
        assert found[int(label)].voxels == here.sum()
        assert found[int(label)].sums[0] == light.data[here].astype(np.int64).sum()
        assert found[int(label)].numbers[1] == np.isfinite(holes[here]).sum()


def test_lazy_labels_count_alike() -> None:
    labels, light = labels_and_light()
    lazy = Image(da.from_array(labels.data, chunks=(33, 11, 30)), labels.grid)
    for label, here in tally(lazy, (light,)).items():
        assert here.sums[0] == light.data[labels.data == label].astype(np.int64).sum()


def test_the_table_holds_ids_volumes_and_means(tmp_path: Path) -> None:
    labels, light = labels_and_light((4, 5, 6))
    template = Image(np.where(labels.data == 1, 77, labels.data), labels.grid)
    names = tmp_path / "structures.csv"
    names.write_text('\ufeffacronym,ID,Name,parent\nR,16777217,"root, all",\nQ,5,none,\n')
    sides = (labels, tally(labels, (light,))), (template, tally(template))
    regions = list_regions(*sides, read_names(names))
    write_regions(Location.parse(tmp_path / "regions.csv"), regions, ("DAPI",))
    rows = (tmp_path / "regions.csv").read_text().splitlines()
    assert rows[0] == "id,name,acronym,voxels,volume_mm3,template_volume_mm3,mean_DAPI"
    known = next(row for row in rows if row.startswith("16777217,"))
    count = (labels.data == 2**24 + 1).sum()
    assert known.startswith(f'16777217,"root, all",R,{count},{count * 5e-6:.6g},')
    assert next(r for r in rows if r.startswith("77,")).startswith("77,,,0,0,")
    assert next(r for r in rows if r.startswith("77,")).endswith(",")
    assert [r.id for r in regions] == sorted(r.id for r in regions)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "columns a, b; names of regions"),
        ("", "columns none"),
        ("id,name\n1.5,x\n", "line 2: an id is a whole number; got '1.5'"),
        ("id,name\n1,x\n1,y\n", "names region 1 twice"),
    ],
)
def test_files_of_names_that_are_none_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_names(tmp_path / "names.csv")
    with pytest.raises(MissingDataError, match="no file of names"):
        read_names(tmp_path / "other.csv")


def test_an_annotation_may_have_voxels_of_its_own() -> None:
    template = Image(np.zeros((4, 6, 8), np.uint8), Grid((4, 6, 8), (20.0,) * 3, axes=AXES))
    fine = Grid((8, 12, 16), (10.0,) * 3, (-5.0,) * 3, axes=AXES)
    found = open_annotation(Image(np.ones(fine.shape, np.uint32), fine), template)
    assert found.grid.spacing == (10.0,) * 3
    wrong = Grid((8, 12, 16), (12.5,) * 3, axes=AXES)
    with pytest.raises(InputError, match=r"does not lie over the template: it spans z .* 93\.75"):
        open_annotation(Image(np.ones(wrong.shape, np.uint32), wrong), template)


def test_an_annotation_without_spacing_has_that_of_the_template(tmp_path: Path) -> None:
    template = Image(np.zeros((4, 6, 8), np.uint8), Grid((4, 6, 8), (20.0,) * 3, axes=AXES))
    planes = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 6, 8), 2**24 + 1, np.uint32), **planes)
    found = open_annotation(tmp_path / "a.tif", template)
    assert found.grid == template.grid
    assert (found.read() == 2**24 + 1).all()
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((4, 6, 9), np.uint32), **planes)
    with pytest.raises(InputError, match="say --annotation-spacing"):
        open_annotation(tmp_path / "b.tif", template)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_an_annotation_of_no_whole_numbers_is_refused(dtype: type) -> None:
    grid = Grid((4, 6, 8), (20.0,) * 3, axes=AXES)
    image = Image(np.zeros(grid.shape, dtype), grid)
    with pytest.raises(InputError, match="whole numbers, the ids of regions"):
        open_annotation(image, image)


def test_an_annotation_whose_axes_are_not_named_is_refused() -> None:
    """One of cubic shape could be transposed, and nothing would tell."""
    ids = Image(np.ones((6, 6, 6), np.uint32), Grid((6, 6, 6), (25.0,) * 3))
    template = Image(np.ones((6, 6, 6)), Grid((6, 6, 6), (25.0,) * 3, axes=("z", "y", "x")))
    with pytest.raises(InputError, match="nothing says which axis of the annotation is x"):
        open_annotation(ids, template)


def test_an_annotation_of_a_plane_is_refused() -> None:
    plane = Image(np.zeros((6, 8), np.uint8), Grid((6, 8), (20.0,) * 2, axes=("y", "x")))
    template = Image(np.zeros((4, 6, 8), np.uint8), Grid((4, 6, 8), (20.0,) * 3, axes=AXES))
    with pytest.raises(InputError, match="has 2 axes and the template 3"):
        open_annotation(plane, template)

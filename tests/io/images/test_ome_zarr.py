"""Zarr and OME-Zarr against ngff-zarr and metadata written by hand."""

from __future__ import annotations

import json
import shutil

import ngff_zarr
import numpy as np
import pytest
import zarr

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid
from itkstream.io import open_image
from itkstream.io.images.stores.ome_zarr import coarser_levels

AXES = [
    {"name": "t", "type": "time", "unit": "second"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]


def step(kind, *numbers):
    return {"type": kind, kind: list(numbers)}


def dataset(path, *steps):
    return {"path": path, "coordinateTransformations": list(steps)}


def write_group(path, multiscale, levels, version="0.5"):
    old = version != "0.5"
    ome = {"multiscales": [{"version": version, **multiscale}]}
    if not old:
        ome = {"ome": {"version": version, "multiscales": [multiscale]}}
    group = zarr.create_group(str(path), zarr_format=2 if old else 3, attributes=ome)
    for name, array in levels.items():
        group.create_array(name, data=array, chunks=(2,) * array.ndim)
    return path


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 60000, (2, 3, 5, 6, 7)).astype(np.uint16)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_composes_the_transformations_of_level_and_image(tmp_path, array, version):
    multiscale = {
        "axes": AXES,
        "datasets": [
            dataset("0", step("scale", 1, 1, 2, 0.5, 0.25), step("translation", 0, 0, 3, 4, 5)),
            dataset("1", step("scale", 1, 1, 2, 1, 0.5), step("translation", 0, 0, 3, 4.25, 5.125)),
        ],
        "coordinateTransformations": [
            step("scale", 0.1, 1, 10, 20, 40), step("translation", 0, 0, 7, 8, 9),
        ],
    }  # fmt: skip
    levels = {"0": array, "1": array[..., ::2, ::2]}
    path = write_group(tmp_path / "a.ome.zarr", multiscale, levels, version)
    image = open_image(path, channel=2, time=1)
    assert image.grid == Grid((5, 6, 7), (20, 10, 10), (37, 88, 209), axes=("z", "y", "x"))
    np.testing.assert_array_equal(image.read(), array[1, 2])
    coarse = open_image(path, level=1, channel=0).grid
    assert coarse.origin == (37, 93, 214)
    assert open_image(path / "1", channel=0).grid == coarse
    assert open_image(path, dataset="1", channel=0).grid == coarse
    for choice in ({"channel": 3}, {"time": 2}, {"level": 2}, {"level": -1}):
        with pytest.raises(InputError, match=f"no {next(iter(choice))}"):
            open_image(path, **{"channel": 0, **choice})
    with pytest.raises(InputError, match="level"):
        open_image(path / "1", level=1)
    with pytest.raises(InputError, match="one of them"):
        open_image(path, level=1, spacing=3)


def test_the_level_of_nearest_spacing(tmp_path, array):
    scales = [(2, 0.5, 0.5), (2, 1, 1), (4, 2, 2)]
    axes = [{**a, "unit": "nanometer"} for a in AXES[2:]]
    levels = {str(k): array[0, 0] for k in range(3)}
    datasets = [dataset(str(k), step("scale", *s)) for k, s in enumerate(scales)]
    path = write_group(tmp_path / "a.zarr", {"axes": axes, "datasets": datasets}, levels)
    for wanted, spacing in [
        (1e-5, scales[0]), (2.5e-3, scales[2]), ((2e-3, 0.9e-3, 1e-3), scales[1]),
    ]:  # fmt: skip
        image = open_image(path, spacing=wanted)
        assert (image.spacing, image.grid.unit) == (spacing, "nanometer")
    assert open_image(path, spacing=1, unit="um").spacing == scales[1]
    assert open_image(path, level=2, voxel_spacing=5).spacing == (5, 5, 5)
    shutil.rmtree(path / "0")  # a copy of the coarse levels only
    assert open_image(path, level=2).spacing == scales[2]
    with pytest.raises(MissingDataError, match=r"datasets in .*: 1, 2"):
        open_image(path)


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_agrees_with_ngff_zarr(tmp_path, version):
    data = np.random.default_rng(5).integers(0, 99, (12, 10, 8)).astype(np.uint8)
    scale, shift = {"x": 0.3, "y": 0.4, "z": 1.5}, {"x": 7.0, "y": -2.0, "z": 0.5}
    units = dict.fromkeys("xyz", "millimeter")
    source = ngff_zarr.to_ngff_image(data, ("z", "y", "x"), scale, shift, axes_units=units)
    path = str(tmp_path / "a.ome.zarr")
    ngff_zarr.to_ome_zarr(path, ngff_zarr.to_multiscales(source, [2]), version=version)
    for level, expected in enumerate(ngff_zarr.from_ome_zarr(path).images):
        image = open_image(path, level=level)
        assert image.grid.axes == ("z", "y", "x")
        assert image.grid.unit == "millimeter"
        assert image.spacing == tuple(expected.scale[a] for a in "zyx")
        assert image.grid.origin == tuple(expected.translation[a] for a in "zyx")
        np.testing.assert_array_equal(image.read(), np.asarray(expected.data))
    np.testing.assert_array_equal(open_image(path).read(), data)


def test_units_that_differ_between_axes_are_brought_together(tmp_path, array):
    axes = [
        {**a, "unit": u} for a, u in zip(AXES[2:], ("nanometer", "micrometer", "mm"), strict=True)
    ]
    steps = (step("scale", 500, 0.2, 3), step("translation", 1000, 2, 0))
    multiscale = {"axes": axes, "datasets": [dataset("s0", *steps)]}
    path = write_group(tmp_path / "a.zarr", multiscale, {"s0": array[0, 0]})
    grid = open_image(path).grid.in_unit("micrometer")
    assert grid.spacing == pytest.approx((0.5, 0.2, 3000))
    assert grid.origin == pytest.approx((1, 2, 0))
    assert open_image(path, unit="um").spacing == (500, 0.2, 3)


@pytest.mark.parametrize(("version", "axes"), [("0.2", None), ("0.3", ["t", "c", "z", "y", "x"])])
def test_old_versions_need_their_spacing_stated(tmp_path, array, version, axes):
    multiscale = {"datasets": [{"path": "0"}], **({"axes": axes} if axes else {})}
    path = write_group(tmp_path / "a.zarr", multiscale, {"0": array}, version)
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(path, channel=1)
    image = open_image(path, voxel_spacing=(3, 2, 2), channel=1)
    assert image.grid == Grid((5, 6, 7), (3, 2, 2), axes=("z", "y", "x"))
    np.testing.assert_array_equal(image.read(), array[0, 1])


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}],
        [{"type": "scale", "path": "elsewhere"}],
        [step("scale", 1, 2)],
        [step("scale", 1, -1, 1)],
    ],
)
def test_refuses_transformations_it_does_not_know(tmp_path, array, steps):
    multiscale = {"axes": AXES[2:], "datasets": [dataset("0", *steps)]}
    path = write_group(tmp_path / "a.zarr", multiscale, {"0": array[0, 0]})
    with pytest.raises(InputError):
        open_image(path)


def test_refuses_axes_it_does_not_know(tmp_path, array):
    axes = [{"name": "angle", "type": "other"}, *AXES[2:]]
    multiscale = {"axes": axes, "datasets": [dataset("0", step("scale", 1, 1, 1, 1))]}
    path = write_group(tmp_path / "a.zarr", multiscale, {"0": array[0]})
    with pytest.raises(InputError, match="angle"):
        open_image(path)
    zarr.open_array(f"{path}/0").resize((1, 5, 6, 7))
    assert open_image(path).shape == (5, 6, 7)


def test_images_inside_groups_are_found_and_listed(tmp_path, array):
    zarr.create_group(str(tmp_path / "a.zarr"), attributes={"bioformats2raw.layout": 3})
    multiscale = {"axes": AXES[2:], "datasets": [dataset("0", step("scale", 1, 2, 3))]}
    write_group(tmp_path / "a.zarr" / "7", multiscale, {"0": array[0, 0]})
    assert open_image(tmp_path / "a.zarr", dataset="7").spacing == (1, 2, 3)
    for wrong in ("a.zarr", "a.zarr/8", "a.zarr/7/1"):
        with pytest.raises(MissingDataError, match="7/0"):
            open_image(tmp_path / wrong)


def test_a_damaged_series_does_not_end_the_list(tmp_path, array):
    zarr.create_group(str(tmp_path / "a.zarr"), attributes={"bioformats2raw.layout": 3})
    zarr.create_group(str(tmp_path / "a.zarr" / "OME"), attributes={"series": ["0", "1", "2"]})
    multiscale = {"axes": AXES[2:], "datasets": [dataset("0", step("scale", 1, 2, 3))]}
    for name in ("0", "2"):
        write_group(tmp_path / "a.zarr" / name, multiscale, {"0": array[0, 0]})
    (tmp_path / "a.zarr" / "1").mkdir()
    with pytest.raises(MissingDataError, match="3 images: 0, 1, 2"):
        open_image(tmp_path / "a.zarr")
    with pytest.raises(MissingDataError, match=r"a\.zarr/1"):
        open_image(tmp_path / "a.zarr/1")


@pytest.mark.parametrize("path", [".", "..", "", "/"])
def test_a_plate_that_holds_itself_ends(tmp_path, path):
    plate = {"wells": [{"path": path}]}
    zarr.create_group(str(tmp_path / "a.zarr"), attributes={"ome": {"plate": plate}})
    with pytest.raises(MissingDataError, match="an OME-Zarr image"):
        open_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("attributes", "spacing", "unit"),
    [
        ({"spacing": [3, 2, 1]}, (3, 2, 1), "micrometer"),
        ({"voxel_size": [3, 2, 1], "unit": "nm"}, (3, 2, 1), "nanometer"),
        ({"pixelResolution": {"dimensions": [1, 2, 3], "unit": "um"}}, (3, 2, 1), "micrometer"),
        ({"pixelResolution": [1, 2, 3], "axes": ["Y", "X", "Z"]}, (2, 1, 3), "micrometer"),
    ],
)
def test_plain_arrays(tmp_path, array, zarr_format, attributes, spacing, unit):
    path = tmp_path / "plain.zarr"
    stored = array[0, 0].astype(">u2")
    zarr.create_array(
        str(path), data=stored, chunks=(2, 3, 4), zarr_format=zarr_format, attributes=attributes
    )
    image = open_image(path)
    axes = tuple(a.lower() for a in attributes.get("axes", ("z", "y", "x")))
    assert image.grid == Grid((5, 6, 7), spacing, axes=axes, unit=unit)
    assert image.dtype.isnative
    np.testing.assert_array_equal(image.read(), array[0, 0])
    assert image[1:3, :, 2:4].read().dtype.isnative


def test_dimension_names_of_a_plain_array(tmp_path, array):
    names = ("c", "x", "y", "z")
    zarr.create_array(str(tmp_path / "a"), data=array[0], dimension_names=names)
    image = open_image(tmp_path / "a", voxel_spacing=(1, 2, 3), channel=1)
    assert image.grid == Grid((5, 6, 7), (1, 2, 3), axes=("x", "y", "z"))
    np.testing.assert_array_equal(image.read(), array[0, 1])
    zarr.create_array(str(tmp_path / "b"), data=array[0])
    with pytest.raises(InputError, match="axes without names"):
        open_image(tmp_path / "b", voxel_spacing=1)
    zarr.create_array(str(tmp_path / "flat"), data=array[0, 0, 0], attributes={"spacing": [1, 2]})
    assert open_image(tmp_path / "flat").grid.axes == ("y", "x")
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(tmp_path / "flat", voxel_spacing=(1, 2, 3))
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(tmp_path / "flat", voxel_spacing=0)


def test_broken_metadata_are_named(tmp_path, array):
    zarr.create_array(str(tmp_path / "a"), data=array[0, 0], attributes={"spacing": [1, 2]})
    with pytest.raises(InputError, match="spacing"):
        open_image(tmp_path / "a")
    axes = {"axes": AXES[2:], "datasets": [dataset("0", step("scale", 1, 1, 1))]}
    path = write_group(tmp_path / "b.zarr", axes, {"0": array[0]})
    with pytest.raises(InputError, match="4 axes"):
        open_image(path)
    node = json.loads((path / "zarr.json").read_text())
    node["attributes"]["ome"]["multiscales"][0]["axes"] = AXES[:2]
    (path / "zarr.json").write_text(json.dumps(node))
    with pytest.raises(InputError):
        open_image(path)
    del node["attributes"]["ome"]["multiscales"][0]["datasets"]
    (path / "zarr.json").write_text(json.dumps(node))
    with pytest.raises(InputError, match="datasets"):
        open_image(path)


def test_a_level_that_nobody_asked_for_may_be_odd(tmp_path):
    voxels = np.zeros((8, 8, 8), np.uint8)
    plain = dataset("0", step("scale", 1, 1, 1))
    for name, further, count in (
        ("fit", dataset("1/", step("scale", 2, 2, 2)), 1),
        ("odd", dataset("1", {"type": "affine", "affine": np.eye(3, 4).tolist()}), 0),
    ):
        path = write_group(
            tmp_path / f"{name}.zarr",
            {"axes": AXES[2:], "datasets": [plain, further]},
            {"0": voxels, "1": voxels[::2, ::2, ::2]},
        )
        image = open_image(path / "0")
        assert len(coarser_levels(image.data)) == count

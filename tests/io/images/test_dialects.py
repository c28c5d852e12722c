"""What tools state of the same voxels in N5, Zarr and OME-Zarr, each by its own convention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid
from itkstream.io import open_image, open_series, write_n5

FINE = np.random.default_rng(3).integers(0, 999, (12, 8, 4)).astype(np.uint16)
HALF = FINE[::2, ::2, ::2].copy()


def n5(folder: Path, groups: dict[str, Any], levels: dict[str, tuple[Any, Any]]) -> Path:
    """A container whose attributes are exactly those given."""
    for name, (array, attributes) in levels.items():
        write_n5(folder, name, array, Grid(array.shape, (1,) * array.ndim))
        file = folder / name / "attributes.json"
        kept = ("dimensions", "blockSize", "dataType", "compression")
        own = {key: json.loads(file.read_text())[key] for key in kept}
        file.write_text(json.dumps({**own, **attributes}))
    for name, attributes in groups.items():
        (folder / name / "attributes.json").write_text(json.dumps(attributes))
    return folder


def n5_of_any_axes(folder: Path, array: np.ndarray, **attributes: Any) -> Path:
    """A dataset that is a container itself."""
    import tensorstore

    metadata = {
        "dimensions": array.shape,
        "blockSize": [4] * array.ndim,
        "dataType": array.dtype.name,
        "compression": {"type": "gzip"},
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(folder)}, "create": True}
    tensorstore.open({**spec, "metadata": metadata}).result()[...].write(array).result()
    file = folder / "attributes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **attributes}))
    return folder


def nm(*dimensions: float) -> dict[str, Any]:
    return {"dimensions": list(dimensions), "unit": "nm"}


def cosem(scale: list[float], translate: list[float]) -> dict[str, Any]:
    units = {"units": ["nm"] * 3}
    return {"axes": ["z", "y", "x"], "scale": scale, "translate": translate, **units}


FACTORS = [[1, 1, 1], [2, 2, 2]]
DIALECTS = {
    "n5-viewer": ({"g": {"pixelResolution": nm(4, 4, 5), "scales": FACTORS}}, {}, {}),
    "n5-viewer, factors of levels": (
        {"g": {"pixelResolution": nm(4, 4, 5)}},
        {"downsamplingFactors": [1, 1, 1]},
        {"downsamplingFactors": [2, 2, 2]},
    ),
    "n5-viewer, resolution of levels": (
        {},
        {"pixelResolution": nm(4, 4, 5), "downsamplingFactors": [1, 1, 1]},
        {"pixelResolution": nm(4, 4, 5), "downsamplingFactors": [2, 2, 2]},
    ),
    "the finest one's resolution in every level": (
        {"g": {"scales": FACTORS}},
        {"pixelResolution": nm(4, 4, 5)},
        {"pixelResolution": nm(4, 4, 5)},
    ),
    "COSEM": (
        {"g": {"pixelResolution": nm(4, 4, 5), "scales": FACTORS}},
        {"pixelResolution": nm(4, 4, 5), "transform": cosem([5, 4, 4], [0, 0, 0])},
        {"pixelResolution": nm(8, 8, 10), "transform": cosem([10, 8, 8], [2.5, 2, 2])},
    ),
    "COSEM, unit of the resolution alone": (
        {},
        {
            "pixelResolution": nm(4, 4, 5),
            "transform": {"axes": ["z", "y", "x"], "scale": [5, 4, 4]},
        },
        {
            "pixelResolution": nm(8, 8, 10),
            "transform": {**cosem([10, 8, 8], [2.5, 2, 2]), "units": None},
        },
    ),
    "COSEM without transform": (
        {"g": {"pixelResolution": nm(4, 4, 5), "scales": FACTORS}},
        {"pixelResolution": nm(4, 4, 5)},
        {"pixelResolution": nm(8, 8, 10)},
    ),
    "COSEM, transform of the group": (
        {
            "g": {
                "multiscales": [
                    {
                        "datasets": [
                            {"path": "s0", "transform": cosem([5, 4, 4], [0, 0, 0])},
                            {"path": "s1", "transform": cosem([10, 8, 8], [2.5, 2, 2])},
                        ]
                    }
                ]
            }
        },
        {},
        {},
    ),
    "neuroglancer": (
        {
            "g": {
                "axes": ["x", "y", "z"],
                "units": ["nm"] * 3,
                "resolution": [4, 4, 5],
                "downsamplingFactors": FACTORS,
            }
        },
        {},
        {},
    ),
    "BDV": (
        {
            "": {"downsamplingFactors": FACTORS},
            "g": {"multiScale": True, "resolution": [4, 4, 5], "unit": "nm"},
        },
        {},
        {},
    ),
    "OME-NGFF in N5": (
        {
            "g": {
                "multiscales": [
                    {
                        "axes": [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"],
                        "datasets": [
                            {
                                "path": f"s{k}",
                                "coordinateTransformations": [
                                    {"type": "scale", "scale": [5 * f, 4 * f, 4 * f]},
                                    {
                                        "type": "translation",
                                        "translation": [2.5 * k, 2.0 * k, 2.0 * k],
                                    },
                                ],
                            }
                            for k, f in enumerate((1, 2))
                        ],
                    }
                ]
            }
        },
        {},
        {},
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_levels_of_n5_lie_where_their_tools_say(tmp_path, name):
    groups, fine, coarse = DIALECTS[name]
    root = n5(tmp_path / "a.n5", groups, {"g/s0": (FINE, fine), "g/s1": (HALF, coarse)})
    first = Grid(FINE.shape, (4, 4, 5), unit="nanometer")
    for path, given, grid in (
        (root / "g/s0", {}, first),
        (root / "g/s1", {}, first.shrink((2, 2, 2))),
        (root / "g", {}, first),
        (root / "g", {"level": 1}, first.shrink((2, 2, 2))),
        (root / "g", {"spacing": 0.009}, first.shrink((2, 2, 2))),
    ):
        assert open_image(path, **given).grid == grid


def test_offset_and_factors_of_paintera(tmp_path):
    group = {"multiScale": True, "resolution": [4, 4, 40], "offset": [100, 200, 300], "maxId": 9}
    levels = {"p/data/s0": (FINE, {}), "p/data/s1": (HALF, {"downsamplingFactors": [2, 2, 1]})}
    groups = {"p": {"painteraData": {"type": "raw"}}, "p/data": group}
    root = n5(tmp_path / "a.n5", groups, levels)
    assert open_image(root / "p").grid.origin == (100, 200, 300)
    coarse = open_image(root / "p", level=1).grid
    assert (coarse.spacing, coarse.origin) == ((8, 8, 40), (102, 202, 300))
    n5(root, {}, {"labels": (FINE, {"isLabelMultiset": True, "resolution": [1, 1, 1]})})
    with pytest.raises(InputError, match="isLabelMultiset"):
        open_image(root / "labels")


@pytest.mark.parametrize(
    ("groups", "fine", "coarse", "match"),
    [
        ({"g": {"scales": FACTORS}}, nm(4, 4, 5), nm(6, 6, 7), "nobody can tell"),
        ({"g": {"pixelResolution": [4, 4, 5]}}, None, None, "by how much level 1"),
        ({}, nm(4, 4, 5), nm(4, 4, 5), "by how much level 1"),
        ({"g": {"pixelResolution": [4, 4, 5], "scales": [[1, 1, 1]]}}, None, None, "scales"),
    ],
)
def test_levels_that_nobody_can_place_are_refused(tmp_path, groups, fine, coarse, match):
    stated = [{"pixelResolution": value} if value else {} for value in (fine, coarse)]
    levels = {"g/s0": (FINE, stated[0]), "g/s1": (HALF, stated[1])}
    root = n5(tmp_path / "a.n5", groups, levels)
    assert open_image(root / "g").spacing == (4, 4, 5)
    for path, given in ((root / "g/s1", {}), (root / "g", {"level": 1})):
        with pytest.raises(InputError, match=match):
            open_image(path, **given)
        assert open_image(path, voxel_spacing=9, **given).spacing == (9, 9, 9)


def test_bdv_without_a_resolution_takes_a_stated_one(tmp_path):
    levels = {"setup0/timepoint0/s0": (FINE, {}), "setup0/timepoint0/s1": (HALF, {})}
    root = n5(tmp_path / "a.n5", {"setup0": {"downsamplingFactors": FACTORS}}, levels)
    with pytest.raises(InputError, match="voxel_spacing"):
        open_image(root / "setup0/timepoint0/s1")
    grid = open_image(root / "setup0/timepoint0/s1", voxel_spacing=(2, 2, 4)).grid
    assert grid.origin == (0.5, 0.5, 1)


@pytest.mark.parametrize(
    ("attributes", "axes", "spacing"),
    [
        ({"axes": ["z", "y", "x"], "resolution": [5, 2, 1]}, "zyx", (5, 2, 1)),
        ({"axes": ["Z", "Y", "X"], "pixelResolution": [5, 2, 1]}, "zyx", (5, 2, 1)),
        ({"axes": [{"name": n} for n in "yxz"], "voxel_size": [5, 2, 1]}, "yxz", (5, 2, 1)),
        # numpy's order, which the older zarr.N5Store turned round.
        ({"_ARRAY_DIMENSIONS": ["z", "y", "x"], "resolution": [5, 2, 1]}, "xyz", (5, 2, 1)),
        ({"_ARRAY_DIMENSIONS": ["x", "y", "z"], "resolution": [5, 2, 1]}, "zyx", (5, 2, 1)),
    ],
)
def test_names_of_axes_in_n5(tmp_path, attributes, axes, spacing):
    root = n5(tmp_path / "a.n5", {}, {"x": (FINE, attributes)})
    image = open_image(root / "x")
    assert ("".join(image.grid.axes), image.spacing) == (axes, spacing)
    np.testing.assert_array_equal(image.read(), FINE)


@pytest.mark.parametrize(
    "attributes",
    [
        {"axes": ["z", "y", "x"], "_ARRAY_DIMENSIONS": ["z", "y", "x"]},
        {"axes": ["a", "b", "c"]},
        {"axes": ["x", "y"]},
        {"axes": ["x", "x", "y"]},
        {"axes": 3},
        {"units": ["nm", "nm"]},
        {"units": ["nm", "", "nm"]},
        {"units": ["nm", "nm", "furlong"]},
        {"pixelResolution": {"dimensions": [1, 1, 1], "unit": "um"}, "units": ["nm"] * 3},
        {"pixelResolution": [4, 4, 4]},
        {"transform": {"axes": ["z", "y", "x"], "scale": [9, 9, 9]}},
        {"transform": {"axes": ["z", "y"], "scale": [1, 1]}},
        {"offset": ["far", 0, 0]},
    ],
)
def test_contradictions_and_nonsense_name_file_and_key(tmp_path, attributes):
    root = n5(tmp_path / "a.n5", {}, {"x": (FINE, {"resolution": [1, 1, 1], **attributes})})
    with pytest.raises(InputError, match=r"a\.n5/x") as caught:
        open_image(root / "x")
    key = "spacing" if "pixelResolution" in attributes else next(iter(attributes))
    words = {"spacing": "", "units": "unit", "transform": ""}
    assert words.get(key, key) in str(caught.value)


def test_units_of_each_axis_are_brought_together(tmp_path):
    given = {"resolution": [1, 2, 3], "units": ["nm", "um", "nm"]}
    root = n5(tmp_path / "a.n5", {}, {"x": (FINE, given)})
    assert open_image(root / "x").grid == Grid(FINE.shape, (1, 2000, 3), unit="nanometer")


def test_channels_and_times_of_n5(tmp_path):
    array = np.stack([FINE, FINE + 1], 2)[..., None]
    given = {"pixelResolution": nm(2, 3, 1, 4, 1), "axes": list("xyczt")}
    path = n5_of_any_axes(tmp_path / "a.n5", array, **given, units=["nm", "nm", "", "nm", "s"])
    grid = Grid(FINE.shape, (2, 3, 4), unit="nanometer")
    for channel, image in enumerate(open_series(path, "channel")):
        assert image.grid == grid
        np.testing.assert_array_equal(image.read(), FINE + channel)
    assert len(open_series(path, "time", channel=0)) == 1
    unnamed = n5_of_any_axes(tmp_path / "b.n5", array, pixelResolution=[2, 3, 4])
    with pytest.raises(InputError, match="axes without names"):
        open_image(unnamed)
    assert open_image(unnamed, axes="xyczt", channel=1).spacing == (2, 3, 4)


def test_a_series_does_not_end_at_a_damage(tmp_path):
    path = n5_of_any_axes(
        tmp_path / "a.n5", np.zeros((4, 4, 4, 2), "u1"), axes=list("xyzc"), resolution=[1]
    )
    with pytest.raises(InputError, match="resolution"):
        open_series(path, "channel")


def test_n5_of_version_1(tmp_path):
    path = n5(tmp_path / "a.n5", {}, {"x": (FINE, {"resolution": [1, 1, 1]})}) / "x"
    given = json.loads((path / "attributes.json").read_text())
    del given["compression"]
    (path / "attributes.json").write_text(json.dumps({**given, "compressionType": "gzip"}))
    np.testing.assert_array_equal(open_image(path).read(), FINE)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("attributes", "grid"),
    [
        ({"voxel_size": [5, 2, 1], "units": ["nm"] * 3}, ((5, 2, 1), (0, 0, 0), "nanometer")),
        ({"resolution": [5, 2, 1], "offset": [9, 8, 7]}, ((5, 2, 1), (9, 8, 7), "micrometer")),
        ({"spacing": 2}, ((2, 2, 2), (0, 0, 0), "micrometer")),
        (
            {"pixelResolution": [0.5, 1, 2], "downsamplingFactors": [4, 4, 2]},
            ((4, 4, 2), (1, 1.5, 0.75), "micrometer"),
        ),
        (
            {"transform": cosem([5, 2, 1], [9, 8, 7]), "pixelResolution": nm(1, 2, 5)},
            ((5, 2, 1), (9, 8, 7), "nanometer"),
        ),
    ],
)
def test_plain_zarr(tmp_path, version, attributes, grid):
    options = {"zarr_format": version, "chunks": (4, 4, 4), "attributes": attributes}
    zarr.create_array(str(tmp_path / "a.zarr"), data=FINE, **options)
    spacing, origin, unit = grid
    expected = Grid(FINE.shape, spacing, origin, axes=("z", "y", "x"), unit=unit)
    assert open_image(tmp_path / "a.zarr").grid == expected


@pytest.mark.parametrize("dtype", ["S5", "<M8[s]", "complex64", [("a", "u1")]])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype):
    options = {"shape": (2, 2, 2), "chunks": (2, 2, 2), "zarr_format": 2}
    zarr.create_array(str(tmp_path / "a.zarr"), dtype=np.dtype(dtype), **options)
    with pytest.raises(InputError, match="numbers are read"):
        open_image(tmp_path / "a.zarr", voxel_spacing=1)


def ome(
    folder: Path, axes: Any, shape: tuple[int, ...], levels: dict[str, Any], **more: Any
) -> Path:
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    for name in levels:
        group.create_array(name, data=np.ones(shape, "u1"), chunks=shape)
    named = [{"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space")} for a in axes]
    datasets = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for name, scale in levels.items()
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": named, "datasets": datasets}]
    return folder


def test_a_single_plane_is_two_dimensional_whatever_holds_it(tmp_path):
    stores = [
        ome(tmp_path / "a.zarr", "tczyx", (1, 1, 1, 6, 5), {"0": [1, 1, 0, 2, 3]}),
        ome(tmp_path / "b.zarr", "yx", (6, 5), {"0": [2, 3]}),
    ]
    given = {"spacing": [9, 2, 3]}
    zarr.create_array(str(tmp_path / "c.zarr"), data=np.ones((1, 6, 5)), attributes=given)
    for path in (*stores, tmp_path / "c.zarr"):
        assert open_image(path).grid == Grid((6, 5), (2, 3), axes=("y", "x"))
    assert open_image(tmp_path / "c.zarr", axes="zyx").shape == (1, 6, 5)
    root = n5(tmp_path / "d.n5", {}, {"x": (FINE[..., :1], {"resolution": [2, 3, 9]})})
    assert open_image(root / "x").grid == Grid((12, 8), (2, 3))


def test_a_coarse_level_of_one_plane_is_still_of_a_stack(tmp_path):
    levels = {"0": [2, 1, 1], "1": [4, 2, 2]}
    path = ome(tmp_path / "a.zarr", "zyx", (2, 6, 5), levels)
    zarr.open_array(str(path / "1")).resize((1, 3, 3))
    assert open_image(path, level=1).shape == (1, 3, 3)
    assert open_image(path / "1").shape == (1, 3, 3)


def test_level_0_is_the_finest(tmp_path):
    levels = {"a": [4, 4, 4], "b/deep": [1, 1, 1], "c": [2, 2, 2]}
    path = ome(tmp_path / "a.zarr", "zyx", (4, 4, 4), levels)
    assert [open_image(path, level=k).spacing[0] for k in range(3)] == [1, 2, 4]
    assert open_image(path / "b/deep").spacing == (1, 1, 1)


def test_groups_of_images_are_listed_or_opened(tmp_path):
    for count in (1, 2):
        root = tmp_path / f"{count}.zarr"
        zarr.open_group(str(root), zarr_format=2).attrs["bioformats2raw.layout"] = 3
        for series in range(count):
            ome(root / str(series), "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    assert open_image(tmp_path / "1.zarr").shape == (4, 4, 4)
    with pytest.raises(MissingDataError, match="holds 2 images: 0, 1"):
        open_image(tmp_path / "2.zarr")
    plate = zarr.open_group(str(tmp_path / "p.zarr"), zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for well in ("A/1", "B/2"):
        plate.create_group(well).attrs["well"] = {"images": [{"path": "0"}]}
        ome(tmp_path / "p.zarr" / well / "0", "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    with pytest.raises(MissingDataError, match="2 images: A/1/0, B/2/0"):
        open_image(tmp_path / "p.zarr")
    assert open_image(tmp_path / "p.zarr/B/2").shape == (4, 4, 4)
    image = ome(tmp_path / "l.zarr", "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    zarr.open_group(str(image / "labels"), zarr_format=2).attrs["labels"] = ["cells", "nuclei"]
    for name in ("cells", "nuclei"):
        ome(image / "labels" / name, "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    with pytest.raises(MissingDataError, match="cells, nuclei"):
        open_image(image / "labels")
    assert open_image(image / "labels/nuclei").shape == (4, 4, 4)


@pytest.mark.parametrize("unit", [" ", "pixel", "second", "parsec"])
def test_units_that_are_no_known_length(tmp_path, unit):
    path = ome(tmp_path / "a.zarr", "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    about = json.loads((path / ".zattrs").read_text())
    for axis in about["multiscales"][0]["axes"][:2]:
        axis["unit"] = "nanometer"
    (path / ".zattrs").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"a\.zarr/\.zattrs.*have units"):
        open_image(path)
    about["multiscales"][0]["axes"][2]["unit"] = unit
    (path / ".zattrs").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"a\.zarr/\.zattrs.*unit="):
        open_image(path)
    assert open_image(path, unit="mm").grid.unit == "millimeter"


def test_attributes_beside_the_array_count_and_not_a_stale_copy_above(tmp_path):
    path = ome(tmp_path / "a.zarr", "zyx", (4, 4, 4), {"0": [1, 1, 1]})
    zarr.consolidate_metadata(str(path), zarr_format=2)
    about = json.loads((path / ".zattrs").read_text())
    steps = about["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    steps[0]["scale"] = [3, 2, 1]
    (path / ".zattrs").write_text(json.dumps(about))
    assert open_image(path).spacing == (3, 2, 1)


def test_links_are_followed_by_name(tmp_path):
    kept = tmp_path / "objects"
    kept.mkdir()
    n5(tmp_path / "x.n5", {}, {"s": (FINE, {"resolution": [1, 2, 3]})}).rename(kept / "abc")
    ome(tmp_path / "x.zarr", "zyx", (4, 5, 6), {"0": [3, 2, 1]}).rename(kept / "def")
    (tmp_path / "a.n5").symlink_to(kept / "abc")
    (tmp_path / "a.zarr").symlink_to("objects/def")
    for path in (tmp_path / "a.n5" / "s", kept / ".." / "a.n5" / "s"):
        image = open_image(path)
        assert image.spacing == (1, 2, 3)
        assert image.name == str(tmp_path / "a.n5" / "s")
    assert open_image(tmp_path / "a.zarr").spacing == (3, 2, 1)
    assert open_image(tmp_path / "a.zarr/0").spacing == (3, 2, 1)
    # A link to one dataset: what its container says counts.
    group = {"g": {"pixelResolution": nm(4, 4, 5), "scales": FACTORS}}
    n5(tmp_path / "b.n5", group, {"g/s0": (FINE, {}), "g/s1": (HALF, {})})
    (tmp_path / "latest").symlink_to("b.n5/g/s1")
    assert open_image(tmp_path / "latest").spacing == (8, 8, 10)

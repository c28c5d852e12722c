"""OME-Zarr scenes of others: written by ngff-zarr, or as the specification spells them."""

from __future__ import annotations

import pickle
from pathlib import Path
from shutil import rmtree
from typing import Any

import ngff_zarr as nz
import numpy as np
import pytest
import zarr
from ngff_zarr.v06 import zarr_metadata as v06
from ngff_zarr.v06.zarr_metadata import CoordinateSystemIdentifier as End
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField
from itkstream.io.transforms.files import read_transform, write_transform

MATRIX = np.array([[1.1, 0.1, 0.0, 3.0], [0.0, 0.9, -0.2, -4.0], [0.05, 0.0, 1.0, 5.0]])
ZYX = ("z", "y", "x")


def system(name: str, axes: str = "zyx", unit: str = "micrometer") -> dict[str, Any]:
    kinds = {"c": "channel", "t": "time"}
    listed = []
    for axis in axes:
        kind = kinds.get(axis, "space")
        listed.append({"name": axis, "type": kind, **({"unit": unit} if kind == "space" else {})})
    return {"name": name, "axes": listed}


def scene(path: Path, *transforms: dict[str, Any], systems: list[dict[str, Any]] | None = None):
    """A scene whose systems are its own."""
    listed = systems or [system("a"), system("b")]
    named = [{"input": {"name": "a"}, "output": {"name": "b"}, **t} for t in transforms]
    ome = {
        "version": "0.6",
        "scene": {"coordinateSystems": listed, "coordinateTransformations": named},
    }
    zarr.create_group(str(path), zarr_format=3, attributes={"ome": ome})
    return path


def field_image(path: Path, vectors: np.ndarray, scale: Any, shift: Any, kind: str) -> None:
    """A field as the specification has it, its components first."""
    n = len(scale)
    axes = [{"name": "c", "type": kind, "discrete": True}, *system("", "zyx"[-n:])["axes"]]
    to_physical = {
        "type": "sequence",
        "input": {"path": "s0"},
        "output": {"name": "physical"},
        "transformations": [
            {"type": "scale", "scale": [1.0, *scale]},
            {"type": "translation", "translation": [0.0, *shift]},
        ],
    }
    image = {
        "coordinateSystems": [{"name": "physical", "axes": axes}],
        "datasets": [{"path": "s0", "coordinateTransformations": [to_physical]}],
    }
    ome = {"version": "0.6", "multiscales": [image]}
    group = zarr.create_group(str(path), zarr_format=3, attributes={"ome": ome})
    group.create_array("s0", data=vectors)


SHAPE, SCALE, SHIFT = (6, 7, 8), (2.0, 3.0, 1.5), (5.0, -4.0, 2.0)


def vectors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, *SHAPE)).astype(np.float32)


def interpolated(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """By scipy, with components first."""
    centres = [b + a * np.arange(n) for a, b, n in zip(SCALE, SHIFT, SHAPE, strict=True)]
    return RegularGridInterpolator(centres, np.moveaxis(field, 0, -1))(points)


def inside(shrink: float = 0.0) -> np.ndarray:
    rng, last = np.random.default_rng(5), np.array(SHAPE) - 1
    index = rng.uniform(shrink, last - shrink, (60, 3))
    return index * SCALE + SHIFT


def image_of_nz(unit: str = "micrometer", axes: tuple[str, ...] = ZYX) -> Any:
    units = dict.fromkeys(axes, unit)
    ones = dict.fromkeys(axes, 1.0)
    blank = np.zeros((4,) * len(axes), np.float32)
    return nz.to_multiscales(
        nz.to_ngff_image(blank, axes, ones, dict.fromkeys(axes, 0.0), axes_units=units), []
    )


def field_of_nz(field: np.ndarray, kind: str, unit: str = "micrometer") -> Any:
    """A field image, by ngff-zarr."""
    image = nz.to_ngff_image(
        field,
        ("c", *ZYX),
        dict(zip(("c", *ZYX), (1.0, *SCALE), strict=True)),
        dict(zip(("c", *ZYX), (0.0, *SHIFT), strict=True)),
        axes_units=dict.fromkeys(ZYX, unit),
    )
    image.axes_types = {"c": kind}
    return nz.to_multiscales(image, [])


def scene_of_nz(path: Path, steps: list[Any], fixed: Any, moving: Any) -> Path:
    whole = v06.TransformSequence(
        name="registration",
        input=End(path="fixed", name="intrinsic"),
        output=End(path="moving", name="intrinsic"),
        transformations=steps,
    )
    images = {"fixed": fixed, "moving": moving}
    made = nz.NgffScene(images=images, coordinateTransformations=[whole])
    nz.to_ome_zarr(str(path), made, version="0.6", overwrite=False)
    return path


def in_axes(points: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    return points[:, [ZYX.index(a) for a in axes]]


@pytest.mark.parametrize("axes", [ZYX, ("x", "y", "z"), ("y", "z", "x")], ids="".join)
def test_a_registration_by_ngff_zarr(tmp_path: Path, axes: tuple[str, ...]) -> None:
    path = tmp_path / "scene.ome.zarr"
    nz.to_ome_zarr(str(path / "field"), field_of_nz(vectors(), "displacement"), version="0.6")
    steps = [v06.Displacements(path="field"), v06.Affine(affine=MATRIX.tolist())]
    scene_of_nz(path, steps, image_of_nz(), image_of_nz())
    points = inside()
    moved = points + interpolated(vectors(), points)
    wanted = moved @ MATRIX[:, :3].T + MATRIX[:, 3]
    found = read_transform(path, axes)
    assert [type(step) for step in found.transforms] == [DisplacementField, AffineTransform]
    # Vectors are stored as float32, which both read.
    mapped = found.apply(in_axes(points, axes))
    np.testing.assert_allclose(mapped, in_axes(wanted, axes), atol=1e-6)
    field = found.transforms[0]
    np.testing.assert_array_equal(
        field.data[1:3, :, 2:4], np.asarray(pickle.loads(pickle.dumps(field.data)))[1:3, :, 2:4]
    )
    # It is a transform as any other.
    found.write(tmp_path / "t.h5", axes)
    again = read_transform(tmp_path / "t.h5", axes)
    np.testing.assert_allclose(again.apply(in_axes(points, axes)), mapped, atol=1e-9)


def test_units_become_micrometers(tmp_path: Path) -> None:
    path = tmp_path / "scene.ome.zarr"
    field = field_of_nz(vectors(), "displacement", "nanometer")
    nz.to_ome_zarr(str(path / "field"), field, version="0.6")
    steps = [v06.Displacements(path="field"), v06.Affine(affine=MATRIX.tolist())]
    scene_of_nz(path, steps, image_of_nz("nanometer"), image_of_nz("millimeter"))
    points = inside()
    moved = points + interpolated(vectors(), points)
    wanted = moved @ MATRIX[:, :3].T + MATRIX[:, 3]
    found = read_transform(path)
    assert found.transforms[0].grid.unit == "micrometer"
    np.testing.assert_allclose(found.apply(points / 1000), wanted * 1000, rtol=1e-6)


@pytest.mark.parametrize("kind", ["displacements", "coordinates"])
def test_a_field_that_stands_alone_by_ngff_zarr(tmp_path: Path, kind: str) -> None:
    field = vectors()
    if kind == "coordinates":
        nodes = np.indices(SHAPE) * np.reshape(SCALE, (3, 1, 1, 1))
        field = field + (nodes + np.reshape(SHIFT, (3, 1, 1, 1))).astype(np.float32)
    image = nz.declare_field_transform(field_of_nz(field, kind[:-1]), transform_type=kind)
    nz.to_ome_zarr(str(tmp_path / "f.ome.zarr"), image, version="0.6")
    points = inside()
    wanted = interpolated(field, points) + (points if kind == "displacements" else 0)
    found = read_transform(tmp_path / "f.ome.zarr", ("x", "z", "y"))
    mapped = found.apply(in_axes(points, ("x", "z", "y")))
    np.testing.assert_allclose(mapped, in_axes(wanted, ("x", "z", "y")), atol=1e-6)


def test_matrices_in_arrays_by_ngff_zarr(tmp_path: Path) -> None:
    image = image_of_nz()
    turn = Rotation.from_euler("xyz", (0.3, -0.2, 0.5)).as_matrix()
    metadata = image.metadata.to_version("0.6")
    axes = metadata.coordinateSystems[0].axes
    metadata.coordinateSystems.append(v06.CoordinateSystem(name="atlas", axes=axes))
    metadata.coordinateTransformations = [
        v06.TransformSequence(
            input=End(name="intrinsic"),
            output=End(name="atlas"),
            transformations=[v06.Rotation(rotation=turn), v06.Affine(affine=MATRIX)],
        )
    ]
    image.metadata = metadata
    nz.to_ome_zarr(str(tmp_path / "i.ome.zarr"), image, version="0.6")
    text = (tmp_path / "i.ome.zarr" / "zarr.json").read_text()
    assert '"path":"coordinateTransformations/' in text.replace(" ", "")
    points = inside()
    wanted = (points @ turn.T) @ MATRIX[:, :3].T + MATRIX[:, 3]
    found = read_transform(tmp_path / "i.ome.zarr")
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-9)


def chained(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "sequence", "transformations": list(parts)}


AFFINE = {"type": "affine", "affine": MATRIX.tolist()}
LINEAR: dict[str, tuple[dict[str, Any], Any]] = {
    "identity": ({"type": "identity"}, lambda z, y, x: (z, y, x)),
    "scale": (
        {"type": "scale", "scale": [2, 3.12, 0.5]},
        lambda z, y, x: (2 * z, 3.12 * y, 0.5 * x),
    ),
    "translation": (
        {"type": "translation", "translation": [9, -1.42, 0]},
        lambda z, y, x: (z + 9, y - 1.42, x),
    ),
    "mapAxis": ({"type": "mapAxis", "mapAxis": [1, 2, 0]}, lambda z, y, x: (y, x, z)),
    "rotation": (
        {"type": "rotation", "rotation": [[1, 0, 0], [0, 0, -1], [0, 1, 0]]},
        lambda z, y, x: (z, -x, y),
    ),
    "affine": (
        {"type": "affine", "affine": [[1, 2, 0, 3], [4, 5, 0, 6], [0, 0, 1, 7]]},
        lambda z, y, x: (z + 2 * y + 3, 4 * z + 5 * y + 6, x + 7),
    ),
    # The first of the list acts first.
    "sequence": (
        chained(
            {"type": "translation", "translation": [0.1, 0.9, 0]},
            chained({"type": "scale", "scale": [2, 3, 4]}),
        ),
        lambda z, y, x: ((z + 0.1) * 2, (y + 0.9) * 3, x * 4),
    ),
    "byDimension": (
        {
            "type": "byDimension",
            "transformations": [
                {
                    "transformation": {"type": "translation", "translation": [0.5, 1.5]},
                    "inputAxes": [2, 1],
                    "outputAxes": [1, 2],
                },
                {
                    "transformation": {"type": "scale", "scale": [2]},
                    "inputAxes": [0],
                    "outputAxes": [0],
                },
            ],
        },
        lambda z, y, x: (2 * z, x + 0.5, y + 1.5),
    ),
    "bijection": (
        {
            "type": "bijection",
            "forward": {"type": "scale", "scale": [2, 2, 2]},
            "inverse": {"type": "scale", "scale": [0.5, 0.5, 0.5]},
        },
        lambda z, y, x: (2 * z, 2 * y, 2 * x),
    ),
    "inverseOf": (
        {
            "type": "inverseOf",
            "transformation": chained(
                {"type": "scale", "scale": [2, 4, 5]},
                {"type": "translation", "translation": [1, 2, 3]},
            ),
        },
        lambda z, y, x: ((z - 1) / 2, (y - 2) / 4, (x - 3) / 5),
    ),
    "projections": (
        chained(
            {"type": "projectAxis", "droppedInputs": [1]},
            {"type": "projectAxis", "createdOutputs": [0]},
            {"type": "affine", "affine": [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, -1, 4]]},
        ),
        None,
    ),
}


@pytest.mark.parametrize("kind", [k for k in LINEAR if k != "projections"])
def test_kinds_as_the_specification_spells_them(tmp_path: Path, kind: str) -> None:
    node, function = LINEAR[kind]
    path = scene(tmp_path / "s.zarr", node)
    points = inside()
    found = read_transform(path)
    assert isinstance(found, AffineTransform)
    wanted = np.stack(function(*points.T), axis=-1)
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-12)
    back = read_transform(path, name="b -> a")
    np.testing.assert_allclose(back.apply(wanted), points, atol=1e-9)


def test_small_lengths_have_an_inverse(tmp_path: Path) -> None:
    # Nanometers in meters: the determinant is 1e-27.
    path = scene(
        tmp_path / "s.zarr",
        {"type": "scale", "scale": [1e-9, 2e-9, 1e-9]},
        systems=[system("a"), system("b", unit="meter")],
    )
    wanted = inside() * (1e-3, 2e-3, 1e-3)
    np.testing.assert_allclose(read_transform(path).apply(inside()), wanted, rtol=1e-12)
    back = read_transform(path, name="b -> a")
    np.testing.assert_allclose(back.apply(wanted), inside(), rtol=1e-12)


def test_paths_of_levels_may_end_in_a_slash(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.zarr", {"type": "displacements", "path": "field"})
    field_image(path / "field", vectors(), SCALE, SHIFT, "displacement")
    group = zarr.open_group(str(path / "field"))
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["path"] = "s0/"
    group.attrs["ome"] = ome
    wanted = inside() + interpolated(vectors(), inside())
    # Vectors are stored as float32.
    np.testing.assert_allclose(read_transform(path).apply(inside()), wanted, atol=1e-6)


def test_a_projection_that_loses_an_axis_is_no_transform(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be invertible"):
        read_transform(scene(tmp_path / "s.zarr", LINEAR["projections"][0]))


def test_systems_of_different_axes(tmp_path: Path) -> None:
    turned = {"type": "mapAxis", "mapAxis": [2, 1, 0]}
    path = scene(tmp_path / "s.zarr", turned, systems=[system("a", "xyz"), system("b", "zyx")])
    points = inside()
    # The names say it all: the map is the identity.
    np.testing.assert_array_equal(read_transform(path).apply(points), points)
    path = scene(
        tmp_path / "t.zarr",
        {"type": "scale", "scale": [2, 3, 4]},
        systems=[system("a", "xyz"), system("b", "xyz", "nanometer")],
    )
    found = read_transform(path).apply(points)
    np.testing.assert_allclose(found, points * (0.004, 0.003, 0.002), rtol=1e-12)
    back = read_transform(path, name="b -> a")
    np.testing.assert_allclose(back.apply(found), points, rtol=1e-12)


def test_channels_are_left_out(tmp_path: Path) -> None:
    matrix = np.zeros((4, 5))
    matrix[0, 0] = 1
    matrix[1:, 1:] = MATRIX
    systems = [system("a", "czyx"), system("b", "czyx")]
    node = {"type": "affine", "affine": matrix.tolist()}
    points = inside()
    wanted = points @ MATRIX[:, :3].T + MATRIX[:, 3]
    found = read_transform(scene(tmp_path / "s.zarr", node, systems=systems))
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-12)
    matrix[1, 0] = 0.1
    node = {"type": "affine", "affine": matrix.tolist()}
    with pytest.raises(InputError, match="mixes or bends axes other than x, y and z"):
        read_transform(scene(tmp_path / "t.zarr", node, systems=systems))


STEPS = {
    "lattices stay": chained(
        {"type": "mapAxis", "mapAxis": [0, 2, 1]},
        {"type": "mapAxis", "mapAxis": [0, 2, 1]},
        {"type": "scale", "scale": [0.5, 0.5, 0.5]},
        {"type": "translation", "translation": [1, 2, 3]},
        {"type": "displacements", "path": "field", "interpolation": "linear"},
        AFFINE,
    ),
    "lattices shear": chained(
        {"type": "scale", "scale": [0.5, 0.75, 0.5]},
        {"type": "displacements", "path": "field"},
        {"type": "scale", "scale": [2, 1, 2]},
        {"type": "displacements", "path": "field"},
    ),
}


@pytest.mark.parametrize("which", STEPS)
@pytest.mark.parametrize("axes", [ZYX, ("x", "y", "z")], ids="".join)
def test_fields_after_matrices(tmp_path: Path, which: str, axes: tuple[str, ...]) -> None:
    path = scene(tmp_path / "s.zarr", STEPS[which])
    small = vectors() * np.float32(0.1)
    field_image(path / "field", small, SCALE, SHIFT, "displacement")
    middle = inside(1.5)
    if which == "lattices stay":
        points = (middle - (1, 2, 3)) * 2
        wanted = (middle + interpolated(small, middle)) @ MATRIX[:, :3].T + MATRIX[:, 3]
    else:
        middle = np.array([7.0, 1.0, 4.0]) + np.random.default_rng(0).uniform(-0.4, 0.4, (30, 3))
        middle *= (0.6, 1, 0.8)
        points = middle / (0.5, 0.75, 0.5)
        middle = (middle + extended(small, middle)) * (2, 1, 2)
        wanted = middle + extended(small, middle)
    found = read_transform(path, axes)
    first = DisplacementField if which == "lattices stay" else AffineTransform
    assert isinstance(found.transforms[0], first)
    mapped = found.apply(in_axes(points, axes))
    np.testing.assert_allclose(mapped, in_axes(wanted, axes), atol=1e-6)


def extended(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Beyond the lattice the nearest vector holds."""
    low, high = np.array(SHIFT), np.array(SHIFT) + (np.array(SHAPE) - 1) * SCALE
    return interpolated(field, np.clip(points, low, high))


def test_components_may_stand_last(tmp_path: Path) -> None:
    path = scene(
        tmp_path / "s.zarr",
        {"type": "displacements", "path": "d"},
        systems=[system("a", "yx"), system("b", "yx")],
    )
    axes = [*system("", "yx")["axes"], {"name": "d", "type": "displacement", "discrete": True}]
    level = {
        "path": "0",
        "coordinateTransformations": [
            {"type": "scale", "scale": [2, 2, 1], "output": {"name": "f"}, "input": {"path": "0"}}
        ],
    }
    image = {"coordinateSystems": [{"name": "f", "axes": axes}], "datasets": [level]}
    ome = {"version": "0.6", "multiscales": [image]}
    group = zarr.create_group(str(path / "d"), zarr_format=3, attributes={"ome": ome})
    # -1, 0, 1 along y for the component y, as in the specification's example in one dimension.
    data = np.zeros((3, 3, 2))
    data[..., 0] = [[-1], [0], [1]]
    group.create_array("0", data=data)
    found = read_transform(path)
    np.testing.assert_allclose(found.apply([[1.0, 3.0]]), [[0.5, 3.0]], atol=1e-12)
    turned = read_transform(path, ("x", "y"))
    np.testing.assert_allclose(turned.apply([[3.0, 1.0]]), [[3.0, 0.5]], atol=1e-12)


def test_bijections_of_fields_know_the_way_back(tmp_path: Path) -> None:
    forward = chained({"type": "displacements", "path": "there"}, AFFINE)
    matrix = np.linalg.inv(np.vstack([MATRIX, [0, 0, 0, 1]]))
    inverse = chained(
        {"type": "affine", "affine": matrix[:3].tolist()}, {"type": "displacements", "path": "back"}
    )
    node = {"type": "bijection", "name": "both", "forward": forward, "inverse": inverse}
    path = scene(tmp_path / "s.zarr", node)
    field_image(path / "there", vectors(0), SCALE, SHIFT, "displacement")
    field_image(path / "back", vectors(1), SCALE, SHIFT, "displacement")
    points = inside()
    there = (points + interpolated(vectors(0), points)) @ MATRIX[:, :3].T + MATRIX[:, 3]
    for name in (None, "both", "a -> b"):
        np.testing.assert_allclose(read_transform(path, name=name).apply(points), there, atol=1e-6)
    moving = points @ MATRIX[:, :3].T + MATRIX[:, 3]
    found = read_transform(path, name="b -> a").apply(moving)
    np.testing.assert_allclose(found, points + interpolated(vectors(1), points), atol=1e-6)


def test_one_of_several(tmp_path: Path) -> None:
    path = scene(
        tmp_path / "s.zarr",
        {"type": "scale", "scale": [2, 2, 2], "name": "twice"},
        {"type": "scale", "scale": [3, 3, 3], "output": {"name": "c"}},
        systems=[system("a"), system("b"), system("c")],
    )
    with pytest.raises(InputError, match=r"name one of: a -> b \('twice'\); a -> c$"):
        read_transform(path)
    with pytest.raises(InputError, match=r"no transformation 'x'; there are: a -> b"):
        read_transform(path, name="x")
    point = np.array([[1.0, 2, 3]])
    np.testing.assert_allclose(read_transform(path, name="twice").apply(point), 2 * point)
    np.testing.assert_allclose(read_transform(path, name="a -> c").apply(point), 3 * point)
    np.testing.assert_allclose(read_transform(path, name="c -> a").apply(point), point / 3)
    write_transform(tmp_path / "t.tfm", AffineTransform(np.eye(4)), ("z", "y", "x"))
    with pytest.raises(InputError, match="is a file"):
        read_transform(tmp_path / "t.tfm", name="a -> b")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": "warp"}, "'warp' is not read; known are identity, scale"),
        ({"name": "none"}, "not understood"),
        ({"type": "scale"}, "not understood"),
        ({"type": "scale", "scale": [1, 2]}, "a scale of 2 coordinates follows on 3"),
        ({"type": "scale", "scale": [[1, 2, 3]]}, "a list of numbers"),
        ({"type": "affine", "affine": [1, 2]}, "a list of rows"),
        ({"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0]]}, "gives 2 coordinates"),
        ({"type": "rotation", "rotation": [[1, 0]]}, "as many rows as columns"),
        ({"type": "mapAxis", "mapAxis": {"x": "y"}}, "mapAxis is a list of axes"),
        ({"type": "scale", "scale": [0, 1, 1]}, "must be invertible"),
        ({"type": "displacements", "path": "none"}, "there is no vector field"),
        ({"type": "displacements", "path": "../x"}, "leads out of it"),
        ({"type": "coordinates", "path": "field"}, "no axis of type 'coordinate'"),
        ({"type": "displacements", "path": "field", "interpolation": "cubic"}, "only 'linear'"),
        (
            {
                "type": "inverseOf",
                "transformation": {"type": "displacements", "path": "field"},
            },
            "the inverse of a field",
        ),
        (
            {
                "type": "inverseOf",
                "transformation": {"type": "scale", "scale": [0, 1, 1]},
            },
            "inverse of a scale is wanted, and it has none",
        ),
        ({"type": "identity", "output": {"name": "z"}}, "'z' are not known: systems there: a, b"),
        ({"type": "identity", "input": {"path": "fixed", "name": "i"}}, "'fixed/i' are not known"),
        (
            {
                "type": "byDimension",
                "transformations": [
                    {
                        "transformation": {"type": "displacements", "path": "field"},
                        "inputAxes": [0, 1, 2],
                        "outputAxes": [0, 1, 2],
                    }
                ],
            },
            "a byDimension with a vector field",
        ),
        (
            {
                "type": "byDimension",
                "transformations": [
                    {
                        "transformation": {"type": "identity"},
                        "inputAxes": [0],
                        "outputAxes": [1],
                    }
                ],
            },
            "must give each axis once",
        ),
    ],
)
def test_refuses(tmp_path: Path, node: dict[str, Any], message: str) -> None:
    path = scene(tmp_path / "s.zarr", node)
    field_image(path / "field", vectors(), SCALE, SHIFT, "displacement")
    with pytest.raises(InputError, match=message):
        read_transform(path)


def test_refuses_systems(tmp_path: Path) -> None:
    still = {"type": "identity"}
    for number, (systems, message) in enumerate(
        (
            ([system("a", "yx"), system("b", "yx")], "2-D transform; it cannot have the axes"),
            ([system("a", "zyx"), system("b", "ijk")], "only x, y, or x, y, z"),
            ([system("a"), system("b", "zyx", "pixel")], "'pixel' of a spatial axis"),
        )
    ):
        path = scene(tmp_path / f"{number}.zarr", still, systems=systems)
        with pytest.raises(InputError, match=message):
            read_transform(path, ZYX)
    path = scene(
        tmp_path / "f.zarr",
        {"type": "displacements", "path": "field"},
        systems=[system("a", "xyz"), system("b", "xyz")],
    )
    field_image(path / "field", vectors(), SCALE, SHIFT, "displacement")
    with pytest.raises(InputError, match="they must be the same"):
        read_transform(path)


def test_refuses_fields_that_do_not_fit(tmp_path: Path) -> None:
    node = {"type": "displacements", "path": "field"}
    path = scene(tmp_path / "s.zarr", node)
    field_image(path / "field", vectors()[:2], SCALE, SHIFT, "displacement")
    with pytest.raises(InputError, match="has 3 components"):
        read_transform(path)
    path = scene(tmp_path / "t.zarr", node)
    zarr.create_array(str(path / "field"), data=vectors())
    with pytest.raises(InputError, match="no OME-Zarr metadata say where"):
        read_transform(path)
    path = scene(tmp_path / "u.zarr", node)
    field_image(path / "field", vectors()[:2, 0], SCALE[1:], SHIFT[1:], "displacement")
    with pytest.raises(InputError, match="they must be the same"):
        read_transform(path)


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.zarr", {"type": "displacements", "path": "field"})
    field_image(path / "field", vectors(), SCALE, SHIFT, "displacement")
    rmtree(path / "field" / "s0")
    with pytest.raises(InputError, match=r"s.zarr: .* the array .*s0, which is not there"):
        read_transform(path)
    path = scene(tmp_path / "t.zarr", {"type": "affine", "path": "matrix"})
    with pytest.raises(InputError, match=r"the array .*matrix, which is not there"):
        read_transform(path)


def test_no_scene(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no transform"):
        read_transform(tmp_path / "none.zarr")
    zarr.create_group(str(tmp_path / "empty.zarr"), zarr_format=3)
    with pytest.raises(InputError, match="lists no coordinate transformations"):
        read_transform(tmp_path / "empty.zarr")
    path = tmp_path / "odd.zarr"
    zarr.create_group(str(path), zarr_format=3, attributes={"ome": {"scene": 3}})
    with pytest.raises(InputError, match="not understood"):
        read_transform(path)


def test_a_chain_is_a_composite(tmp_path: Path) -> None:
    path = scene(tmp_path / "s.zarr", {"type": "displacements", "path": "field"})
    field_image(path / "field", vectors(), SCALE, SHIFT, "displacement")
    found = read_transform(path)
    assert isinstance(found, CompositeTransform)
    np.testing.assert_array_equal(found.transforms[1].matrix, np.eye(4))

"""Every kind of ITK's transforms: read as itk maps points, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import itk
import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField
from itkstream.io.transforms.files import read_transform
from itkstream.io.transforms.itk.linear_kinds import LINEAR_KINDS

HEAD = "#Insight Transform File V1.0\n"
KINDS = [(name, n) for name, dims in LINEAR_KINDS.items() for n in dims]


def entry(kind: str, parameters: Any, fixed: Any) -> str:
    numbers = [" ".join(map(repr, np.ravel(v).tolist())) for v in (parameters, fixed)]
    lines = (f"Transform: {kind}", f"Parameters: {numbers[0]}", f"FixedParameters: {numbers[1]}")
    return "#Transform 0\n" + "\n".join(lines) + "\n"


def itk_made(name: str, n: int) -> Any:
    family = getattr(itk, name)
    for key in (itk.D, (itk.D, n), (itk.D, n, n)):
        try:
            return family[key].New()
        except itk.TemplateTypeError:
            continue
    raise AssertionError(name)


def numbers(values: np.ndarray) -> Any:
    kept = itk.OptimizerParameters[itk.D](values.size)
    for k, value in enumerate(values.tolist()):
        kept.SetElement(k, value)
    return kept


def sample(name: str, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """A transform of itk with random parameters, and its numbers."""
    rng = np.random.default_rng(sum(map(ord, name)) + n)
    made = itk_made(name, n)
    parameters = rng.uniform(0.2, 0.6, made.GetNumberOfParameters())
    fixed = rng.uniform(-9, 9, made.GetFixedParameters().GetSize())
    if name in ("Euler3DTransform", "CenteredEuler3DTransform"):
        fixed[-1] = 1.0
    if name == "Rigid3DTransform":
        parameters[:9] = sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.3).GetMatrix()
    made.SetFixedParameters(numbers(fixed))
    made.SetParameters(numbers(parameters))
    return made, parameters, fixed


def by_itk(transform: Any, points: np.ndarray) -> np.ndarray:
    return np.array([list(transform.TransformPoint(p.tolist())) for p in points])


@pytest.mark.parametrize("precision", ["double", "float"])
@pytest.mark.parametrize(("name", "n"), KINDS)
def test_matrices_of_every_kind(tmp_path: Path, name: str, n: int, precision: str) -> None:
    made, parameters, fixed = sample(name, n)
    path = tmp_path / "t.tfm"
    path.write_text(HEAD + entry(f"{name}_{precision}_{n}_{n}", parameters, fixed))
    points = np.random.default_rng(0).uniform(-50, 50, (20, n))
    found = read_transform(path, ("x", "y", "z")[:n])
    assert isinstance(found, AffineTransform)
    assert found.axes == ("x", "y", "z")[:n]
    np.testing.assert_allclose(found.apply(points), by_itk(made, points), atol=1e-9)
    turned = read_transform(path)
    assert turned.axes == ("z", "y", "x")[-n:]
    np.testing.assert_allclose(turned.apply(points[:, ::-1]), found.apply(points)[:, ::-1])


@pytest.mark.parametrize(("name", "n"), KINDS)
def test_other_numbers_of_parameters(tmp_path: Path, name: str, n: int) -> None:
    _, parameters, fixed = sample(name, n)
    path = tmp_path / "t.tfm"
    for p, f in ((parameters[:-1], fixed), ([*parameters, 1.0], fixed), (parameters, [*fixed, 1])):
        if np.array_equal(p, parameters) and np.array_equal(f, fixed):
            continue
        path.write_text(HEAD + entry(f"{name}_double_{n}_{n}", p, f))
        with pytest.raises(InputError, match="is the file whole"):
            read_transform(path)
    for bad in (np.nan, np.inf):
        for values in (np.append(parameters[1:], bad), parameters):
            path.write_text(HEAD + entry(f"{name}_double_{n}_{n}", values, [*fixed[1:], bad]))
            with pytest.raises(InputError):
                read_transform(path)


@pytest.mark.parametrize(
    "name",
    [
        "Rigid3DPerspectiveTransform",
        "AzimuthElevationToCartesianTransform",
        "ElasticBodySplineKernelTransform",
        "GaussianExponentialDiffeomorphicTransform",
        "TimeVaryingVelocityFieldTransform",
        "BSplineDeformableTransform",
        "NobodysTransform",
    ],
)
def test_kinds_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.tfm").write_text(HEAD + entry(f"{name}_double_3_3", np.zeros(6), np.zeros(3)))
    with pytest.raises(InputError, match=f"ITK's {name}, which is not read"):
        read_transform(tmp_path / "t.tfm")


SHIFTS = [
    entry("TranslationTransform_double_3_3", shift, ()) for shift in ((10.0, 0, 0), (0, 20.0, 0))
]
TURN = entry("Euler3DTransform_double_3_3", (0, 0, 0.5, 1, 2, 3), (4, 5, 6))
COMPOSITE = "#Transform 0\nTransform: CompositeTransform_double_3_3\n"


def as_hdf5(path: Path, text: str) -> None:
    """The entries of a text file as ITK's HDF5 has them."""
    fields = [line.partition(": ")[::2] for line in text.splitlines() if not line.startswith("#")]
    with h5py.File(path, "w") as file:
        root, group = file.create_group("TransformGroup"), None
        for key, value in fields:
            if key == "Transform":
                group = root.create_group(str(len(root)))
                kind = np.array([value], dtype=object)
                group.create_dataset("TransformType", data=kind, dtype=h5py.string_dtype("ascii"))
            else:
                group[f"Transform{key}"] = np.array(value.split(), float)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (SHIFTS, "lists 2 transforms .TranslationTransform, TranslationTransform. and not"),
        ([*SHIFTS, TURN], "lists 3 transforms"),
        ([COMPOSITE], "has no parts"),
        ([COMPOSITE, SHIFTS[0], COMPOSITE, TURN], "a composite within a composite"),
        ([SHIFTS[0], COMPOSITE, TURN], "lists 3 transforms"),
        ([COMPOSITE, TURN, SHIFTS[0].replace("3_3", "2_2")], "mixes dimensions"),
        ([TURN.replace("3_3", "3_2")], "2-D or 3-D points"),
        ([TURN.replace("3_3", "2_2")], "no 2-D Euler3D"),
        ([], r"no transform that ITK can read|names no kind"),
    ],
)
def test_lists_that_say_no_order(
    tmp_path: Path, entries: list[str], message: str, suffix: str
) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".h5":
        as_hdf5(path, "".join(entries))
    else:
        path.write_text(HEAD + "".join(entries))
    with pytest.raises(InputError, match=message):
        read_transform(path)


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_composites_act_in_itks_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    text = COMPOSITE + TURN + "".join(SHIFTS)
    if suffix == ".h5":
        as_hdf5(path, text)
    else:
        path.write_text(HEAD + text)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    wanted = by_itk(sitk.ReadTransform(str(path)), points)
    found = read_transform(path, ("x", "y", "z"))
    assert isinstance(found, CompositeTransform)
    assert len(found.transforms) == 3
    np.testing.assert_allclose(found.apply(points), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("flirt.mat", "1 0 0 5  \n0 1 0 0  \n0 0 1 0  \n0 0 0 1  \n", "FSL's flirt"),
        ("matrix.txt", "1 0 0 5\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "FSL's flirt"),
        ("reg.lta", "type      = 1\nnxforms   = 1\nmean      = 0 0 0\n", "FreeSurfer"),
        ("mni.xfm", "MNI Transform File\n%made\nTransform_Type = Linear;\n", "MNI's tools"),
        ("spm.mat", "MATLAB 5.0 MAT-file, Platform: GLNXA64" + " " * 99, "MATLAB 5"),
        ("t.tfm", HEAD + TURN.replace("0.5", "0,5"), "hold no number"),
        ("t.tfm", HEAD + TURN.replace("Fixed", "Foo: 1\nFixed"), "'Foo: 1' is not understood"),
        ("t.tfm", HEAD + TURN.replace("Fixed", "7 8 9\nFixed"), "'7 8 9' is not understood"),
        ("t.tfm", HEAD + TURN + "Parameters: 1 2 3 4 5 6\n", "is not understood"),
        ("t.tfm", HEAD + TURN.replace("Euler3DTransform_double_3_3", "Euler"), "names no kind"),
        ("t.tfm", HEAD + "ComponentTransformFile: a.txt\n", "no transform that ITK can read"),
        ("t.xyz", HEAD + TURN, "no transform that ITK can read"),
        (
            "t.tfm",
            HEAD + entry("AffineTransform_double_3_3", np.zeros(12), np.zeros(3)),
            "must be invertible",
        ),
        (
            "t.tfm",
            HEAD + entry("Rigid3DTransform_double_3_3", np.arange(12.0), np.zeros(3)),
            "ITK does not take the numbers",
        ),
    ],
)
def test_refuses_by_what_it_is(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        read_transform(tmp_path / name)


def test_comments_and_line_ends(tmp_path: Path) -> None:
    plain = tmp_path / "a.tfm"
    plain.write_text(HEAD + TURN)
    other = tmp_path / "b.txt"
    text = "#Insight Transform File V2.0\n\n# made by hand: no tool\n" + TURN
    other.write_bytes(text.replace("\n", "\r\n").encode())
    np.testing.assert_array_equal(read_transform(plain).matrix, read_transform(other).matrix)


def test_what_itk_writes_as_mni(tmp_path: Path) -> None:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((1.1, 0.1, 0.2, 0.3, 0.9, 0.05, 0.0, 0.1, 1.2))
    affine.SetTranslation((3, 4, 5))
    affine.SetCenter((7, 8, 9))
    path = tmp_path / "t.xfm"
    sitk.WriteTransform(affine, str(path))
    point = np.array([[1.0, 2.0, 3.0]])
    found = read_transform(path, ("x", "y", "z")).apply(point)
    np.testing.assert_allclose(found, by_itk(sitk.ReadTransform(str(path)), point), atol=1e-12)
    block = path.read_text().partition("Transform_Type")[2]
    path.write_text(path.read_text() + f"Transform_Type{block}")
    with pytest.raises(InputError, match="lists 2 transforms"):
        read_transform(path)
    path.write_text(path.read_text().replace("Linear;", "Grid_Transform;"))
    with pytest.raises(InputError, match="only linear ones"):
        read_transform(path)


def test_names_that_itk_4_misspelt(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    as_hdf5(path, TURN)
    wanted = read_transform(path).matrix
    with h5py.File(path, "r+") as file:
        group = file["TransformGroup/0"]
        for name in ("TransformParameters", "TransformFixedParameters"):
            group.move(name, name.replace("Transform", "Tranform"))
    np.testing.assert_array_equal(read_transform(path).matrix, wanted)


@pytest.mark.parametrize("kind", ["Gaussian", "BSpline"])
def test_fields_that_an_optimiser_smooths(tmp_path: Path, kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5, 3))
    fixed = [5, 4, 3, 1, 2, 3, 2, 2, 2, *np.eye(3).ravel()]
    name = f"{kind}SmoothingOnUpdateDisplacementFieldTransform_float_3_3"
    (tmp_path / "t.tfm").write_text(HEAD + entry(name, vectors, fixed))
    found = read_transform(tmp_path / "t.tfm", ("x", "y", "z"))
    assert isinstance(found, DisplacementField)
    np.testing.assert_array_equal(np.asarray(found.data), vectors.transpose(2, 1, 0, 3))
    assert found.grid.origin == (1.0, 2.0, 3.0)

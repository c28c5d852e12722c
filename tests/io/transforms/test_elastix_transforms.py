"""elastix' files against the ITK transforms whose parameters they hold.

That elastix itself means the same is checked, with files it wrote, by tests/clients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import BSplineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.io.transforms.files import read_transform, write_transform

CENTRE = (10.0, -20.0, 5.0)
SPLINE = (0.4, 0.3, 0.2)


def similarity() -> sitk.Transform:
    return sitk.Similarity3DTransform(1.1, (0.0, 0.6, 0.8), 0.3, (1.0, 2.0, 3.0), CENTRE)


def affine() -> sitk.Transform:
    itk = sitk.AffineTransform(3)
    itk.SetMatrix((np.eye(3) + 0.1 * np.arange(9).reshape(3, 3)).ravel().tolist())
    itk.SetTranslation((4.0, -5.0, 6.0))
    itk.SetCenter(CENTRE)
    return itk


LINEAR = [
    ("EulerTransform", sitk.Euler3DTransform(CENTRE, 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))),
    ("EulerTransform", sitk.Euler2DTransform(CENTRE[:2], 0.3, (4.0, 5.0))),
    ("SimilarityTransform", similarity()),
    ("SimilarityTransform", sitk.Similarity2DTransform(1.2, 0.3, (4.0, 5.0), CENTRE[:2])),
    ("AffineTransform", affine()),
    ("TranslationTransform", sitk.TranslationTransform(3, (4.0, 5.0, 6.0))),
]


def text(values: object) -> str:
    return " ".join(repr(float(v)) for v in np.ravel(values))


def lines(kind: str, n: int, parameters: object, **others: str) -> str:
    entries = {
        "Transform": f'"{kind}"',
        "NumberOfParameters": str(np.size(parameters)),
        "TransformParameters": text(parameters),
        "InitialTransformParameterFileName": '"NoInitialTransform"',
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": str(n),
        "MovingImageDimension": str(n),
        **others,
    }
    return "// Image specific\n" + "".join(f"({key} {value})\n" for key, value in entries.items())


def spline_of_itk() -> tuple[sitk.BSplineTransform, dict[str, str]]:
    turn = np.array(sitk.Euler3DTransform((0, 0, 0), *SPLINE).GetMatrix()).reshape(3, 3)
    itk = sitk.BSplineTransform(3, 3)
    itk.SetTransformDomainMeshSize((4, 5, 6))
    itk.SetTransformDomainOrigin((3.0, -4.0, 5.0))
    itk.SetTransformDomainDirection(turn.ravel().tolist())
    itk.SetTransformDomainPhysicalDimensions((40.0, 60.0, 50.0))
    count = itk.GetNumberOfParameters()
    itk.SetParameters(np.random.default_rng(0).normal(0, 2, count).tolist())
    size, origin, spacing, direction = np.split(np.array(itk.GetFixedParameters()), [3, 6, 9])
    return itk, {
        "GridSize": " ".join(str(int(v)) for v in size),
        "GridIndex": "0 0 0",
        "GridSpacing": text(spacing),
        "GridOrigin": text(origin),
        "GridDirection": text(direction.reshape(3, 3).T),
        "BSplineTransformSplineOrder": "3",
        "UseCyclicTransform": '"false"',
    }


def by_itk(itk: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([itk.TransformPoint(p.tolist()) for p in points])


@pytest.mark.parametrize(("kind", "itk"), LINEAR, ids=lambda v: getattr(v, "GetName", str)())
def test_matrices(tmp_path: Path, kind: str, itk: sitk.Transform) -> None:
    n = itk.GetDimension()
    path = tmp_path / "TransformParameters.0.txt"
    path.write_text(lines(kind, n, itk.GetParameters(), CenterOfRotationPoint=text(CENTRE[:n])))
    points = np.random.default_rng(0).uniform(-50, 50, (20, n))
    for axes in (("x", "y", "z")[:n], ("z", "y", "x")[-n:]):
        order = np.argsort(axes)
        found = read_transform(path, axes).apply(points[:, np.argsort(order)])
        np.testing.assert_allclose(found[:, order], by_itk(itk, points), atol=1e-10)


@pytest.mark.parametrize("axes", [("x", "y", "z"), ("z", "y", "x"), ("y", "z", "x")])
def test_b_splines_after_a_matrix(tmp_path: Path, axes: tuple[str, ...]) -> None:
    itk, grid = spline_of_itk()
    first = similarity()
    (tmp_path / "TransformParameters.0.txt").write_text(
        lines("SimilarityTransform", 3, first.GetParameters(), CenterOfRotationPoint=text(CENTRE))
    )
    path = tmp_path / "TransformParameters.1.txt"
    # elastix writes the path it was given, which may be of another machine.
    before = '"/elsewhere/run 1/TransformParameters.0.txt"'
    path.write_text(
        lines(
            "BSplineTransform",
            3,
            itk.GetParameters(),
            **grid,
            InitialTransformParameterFileName=before,
        )
    )
    transform = read_transform(path, axes)
    assert isinstance(transform, CompositeTransform)
    assert isinstance(transform.transforms[1], BSplineTransform)
    points = np.random.default_rng(0).uniform(0, 40, (200, 3))
    wanted = by_itk(itk, by_itk(first, points))
    assert not np.allclose(wanted, by_itk(first, points))
    place = [axes.index(a) for a in "xyz"]
    found = transform.apply(points[:, np.argsort(place)])
    np.testing.assert_allclose(found[:, place], wanted, atol=1e-9)


def test_a_lattice_that_begins_elsewhere(tmp_path: Path) -> None:
    itk, grid = spline_of_itk()
    direction = np.array(grid["GridDirection"].split(), float).reshape(3, 3).T
    spacing = np.array(grid["GridSpacing"].split(), float)
    origin = np.array(grid["GridOrigin"].split(), float) - direction @ (spacing * (2, -1, 3))
    grid |= {"GridIndex": "2 -1 3", "GridOrigin": text(origin)}
    path = tmp_path / "t.txt"
    path.write_text(lines("RecursiveBSplineTransform", 3, itk.GetParameters(), **grid))
    points = np.random.default_rng(0).uniform(0, 40, (50, 3))
    found = read_transform(path, ("x", "y", "z")).apply(points)
    np.testing.assert_allclose(found, by_itk(itk, points), atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Transform": '"SplineKernelTransform"'}, "holds elastix' SplineKernelTransform"),
        ({"TransformParameters": "1 2"}, "has 2 numbers; expected 3"),
        ({"TransformParameters": "1 2 x"}, "holds no number"),
        ({"FixedImageDimension": "4"}, "no 2-D or 3-D"),
        ({"MovingImageDimension": "2"}, "no 2-D or 3-D"),
        (
            {"InitialTransformParameterFileName": '"t.txt"', "HowToCombineTransforms": '"Add"'},
            "adds to its initial",
        ),
        ({"InitialTransformParameterFileName": '"t.txt"'}, "starts from itself"),
    ],
)
def test_refuses(tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(lines("TranslationTransform", 3, (1, 2, 3), **change))
    with pytest.raises(InputError, match=message):
        read_transform(path)


def test_missing_parts(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    itk, grid = spline_of_itk()
    whole = lines("BSplineTransform", 3, itk.GetParameters(), **grid)
    path.write_text(whole[: whole.index("(GridIndex")])
    with pytest.raises(InputError, match=r"has no \(GridIndex"):
        read_transform(path)
    path.write_text(whole.replace('UseCyclicTransform "false"', 'UseCyclicTransform "true"'))
    with pytest.raises(InputError, match="cyclic"):
        read_transform(path)
    named = lines(
        "TranslationTransform", 3, (1, 2, 3), InitialTransformParametersFileName='"gone.txt"'
    )
    path.write_text(named.replace("(InitialTransformParameterFileName", "(Other"))
    with pytest.raises(MissingDataError, match=r"starts from gone\.txt"):
        read_transform(path)


EULER = {"CenterOfRotationPoint": text(CENTRE)}
NUMBERS = (0.1, 0.2, 0.3, 4.0, 5.0, 6.0)


def euler(path: Path, **others: str) -> Path:
    path.write_text(lines("EulerTransform", 3, NUMBERS, **{**EULER, **others}))
    return path


@pytest.mark.parametrize("zyx", [False, True])
def test_the_order_of_angles(tmp_path: Path, zyx: bool) -> None:
    itk = sitk.Euler3DTransform(CENTRE, *NUMBERS[:3], NUMBERS[3:])
    itk.SetComputeZYX(zyx)
    path = euler(tmp_path / "t.txt", ComputeZYX=f'"{str(zyx).lower()}"')
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    found = read_transform(path, ("x", "y", "z")).apply(points)
    np.testing.assert_allclose(found, by_itk(itk, points), atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"UseDirectionCosines": '"false"'}, "UseDirectionCosines"),
        ({"ComputeZYX": '"yes"'}, r"\(ComputeZYX ...\) is \"true\" or \"false\"; got 'yes'"),
        ({"NumberOfParameters": "7"}, "NumberOfParameters 7.; expected 6"),
        ({"TransformParameters": "0 0 nan 1 2 3"}, "NaN"),
        ({"CenterOfRotationPoint": "1 2"}, "CenterOfRotationPoint .... has 2 numbers"),
        ({"InitialTransformParametersFileName": '"other.txt"'}, "starts from two transforms"),
        ({"Transform": '"WeightedCombinationTransform"'}, "WeightedCombinationTransform"),
        ({"Transform": '"EulerStackTransform"'}, "EulerStackTransform"),
        ({"Transform": '"AffineLogTransform"'}, "AffineLogTransform"),
        ({"Transform": '"MultiBSplineTransformWithNormal"'}, "MultiBSplineTransformWithNormal"),
        ({"Spacing": '"1 1'}, "Spacing .... is not understood"),
    ],
)
def test_entries_that_change_the_meaning(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    path = euler(tmp_path / "t.txt", **change)
    with pytest.raises(InputError, match=message):
        read_transform(path)


def test_lines_that_are_not_understood(tmp_path: Path) -> None:
    path = euler(tmp_path / "t.txt")
    whole = path.read_text()
    for more, message in (
        ('(ComputeZYX "true"', "not understood: is the file whole"),
        ('(Transform "AffineTransform")\n', "twice"),
    ):
        path.write_text(whole + more)
        with pytest.raises(InputError, match=message):
            read_transform(path)
    path.write_text(whole.replace("CenterOfRotationPoint", "CenterOfRotation"))
    with pytest.raises(InputError, match=r"\(CenterOfRotation ...\) in voxels"):
        read_transform(path)


def test_how_transforms_are_combined_must_be_said(tmp_path: Path) -> None:
    euler(tmp_path / "0.txt")
    path = euler(tmp_path / "1.txt", InitialTransformParameterFileName='"0.txt"')
    assert isinstance(read_transform(path), CompositeTransform)
    path.write_text(path.read_text().replace("(HowToCombineTransforms", "(Other"))
    with pytest.raises(InputError, match="HowToCombineTransforms"):
        read_transform(path)


def test_parameters_in_a_file_of_their_own(tmp_path: Path) -> None:
    wanted = read_transform(euler(tmp_path / "t.txt")).matrix
    np.array(NUMBERS, "<f8").tofile(tmp_path / "t.txt.dat")
    path = euler(
        tmp_path / "t.txt",
        UseBinaryFormatForTransformationParameters='"true"',
        TransformParameters='"/elsewhere/t.txt.dat"',
    )
    np.testing.assert_array_equal(read_transform(path).matrix, wanted)
    np.array(NUMBERS[1:], "<f8").tofile(tmp_path / "t.txt.dat")
    with pytest.raises(InputError, match="has 40 bytes; expected 6 doubles"):
        read_transform(path)
    (tmp_path / "t.txt.dat").unlink()
    with pytest.raises(MissingDataError, match=r"t\.txt\.dat, which is neither"):
        read_transform(path)


def test_toml(tmp_path: Path) -> None:
    wanted = read_transform(euler(tmp_path / "t.txt")).matrix
    path = tmp_path / "t.toml"
    path.write_text(
        'Transform = "EulerTransform"\nNumberOfParameters = 6\nFixedImageDimension = 3\n'
        f"MovingImageDimension = 3\nTransformParameters = {list(NUMBERS)}\nComputeZYX = false\n"
        f"CenterOfRotationPoint = {list(CENTRE)}\nUseDirectionCosines = true\n"
    )
    np.testing.assert_array_equal(read_transform(path).matrix, wanted)
    path.write_text(path.read_text() + "[")
    with pytest.raises(InputError, match="no TOML"):
        read_transform(path)


def test_files_of_itk_and_fields(tmp_path: Path) -> None:
    itk = similarity()
    sitk.WriteTransform(itk, str(tmp_path / "itk.tfm"))
    path = tmp_path / "t.txt"
    path.write_text(lines("File", 3, (), TransformFileName='"itk.tfm"'))
    points = np.random.default_rng(0).uniform(0, 9, (20, 3))
    found = read_transform(path, ("x", "y", "z")).apply(points)
    np.testing.assert_allclose(found, by_itk(itk, points), atol=1e-10)
    vectors = np.random.default_rng(0).normal(size=(8, 9, 10, 3)).astype(np.float32)
    field = DisplacementField(vectors, Grid((8, 9, 10), (2.0, 2.0, 2.0), axes=("x", "y", "z")))
    write_transform(tmp_path / "field.mha", field)
    named = {"DeformationFieldFileName": '"field.mha"'}
    for order, readable in (("1", True), ("0", False), (None, False)):
        entries = {**named, **({"DeformationFieldInterpolationOrder": order} if order else {})}
        path.write_text(lines("DeformationFieldTransform", 3, (), **entries))
        if readable:
            found = read_transform(path, ("x", "y", "z")).apply(points)
            np.testing.assert_allclose(found, field.apply(points), atol=1e-6)
        else:
            with pytest.raises(InputError, match="DeformationFieldInterpolationOrder 0"):
                read_transform(path)

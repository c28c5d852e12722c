"""elastix' files against the ITK transforms whose parameters they hold.

That elastix itself means the same is checked, with files it wrote, by tests/clients.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import BSplineTransform, CompositeTransform
from itkstream.io.transform_files import read_transform

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

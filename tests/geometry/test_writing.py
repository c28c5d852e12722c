"""Every transform writes itself, in a process that has imported nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    LandmarkSpline,
    PiecewiseAffine,
    Transform,
)
from itkstream.io.transforms.files import read_transform

GRID = Grid((8, 8, 8), (1.0, 2.0, 1.5), axes=("z", "y", "x"))
AFFINE = AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0]), ("z", "y", "x"))
FIELD = DisplacementField(np.full((8, 8, 8, 3), 0.5), GRID)
CORNERS = np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [5, 5, 5]])


@pytest.mark.parametrize(
    "lines",
    [
        "import itkstream; kind = itkstream.AffineTransform",
        "from itkstream.geometry import AffineTransform as kind",
        "from itkstream.geometry.transforms import AffineTransform as kind",
    ],
)
def test_in_a_new_process(tmp_path: Path, lines: str) -> None:
    code = f"{lines}\nimport sys\nassert 'SimpleITK' not in sys.modules\n"
    code += "kind([[2, 0, 3], [0, 1, 4], [0, 0, 1]]).write('t.tfm', ('y', 'x'))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    # Axes y, x here; x, y there.
    assert found.TransformPoint((1.0, 1.0)) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("t.tfm", AFFINE),
        ("t.h5", FIELD),
        ("t.nrrd", CompositeTransform((FIELD, AFFINE))),
        ("t.ome.zarr", CompositeTransform((FIELD, AFFINE))),
        ("t.txt", BSplineTransform(np.ones((8, 8, 8, 3)), GRID)),
    ],
)
def test_every_kind(tmp_path: Path, name: str, transform: Transform) -> None:
    assert isinstance(transform, Transform)
    assert transform.write(tmp_path / name) < 1e-6
    points = np.full((1, 3), 3.25)
    found = read_transform(tmp_path / name).apply(points)
    np.testing.assert_allclose(found, transform.apply(points), atol=1e-6)
    with pytest.raises(ExistingOutputError):
        transform.write(tmp_path / name)
    transform.write(tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    "transform",
    [
        PiecewiseAffine(np.eye(4)[None, None, None], BlockGrid((8,) * 3, (8,) * 3), GRID),
        LandmarkSpline(CORNERS, CORNERS + 1),
    ],
)
def test_what_no_file_holds(tmp_path: Path, transform: Transform) -> None:
    with pytest.raises(InputError, match="sample_transform"):
        transform.write(tmp_path / "t.h5")


def test_the_order_of_axes(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    AffineTransform(matrix).write(tmp_path / "t.tfm", ("x", "y", "z"))
    found = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    assert found.TransformPoint((0.0, 0.0, 0.0)) == (1.0, 2.0, 3.0)

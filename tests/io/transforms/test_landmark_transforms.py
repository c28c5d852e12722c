"""Landmark splines that ITK wrote; ITK says where points go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import itk
import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, CompositeTransform, Grid, LandmarkSpline
from itkstream.io.transforms.files import read_transform, write_transform
from itkstream.numerics.sampling.mapping import map_on

KINDS = {
    "ThinPlateSplineKernelTransform": "r",
    "ThinPlateR2LogRSplineKernelTransform": "r2logr",
    "VolumeSplineKernelTransform": "r3",
}


def landmarks(n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 50, (10, n)) + (20, -30, 10)[:n]
    return fixed, fixed + rng.normal(0, 2, (10, n))


def numbers(values: np.ndarray) -> Any:
    kept = itk.OptimizerParameters[itk.D](values.size)
    for k, value in enumerate(values.ravel()):
        kept.SetElement(k, float(value))
    return kept


def of_itk(kind: str, n: int = 3) -> Any:
    fixed, moving = landmarks(n)
    transform = getattr(itk, kind)[itk.D, n].New()
    transform.SetParameters(numbers(fixed))
    transform.SetFixedParameters(numbers(moving))
    transform.ComputeWMatrix()
    return transform


def by_itk(transform: Any, points: np.ndarray) -> np.ndarray:
    return np.array([list(transform.TransformPoint(p.tolist())) for p in points])


def points(n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).uniform(-10, 60, (100, n))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_itk_wrote_is_read_alike(tmp_path: Path, kind: str, suffix: str, n: int) -> None:
    transform = of_itk(kind, n)
    itk.transformwrite([transform], str(tmp_path / f"t{suffix}"))
    wanted = by_itk(transform, points(n))
    found = read_transform(tmp_path / f"t{suffix}", ("x", "y", "z")[:n])
    assert isinstance(found, LandmarkSpline)
    assert found.kernel == KINDS[kind]
    # ITK solves the same equations in coordinates as they come.
    np.testing.assert_allclose(found.apply(points(n)), wanted, atol=1e-6)
    default = read_transform(tmp_path / f"t{suffix}")
    np.testing.assert_allclose(default.apply(points(n)[:, ::-1]), wanted[:, ::-1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_with_affines(tmp_path: Path, suffix: str) -> None:
    affine = itk.AffineTransform[itk.D, 3].New()
    turn = itk.matrix_from_array(np.eye(3) + 0.02 * np.arange(9).reshape(3, 3))
    affine.SetMatrix(turn)
    affine.SetCenter((10.0, 20.0, 30.0))
    affine.SetTranslation((3.0, -4.0, 5.0))
    both = itk.CompositeTransform[itk.D, 3].New()
    for step in (affine, of_itk("ThinPlateSplineKernelTransform")):
        both.AddTransform(step)
    itk.transformwrite([both], str(tmp_path / f"t{suffix}"))
    found = read_transform(tmp_path / f"t{suffix}", ("x", "y", "z"))
    assert [type(step) for step in found.transforms] == [LandmarkSpline, AffineTransform]
    np.testing.assert_allclose(found.apply(points()), by_itk(both, points()), atol=1e-6)


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_inverses_as_slicer_stores_them(tmp_path: Path, suffix: str) -> None:
    kind = "ThinPlateSplineKernelTransform"
    path = tmp_path / f"t{suffix}"
    forth = of_itk(kind)
    itk.transformwrite([forth], str(path))
    if suffix == ".h5":
        with h5py.File(path, "r+") as file:
            entry = file["TransformGroup/0"]
            del entry["TransformType"]
            entry["TransformType"] = np.array([f"Inverse{kind}_double_3_3"], dtype="S60")
    else:
        path.write_text(path.read_text().replace(kind, f"Inverse{kind}"))
    back = read_transform(path, ("x", "y", "z"))
    np.testing.assert_allclose(back.apply(by_itk(forth, points())), points(), atol=1e-6)


def test_on_a_grid_it_is_what_it_is_at_points(tmp_path: Path) -> None:
    itk.transformwrite([of_itk("VolumeSplineKernelTransform")], str(tmp_path / "t.tfm"))
    affine = AffineTransform(np.diag([1.1, 0.9, 1.0, 1.0]))
    chain = CompositeTransform((read_transform(tmp_path / "t.tfm"), affine))
    grid = Grid((6, 7, 8), (3.0, 2.0, 4.0), (10.0, -20.0, 15.0))
    found = map_on(chain, grid)
    mapped = AffineTransform(found.affine).apply(grid.positions() + found.displacement)
    # Vectors of some micrometers in float32.
    np.testing.assert_allclose(mapped, chain.apply(grid.positions()), atol=1e-4)


Spoil = Callable[[str], str]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: text.index("FixedParameters")], "is cut off"),
        (lambda text: text[: len(text) - 60], "as many source as target landmarks"),
        (lambda text: text.replace("Parameters: ", "Parameters: a ", 1), "hold no number"),
        (lambda text: text.replace("ThinPlate", "ElasticBody"), "ITK's ElasticBodySplineKernel"),
        (
            lambda text: (
                text + "#Transform 1\nTransform: Euler3DTransform_double_3_3\n"
                "Parameters: 0 0 0 1 1 1\nFixedParameters: 0 0 0 0\n"
            ),
            "it lists 2 transforms",
        ),
        (
            lambda text: (
                text.replace("Transform: ", "Transform: CompositeTransform_double_3_3\nTransform: ")
                + "#Transform 1\nTransform: AffineTransform_double_3_3\n"
                "Parameters: 1 0 0\nFixedParameters: 0 0 0\n"
            ),
            "t.tfm: an affine has 6 numbers .* got 3 and 3: is the file whole",
        ),
        (lambda text: text.replace("_3_3", "_4_4"), "t.tfm: .* 2-D or 3-D points .* got a Thin"),
    ],
)
def test_refuses(tmp_path: Path, spoil: Spoil, message: str) -> None:
    path = tmp_path / "t.tfm"
    itk.transformwrite([of_itk("ThinPlateSplineKernelTransform")], str(path))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=message):
        read_transform(path)


def test_landmarks_that_make_no_spline(tmp_path: Path) -> None:
    flat = np.ones((5, 3))
    with h5py.File(tmp_path / "t.h5", "w") as file:
        entry = file.create_group("TransformGroup/0")
        kind = "ThinPlateSplineKernelTransform_double_3_3"
        entry["TransformType"] = np.array([kind], dtype="S60")
        entry["TransformParameters"] = entry["TransformFixedParameters"] = flat.ravel()
    with pytest.raises(InputError, match="not all in one plane"):
        read_transform(tmp_path / "t.h5")


@pytest.mark.parametrize("name", ["t.tfm", "t.h5", "t.nrrd", "t.ome.zarr"])
def test_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="sample it to a DisplacementField first"):
        write_transform(tmp_path / name, LandmarkSpline(*landmarks()))

"""Codes of how images lie, against SimpleITK's, and the starts that follow from them."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.geometry import Grid, Image
from itkstream.geometry.itk_bridge import to_itk_image
from itkstream.io.images.orientation import orientation_code, orientation_transform

CODES = ["".join(code) for ends in permutations(("RL", "AP", "IS")) for code in product(*ends)]
XYZ, ZYX = ("x", "y", "z"), ("z", "y", "x")


def blank(direction: np.ndarray, axes: tuple[str, ...] = XYZ) -> Image:
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0), direction=tuple(map(tuple, direction)), axes=XYZ)
    grid = grid.reorder(axes)
    return Image(np.zeros(grid.shape, np.uint8), grid)


@pytest.mark.parametrize("code", CODES)
def test_codes_of_directions_are_those_of_itk(code: str) -> None:
    cosines = sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code)
    direction = np.reshape(cosines, (3, 3))
    oblique = Rotation.from_rotvec([0.2, -0.3, 0.25]).as_matrix() @ direction
    for image in (blank(direction), blank(oblique), blank(oblique, ZYX)):
        assert orientation_code(image) == code


@pytest.mark.parametrize("axes", [XYZ, ZYX])
@pytest.mark.parametrize("codes", [("LPS", "RAS"), ("SRA", "PIL"), ("LPS", "RPS"), ("ILA", "ILA")])
def test_codes_bring_voxels_together_as_itk_turns_them(
    codes: tuple[str, str], axes: tuple[str, ...]
) -> None:
    """Files that keep no direction: only the codes know how their voxels lie."""
    rng = np.random.default_rng(0)
    body = to_itk_image(
        rng.integers(0, 999, (4, 5, 7)).astype(np.int32), Grid((4, 5, 7), (1.5, 2.0, 3.0), axes=XYZ)
    )
    images = []
    for code, unit, origin in zip(codes, ("micrometer", "millimeter"), (7.0, -2.0), strict=True):
        lying = sitk.DICOMOrient(body, code)
        factor = 1.0 if unit == "micrometer" else 1e-3
        spacing = tuple(factor * s for s in lying.GetSpacing())
        voxels = sitk.GetArrayFromImage(lying).T
        grid = Grid(voxels.shape, spacing, (origin,) * 3, axes=XYZ, unit=unit)
        images.append(Image(voxels, grid).reorder(axes))
    fixed, moving = images
    start = orientation_transform(fixed, moving, *codes)
    assert start.axes == axes
    landed = start.apply(fixed.grid.positions())
    index = np.rint(moving.grid.in_unit("micrometer").to_index(landed)).astype(int)
    found = np.asarray(moving.data)[tuple(np.moveaxis(index, -1, 0))]
    np.testing.assert_array_equal(found, fixed.data)


def test_the_directions_of_the_files_change_nothing_of_what_voxels_meet() -> None:
    turn = Rotation.from_rotvec([0.4, 1.1, -0.7]).as_matrix()
    plain, turned = blank(np.eye(3)), blank(turn)
    start = orientation_transform(turned, plain, "LPS", "LPS")
    at = np.array([[0.0, 0.0, 0.0], [3.0, 4.0, 5.0], [1.0, 2.0, 0.0]])
    landed = plain.grid.to_index(start.apply(turned.grid.to_physical(at)))
    np.testing.assert_allclose(landed, at, atol=1e-12)


@pytest.mark.parametrize("code", ["LP", "LPSS", "LPR", "XYZ", "", 3, None])
def test_what_is_no_code_is_refused(code: object) -> None:
    image = blank(np.eye(3))
    with pytest.raises(InputError, match=r"the moving image is three capitals.*'LPS' or 'RAS'"):
        orientation_transform(image, image, "LPS", code)  # type: ignore[arg-type]


def test_a_code_of_brainglobe_is_translated_and_not_guessed() -> None:
    image = blank(np.eye(3))
    with pytest.raises(InputError, match=r"say 'LIP'; else 'ASR'"):
        orientation_transform(image, image, "asr", "RAS")


def test_planes_have_no_code() -> None:
    plane = Image(np.zeros((3, 4)), Grid((3, 4), (1.0, 1.0)))
    with pytest.raises(InputError, match="the image has 2"):
        orientation_code(plane)

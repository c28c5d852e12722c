"""Orientation codes: three letters for the directions in which x, y and z lead in a body.

These are the codes of ITK, DICOM viewers and NIfTI ("to" codes): in an image that lies LPS, x leads
to the left, y to the back (posterior) and z to the head (superior). ITK's physical space is LPS.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import Grid, default_axes
from itkstream.geometry.image import Image
from itkstream.geometry.transforms import AffineTransform

__all__ = [
    "check_orientation",
    "orientation_code",
    "orientation_transform",
    "stated_orientation",
]

# Pairs of opposite ends of a body's axes; the second of each is where ITK's x, y and z lead.
_ENDS = ("RL", "AP", "IS")
_OPPOSITE = str.maketrans("RLAPIS", "LRPASI")


def check_orientation(code: object, name: str = "an orientation") -> str:
    """The code, or an `InputError` that says what it should be."""
    if isinstance(code, str) and _names_axes(code):
        return code
    said = f"{name} is three capitals, one of R or L, one of A or P and one of I or S"
    said += f", for where x, y and z lead, such as 'LPS' or 'RAS'; got {code!r}"
    if isinstance(code, str) and _names_axes(code.upper()):
        here = code.upper()[::-1].translate(_OPPOSITE)
        said += f". As brainglobe has it, where voxel 0 lies, slowest axis first, say {here!r}; "
        said += f"else {code.upper()!r}"
    raise InputError(said)


def orientation_code(image: Image) -> str:
    """Name how an image lies by its direction, as files of ITK, DICOM and NIfTI state it.

    Parameters
    ----------
    image : Image
        In 3-D, in the physical space of ITK, DICOM and this package's NIfTI images: there x, y and
        z lead to the left, the back and the head. Files that state no direction, as TIFF, come
        out as "LPS" however they lie.

    Returns
    -------
    str
        Three letters for where its x, y and z axes lead: R or L (right, left), A or P (anterior,
        posterior), I or S (inferior, superior). Of an image that lies obliquely, the nearest.

    Raises
    ------
    InputError
        For an image of two axes.

    Examples
    --------
    >>> itkstream.orientation_code(fixed)
    'LPS'
    """
    return nearest_code(np.asarray(_spatial(image.grid, "image").direction))


def stated_orientation(image: Image, which: str) -> str:
    """Name how an image lies by its direction, or refuse one whose file may state none."""
    if np.array_equal(image.grid.direction, np.eye(image.ndim)):
        raise InputError(
            f"the direction of the {which} is the identity, as of files that state none: say "
            "how it lies in three letters, such as LPS if the file means that"
        )
    return orientation_code(image)


def nearest_code(direction: NDArray[np.float64]) -> str:
    """Name where x, y and z lead, the columns of a matrix (3, 3) in the physical space of ITK."""
    order = max(permutations(range(3)), key=lambda p: np.abs(direction[p, range(3)]).sum())
    return "".join(_ENDS[p][int(direction[p, axis] > 0)] for axis, p in enumerate(order))


def orientation_transform(
    fixed: Image, moving: Image, fixed_code: str, moving_code: str
) -> AffineTransform:
    """Make the transform to start from that follows from how two images are known to lie.

    Parameters
    ----------
    fixed, moving : Image
        In 3-D; only their grids are read.
    fixed_code, moving_code : str
        Three capitals each for where the x, y and z axes of the voxels lead: R or L (right, left),
        A or P (anterior, posterior), I or S (inferior, superior). `orientation_code` names that of
        an image whose file says it. brainglobe names where voxel 0 lies, slowest axis first: its
        "asr" is "LIP" here. Codes of which one mirrors the other are taken at their word.

    Returns
    -------
    AffineTransform
        From fixed to moving points in µm, middle to middle, for `initial_transform` of
        `itkstream.register`.

    Raises
    ------
    InputError
        For a code that is none, or an image of two axes.

    Examples
    --------
    >>> start = orientation_transform(atlas, brain, "LIP", "RAS")  # doctest: +SKIP
    """
    bodies = [_leads(fixed_code, "fixed"), _leads(moving_code, "moving")]
    grids = [
        _spatial(image.grid, which).in_unit("micrometer")
        for image, which in ((fixed, "fixed image"), (moving, "moving image"))
    ]
    # From a physical space to the body: back along the axes of the voxels, and where these lead.
    to_body = [
        body @ np.asarray(grid.direction).T for body, grid in zip(bodies, grids, strict=True)
    ]
    middles = [grid.to_physical((np.array(grid.shape) - 1) / 2) for grid in grids]
    matrix = np.eye(4)
    matrix[:3, :3] = to_body[1].T @ to_body[0]
    matrix[:3, 3] = middles[1] - matrix[:3, :3] @ middles[0]
    xyz = default_axes(3)
    return AffineTransform(matrix, xyz).reorder(xyz, fixed.grid.axes)


def _names_axes(code: str) -> bool:
    """Whether each letter names another axis of a body."""
    return len(code) == 3 and all(sum(letter in ends for letter in code) == 1 for ends in _ENDS)


def _leads(code: object, which: str) -> NDArray[np.float64]:
    """Directions in which x, y and z lead in a body, as columns; its axes lead as ITK's."""
    columns = np.zeros((3, 3))
    for axis, letter in enumerate(check_orientation(code, f"the orientation of the {which} image")):
        (body,) = (k for k, ends in enumerate(_ENDS) if letter in ends)
        columns[body, axis] = 1.0 if letter == _ENDS[body][1] else -1.0
    return columns


def _spatial(grid: Grid, which: str) -> Grid:
    """The grid in order x, y, z."""
    if grid.ndim != 3:
        raise InputError(f"only images of 3 axes lie as three letters say; the {which} has 2")
    return grid.reorder(default_axes(3))

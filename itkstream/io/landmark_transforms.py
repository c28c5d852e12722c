"""Landmark splines in ITK's text files: neither SimpleITK nor itk can read these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import CompositeTransform, Transform
from itkstream.io.itk_entries import LANDMARK_KINDS, affine_entry, landmark_entry
from itkstream.io.itk_transforms import check_whole

__all__ = ["read_landmark_text"]

_AFFINES = ("AffineTransform", "MatrixOffsetTransformBase")
_COMPOSITE = "CompositeTransform"
_HEAD = b"#Insight Transform File"


def read_landmark_text(path: Path, axes: Sequence[str] | None = None) -> Transform | None:
    """Read a text file that holds a landmark spline, alone or with affines.

    Parameters
    ----------
    path : Path
        ``.tfm`` or ``.txt``.
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    Transform or None
        None where the file holds no landmark spline: ITK can read it.

    Raises
    ------
    InputError
        Where it is cut off, or holds other transforms beside the spline.
    """
    with path.open("rb") as file:
        if file.read(len(_HEAD)) != _HEAD:
            return None
        # Fields are long: look for the names before splitting numbers.
        file.seek(0)
        if not any(_kind(line) in LANDMARK_KINDS for line in file):
            return None
    check_whole(path)
    steps: list[Transform] = []
    for kind, numbers in _entries(path):
        name = kind.partition("_")[0]
        if name == _COMPOSITE:
            continue
        if name not in (*LANDMARK_KINDS, *_AFFINES):
            raise InputError(
                f"{path} holds a {name} beside a landmark spline; only affines are read beside "
                "it: store it as .h5, or convert it to a displacement field in 3D Slicer"
            )
        given = numbers["Parameters"], numbers["FixedParameters"]
        try:
            step = landmark_entry(kind, *given, axes) or affine_entry(*given, axes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        # ITK applies the transform added last first.
        steps.insert(0, step)
    return steps[0] if len(steps) == 1 else CompositeTransform(tuple(steps))


def _kind(line: bytes) -> str:
    """The name of the transform that begins with a line; empty for any other line."""
    head, _, kind = line.partition(b":")
    if head.strip() != b"Transform":
        return ""
    return kind.decode("ascii", "replace").strip().partition("_")[0]


def _entries(path: Path) -> Iterator[tuple[str, dict[str, NDArray[np.float64]]]]:
    """Kind and numbers of each transform."""
    kind, numbers = "", dict[str, NDArray[np.float64]]()
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        if key == "Transform":
            if kind:
                yield kind, numbers
            kind, numbers = value.strip(), {}
        elif key in ("Parameters", "FixedParameters"):
            try:
                numbers[key] = np.array([float(word) for word in value.split()])
            except ValueError as error:
                raise InputError(f"{path}: {key} of a {kind} hold no number: {error}") from error
    if kind:
        yield kind, numbers

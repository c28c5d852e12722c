"""Displacement fields as images of vectors: NIfTI, NRRD and MetaImage.

NRRD and MetaImage are written slab by slab, uncompressed, and read region by region: memory does
not grow with the field. NIfTI goes through memory whole.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, DisplacementField, Grid, Slices, default_axes
from itkstream.io.itk_images import ItkFile
from itkstream.io.vectors import OrderedVectors, as_in_files, slabs
from itkstream.itk_bridge import from_itk_geometry, to_itk_image
from itkstream.numerics.fields import to_positions

__all__ = ["read_displacement_image", "write_displacement_image"]

# Numbers of a slab: some 64 MB with what is made on the way.
_SLAB = 2**22
_NIFTI_HEADER = 348
# NIfTI's numbers of the types of floats, and their bytes.
_NIFTI_FLOATS = {16: 4, 64: 8}


def write_displacement_image(
    target: Path, field: DisplacementField, affine: AffineTransform | None
) -> None:
    """Write a displacement field, float32, an affine after it folded in.

    Parameters
    ----------
    target : Path
        Ending in ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``; replaced if it is there.
    field : DisplacementField
        Acts first; it may be stored.
    affine : AffineTransform or None
        Acts on what the field gives. An affine of a linear interpolation is the linear
        interpolation of affines, so folding it in loses nothing but the digits of float32.
    """
    grid = field.grid.reorder(default_axes(field.ndim))
    headers = {".nrrd": _nrrd_header, ".mha": _meta_header}
    if target.suffix in headers:
        with target.open("wb") as file:
            file.write(headers[target.suffix](grid).encode("ascii"))
            for slab in _slabs(field, affine):
                slab.tofile(file)
        return
    vectors = _folded(np.asarray(field.data), field.grid, affine)
    image = to_itk_image(np.asarray(vectors, np.float32), field.grid)
    sitk.WriteImage(image, str(target), useCompression=target.suffix == ".gz")


def read_displacement_image(path: Path, axes: Sequence[str] | None = None) -> DisplacementField:
    """Open a displacement image.

    Parameters
    ----------
    path : Path
        The file. NIfTI may have intent 1006 (Slicer's) or 1007 (ITK's and ANTs').
    axes : sequence of str, optional
        The wanted order of axes; default x first.

    Returns
    -------
    DisplacementField
        Uncompressed NRRD and MetaImage stay on disk; others are read once, as a whole, when
        voxels are first asked for.

    Raises
    ------
    InputError
        Where ITK cannot read the file, or it holds no vectors of as many components as axes.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} is no image that ITK can read, or is cut off") from error
    n, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if n not in (2, 3) or components != n:
        raise InputError(
            f"a displacement image has as many components as axes, 2 or 3; {path} has "
            f"{components} on {n} axes: is it an image rather than a transform?"
        )
    types: dict[int, np.dtype[Any]] = {
        sitk.sitkVectorFloat32: np.dtype(np.float32),
        sitk.sitkVectorFloat64: np.dtype(np.float64),
    }
    if reader.GetPixelID() not in types:
        raise InputError(f"a displacement image holds floats; {path} does not")
    grid = from_itk_geometry(
        reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    )
    wanted = tuple(axes or grid.axes)
    shape = (*reversed(reader.GetSize()), components)
    stored = ItkFile(str(path.resolve()), shape, types[reader.GetPixelID()], components)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(path)
    vectors = _ImageVectors(stored, grid.axis_order(wanted))
    return DisplacementField(vectors, grid.reorder(wanted))


@dataclass(frozen=True)
class _ImageVectors(OrderedVectors):
    """The vectors of an image file, whose stored axes are x, y (, z)."""

    stored: ItkFile
    order: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.dtype

    def stored_shape(self) -> tuple[int, ...]:
        return self.stored.shape[-2::-1]

    def read_box(self, box: Slices) -> NDArray[Any]:
        n = len(box)
        return self.stored[(*reversed(box), slice(None))].transpose(*reversed(range(n)), n)


def _slabs(
    field: DisplacementField, affine: AffineTransform | None
) -> Iterator[NDArray[np.float32]]:
    """The vectors in the order of a file: components, then x, then y, then z."""
    for box in slabs(field, _SLAB):
        part = np.asarray(field.data[(*box, slice(None))])
        vectors = _folded(part, field.grid.crop(box), affine)
        yield np.ascontiguousarray(as_in_files(vectors, field.grid), "<f4")


def _folded(vectors: NDArray[Any], grid: Grid, affine: AffineTransform | None) -> NDArray[Any]:
    if affine is None:
        return vectors
    return to_positions(vectors, grid, affine.matrix) - grid.positions()


def _text(values: Any) -> str:
    return " ".join(repr(float(v)) for v in np.ravel(values))


def _nrrd_header(grid: Grid) -> str:
    """``http://teem.sourceforge.net/nrrd/format.html``, as ITK writes it."""
    n = grid.ndim
    steps = (np.asarray(grid.direction) * grid.spacing).T
    bracketed = [f"({_text(v).replace(' ', ',')})" for v in (*steps, grid.origin)]
    space = "space: left-posterior-superior" if n == 3 else f"space dimension: {n}"
    lines = [
        "NRRD0004",
        "type: float",
        f"dimension: {n + 1}",
        space,
        f"sizes: {n} {' '.join(map(str, grid.shape))}",
        f"space directions: none {' '.join(bracketed[:-1])}",
        f"kinds: vector {' '.join(['domain'] * n)}",
        "endian: little",
        "encoding: raw",
        f"space origin: {bracketed[-1]}",
    ]
    return "\n".join(lines) + "\n\n"


def _meta_header(grid: Grid) -> str:
    """MetaImage's own words; its matrix is written axis by axis, the transpose of ITK's."""
    entries = {
        "ObjectType": "Image",
        "NDims": grid.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _text(np.asarray(grid.direction).T),
        "Offset": _text(grid.origin),
        "CenterOfRotation": _text(np.zeros(grid.ndim)),
        "ElementSpacing": _text(grid.spacing),
        "DimSize": " ".join(map(str, grid.shape)),
        "ElementNumberOfChannels": grid.ndim,
        "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{key} = {value}\n" for key, value in entries.items())


def _check_nifti(path: Path) -> None:
    """ITK turns NaN in a NIfTI file to 0, which would pass for no displacement: look before it."""
    opener: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        try:
            header = file.read(_NIFTI_HEADER)
            order: Literal["<", ">"] = (
                "<" if header[:4] == (_NIFTI_HEADER).to_bytes(4, "little") else ">"
            )
            kind = int(np.frombuffer(header, f"{order}i2", 1, 70)[0])
            start = int(np.frombuffer(header, f"{order}f4", 1, 108)[0])
            if kind not in _NIFTI_FLOATS:
                return
            dtype = np.dtype(f"{order}f{_NIFTI_FLOATS[kind]}")
            file.seek(start)
            while data := file.read(_SLAB * dtype.itemsize):
                whole = len(data) // dtype.itemsize
                if not np.isfinite(np.frombuffer(data, dtype, whole)).all():
                    raise InputError(f"the displacement field in {path} holds NaN or infinity")
        except (EOFError, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is cut off") from error

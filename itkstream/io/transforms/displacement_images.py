"""Displacement fields as images of vectors: NIfTI, NRRD and MetaImage.

NRRD and MetaImage are written slab by slab, uncompressed, and read region by region: memory does
not grow with the field. NIfTI goes through memory whole.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, DisplacementField, Grid, Slices, default_axes
from itkstream.geometry.chains import FieldChain
from itkstream.geometry.itk_bridge import from_itk_geometry, to_itk_image
from itkstream.io.images.files.itk_images import ItkFile
from itkstream.io.transforms.vectors import NameAxes, OrderedVectors, as_in_files, slabs
from itkstream.numerics.sampling.fields import to_positions

__all__ = ["read_displacement_image", "write_displacement_image"]

# Numbers of a slab: some 64 MB with what is made on the way.
_SLAB = 2**22
_NRRD_HEADER = 65536
_NIFTI_HEADER = 540
# By the length of the header, of version 1 and 2: place and type of some of its numbers.
_NIFTI_PLACES = {
    348: {"intent": (68, "i2"), "type": (70, "i2"), "start": (108, "f4"), "name": (328, "")},
    540: {"intent": (504, "i4"), "type": (12, "i2"), "start": (168, "i8"), "name": (508, "")},
}
# NIfTI's numbers of the types of floats, and their bytes.
_NIFTI_FLOATS = {16: 4, 64: 8}
# None, displacements (3D Slicer) and vectors (ITK, ANTs); warps and coefficients of FSL.
_VECTOR_INTENTS = (0, 1006, 1007)
_FSL_INTENTS = range(2001, 2018)
# What NRRD calls axes of components that may be displacements, those of the lattice (or says
# nothing of), and ITK's space.
_VECTOR_KINDS = ("vector", "2-vector", "3-vector", "covariant-vector", "list")
_LATTICE_KINDS = ("domain", "space", "???", "none")
_LPS = ("left-posterior-superior", "lps")
_NUMBER = re.compile(r"[-+]?[\d.]+(?:e[-+]?\d+)?")


def write_displacement_image(target: Path, chain: FieldChain) -> None:
    """Write a field, float32, the affine after it folded in: ``.nii(.gz)``, ``.nrrd``, ``.mha``.

    An affine of a linear interpolation is the linear interpolation of affines, so folding it in
    loses nothing but the digits of float32.
    """
    field = chain.field
    grid = field.grid.reorder(default_axes(field.ndim))
    headers = {".nrrd": _nrrd_header, ".mha": _meta_header}
    if target.suffix in headers:
        with target.open("wb") as file:
            file.write(headers[target.suffix](grid).encode("ascii"))
            for slab in _slabs(chain):
                slab.tofile(file)
        return
    vectors = _folded(np.asarray(field.data), field.grid, chain.affine)
    image = to_itk_image(np.asarray(vectors, np.float32), field.grid)
    sitk.WriteImage(image, str(target), useCompression=target.suffix == ".gz")


def read_displacement_image(path: Path, name_axes: NameAxes) -> DisplacementField:
    """Open a displacement image; NIfTI of intent 1006 (3D Slicer) or 1007 (ITK, ANTs).

    Uncompressed NRRD and MetaImage stay on disk; others are read once, as a whole, when vectors
    are first asked for.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_nifti(path)
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
    wanted = name_axes(n)
    shape = (*reversed(reader.GetSize()), components)
    stored = ItkFile(str(path.resolve()), shape, types[reader.GetPixelID()], components)
    _check_meaning(path, reader)
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


def _slabs(chain: FieldChain) -> Iterator[NDArray[np.float32]]:
    """The vectors in the order of a file: components, then x, then y, then z."""
    field = chain.field
    for box in slabs(field, _SLAB):
        part = np.asarray(field.data[(*box, slice(None))])
        vectors = _folded(part, field.grid.crop(box), chain.affine)
        yield np.ascontiguousarray(as_in_files(vectors, field.grid), "<f4")


def _folded(vectors: NDArray[Any], grid: Grid, affine: AffineTransform) -> NDArray[Any]:
    if affine.is_identity:
        return vectors
    return to_positions(vectors, grid, affine.matrix) - grid.positions()


def _text(values: Any) -> str:
    return " ".join(repr(float(v)) for v in np.ravel(values))


def _nrrd_header(grid: Grid) -> str:
    """A header of NRRD as ITK writes it (``http://teem.sourceforge.net/nrrd/format.html``)."""
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
    """A header of MetaImage, whose matrix is written axis by axis: the transpose of ITK's."""
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


def _check_meaning(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuse vectors that by their file's own words are no displacements of ITK's points."""
    way = _entry(reader, "displacement field type", "resampling")
    if way == "modeling":
        raise InputError(
            f"{path} leads from moving to fixed points (3D Slicer's 'displacement field "
            "type:=modeling'), and the other way is wanted: in Slicer's module Transforms, Invert "
            "it and save it; or take that line out of a copy, which then is the transform from "
            "moving to fixed points, and let `itkstream invert` invert that"
        )
    if way != "resampling":
        raise InputError(f"{path} has the 'displacement field type' {way!r}; known is 'resampling'")
    if path.suffix.lower() == ".nrrd":
        _check_nrrd(path)


def _entry(reader: sitk.ImageFileReader, key: str, default: str) -> str:
    return str(reader.GetMetaData(key)).strip().lower() if reader.HasMetaDataKey(key) else default


def _check_nrrd(path: Path) -> None:
    """Refuse kinds, spaces and frames that are not ITK's: it turns the lattice, not the vectors."""
    with path.open("rb") as file:
        lines = file.read(_NRRD_HEADER).partition(b"\n\n")[0].decode("latin-1").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    fields = {key.strip().lower(): value.strip().lower() for key, _, value in pairs}
    # By the header itself: only the newest SimpleITK tell the kind.
    for kind in fields.get("kinds", "").split():
        if kind not in _VECTOR_KINDS + _LATTICE_KINDS:
            raise InputError(
                f"the components of a displacement are a vector; those of {path} are of the kind "
                f"{kind}"
            )
    space = fields.get("space", _LPS[0])
    if space not in _LPS:
        raise InputError(
            f"{path} is in the space {space}, and does not say whether its vectors are: store it "
            "in left-posterior-superior, as ITK, ANTs and 3D Slicer do"
        )
    frame = np.array(_NUMBER.findall(fields.get("measurement frame", "")), float)
    if frame.size and not np.array_equal(frame, np.eye(3).ravel()[: frame.size]):
        raise InputError(
            f"{path} measures its vectors in a frame of their own (measurement frame), which ITK "
            "passes over: store it without one"
        )


def _check_nifti(path: Path) -> None:
    """Refuse NaN, which ITK turns to 0 in a NIfTI file: that would pass for no displacement."""
    opener: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        try:
            header = file.read(_NIFTI_HEADER)
            layout = _NiftiLayout.of(header)
            if layout is None:
                raise InputError(f"{path} has no NIfTI header")
            _check_intent(path, layout.intent(header), layout.intent_name(header))
            dtype = layout.floats(header)
            if dtype is None:
                return
            file.seek(layout.start(header))
            while data := file.read(_SLAB * dtype.itemsize):
                whole = len(data) // dtype.itemsize
                if not np.isfinite(np.frombuffer(data, dtype, whole)).all():
                    raise InputError(f"the displacement field in {path} holds NaN or infinity")
        except (EOFError, OSError, ValueError, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is cut off") from error


def _check_intent(path: Path, code: int, name: str) -> None:
    """Refuse files of programs that keep positions, or vectors on other axes."""
    program = {"nreg_trans": "NiftyReg", "mapping": "SPM"}.get(name.lower())
    if code in _FSL_INTENTS:
        program = "FSL"
    if program:
        raise InputError(
            f"{path} is a field of {program}, whose vectors are no displacements in ITK's "
            "coordinates: convert it to a displacement field of ITK first"
        )
    if code not in _VECTOR_INTENTS:
        raise InputError(
            f"{path} has the NIfTI intent {code}, no displacement; those have 1007 (ITK, ANTs) or "
            "1006 (3D Slicer)"
        )


@dataclass(frozen=True)
class _NiftiLayout:
    """Byte order, and places of numbers, of the header of a NIfTI file of version 1 or 2."""

    order: str
    places: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, header: bytes) -> _NiftiLayout | None:
        for order in "<>":
            size = int(np.frombuffer(header, f"{order}i4", 1)[0])
            if size in _NIFTI_PLACES and len(header) >= size:
                return cls(order, _NIFTI_PLACES[size])
        return None

    def _number(self, header: bytes, what: str) -> int:
        place, kind = self.places[what]
        return int(np.frombuffer(header, self.order + kind, 1, place)[0])

    def intent(self, header: bytes) -> int:
        return self._number(header, "intent")

    def intent_name(self, header: bytes) -> str:
        place, _ = self.places["name"]
        return header[place : place + 16].partition(b"\0")[0].decode("latin-1").strip()

    def floats(self, header: bytes) -> np.dtype[Any] | None:
        size = _NIFTI_FLOATS.get(self._number(header, "type"))
        return np.dtype(f"{self.order}f{size}") if size else None

    def start(self, header: bytes) -> int:
        return self._number(header, "start")

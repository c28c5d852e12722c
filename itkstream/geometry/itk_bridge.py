"""Arrays and grids to SimpleITK images and transforms, and back, in memory.

ITK counts axes x, y, z; this package in array-axis order. The two orders meet here and nowhere
else: `Grid.axes` names the array axes, and one permutation turns vectors, matrices and arrays.
ITK transforms map output (fixed) points to input (moving) points, as this package's do, so only
the order of components changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError, unknown_name
from itkstream.geometry import (
    AffineTransform,
    BSplineTransform,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
    Transform,
    axis_order,
    default_axes,
)

__all__ = [
    "CHOOSING",
    "INTERPOLATORS",
    "from_itk_geometry",
    "from_itk_image",
    "from_itk_transform",
    "linear_matrix",
    "quiet_itk",
    "resample",
    "sample_transform",
    "to_itk_image",
    "to_itk_transform",
    "transform_token",
    "what_itk_says",
]

# What ITK says, and what that means to a user.
_TOO_FEW = "too few voxels that count lie on each other in both images"
_MEANINGS = {
    "map outside moving image buffer": _TOO_FEW,
    "No valid points": _TOO_FEW,
    "number of pixels along direction": "one has fewer than 4 planes along an axis",
}

INTERPOLATORS = {
    "nearest": sitk.sitkNearestNeighbor,
    "linear": sitk.sitkLinear,
    "bspline": sitk.sitkBSpline,
    "quadratic-bspline": sitk.sitkBSpline2,
    "gaussian": sitk.sitkGaussian,
    "label-gaussian": sitk.sitkLabelGaussian,
    "label-linear": sitk.sitkLabelLinear,
    "hamming-sinc": sitk.sitkHammingWindowedSinc,
    "cosine-sinc": sitk.sitkCosineWindowedSinc,
    "welch-sinc": sitk.sitkWelchWindowedSinc,
    "lanczos-sinc": sitk.sitkLanczosWindowedSinc,
    "blackman-sinc": sitk.sitkBlackmanWindowedSinc,
}

CHOOSING = ("nearest", "label-gaussian", "label-linear")
"""Interpolators that choose one of the values that are there, and make up none."""

# Levels of composites in composites beyond which a composite is taken to hold itself.
_DEEPEST = 16


_quiet = {"users": 0, "before": True}
_quiet_lock = threading.Lock()


def what_itk_says(error: RuntimeError) -> str:
    """The message of an error of ITK in words of ours, or without file, line and object."""
    said = str(error)
    for sign, meaning in _MEANINGS.items():
        if sign in said:
            return meaning
    return "ITK says: " + said.strip().splitlines()[-1].split("): ")[-1]


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep ITK from writing to the terminal; what it cannot do it raises all the same.

    The switch is one for the process: it is put back when the last thread is done.
    """
    with _quiet_lock:
        if not _quiet["users"]:
            _quiet["before"] = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _quiet["users"] += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet["users"] -= 1
            if not _quiet["users"]:
                sitk.ProcessObject.SetGlobalWarningDisplay(bool(_quiet["before"]))


def to_itk_image(data: NDArray[Any], grid: Grid) -> sitk.Image:
    """Wrap scalars, grid.shape, or vectors, grid.shape + (n,), as a SimpleITK image: a copy."""
    order = grid.axis_order(default_axes(grid.ndim))
    buffer = tuple(reversed(order))
    is_vector = data.ndim > grid.ndim
    if is_vector:
        array = np.ascontiguousarray(data.transpose(*buffer, grid.ndim)[..., list(order)])
    else:
        array = np.ascontiguousarray(data.transpose(buffer))
    array = array.astype(_itk_type(array.dtype), copy=False)
    image = sitk.GetImageFromArray(array, isVector=is_vector)
    itk_grid = grid.reorder(default_axes(grid.ndim))
    image.SetSpacing(itk_grid.spacing)
    image.SetOrigin(itk_grid.origin)
    image.SetDirection(np.ravel(itk_grid.direction).tolist())
    return image


def from_itk_image(
    image: sitk.Image, axes: Sequence[str] | None = None, unit: str = "micrometer"
) -> Image:
    """Unwrap a SimpleITK image of scalars, into memory; axes x first unless others are asked for.

    ITK does not say what its lengths are in: `unit` does.
    """
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(
            f"expected one value per voxel; got {image.GetNumberOfComponentsPerPixel()}: choose "
            "a component with SimpleITK.VectorIndexSelectionCast"
        )
    data, grid = _unwrap(image, axes, unit)
    return Image(data, grid)


def from_itk_geometry(
    size: Sequence[int],
    spacing: Iterable[float],
    origin: Iterable[float],
    direction: ArrayLike,
    unit: str = "micrometer",
) -> Grid:
    """A lattice as ITK's images, fields and files describe it, axes x, y (, z).

    `direction` is n * n numbers, row by row.
    """
    n = len(size)
    matrix = tuple(map(tuple, np.reshape(direction, (n, n))))
    return Grid(tuple(size), tuple(spacing), tuple(origin), matrix, default_axes(n), unit)


def to_itk_transform(transform: Transform, axes: Sequence[str]) -> sitk.Transform:
    """Turn a transform of points with these axes into SimpleITK's.

    Affines, fields, B-splines and chains of these have one; fields become float64 in ITK, 24 bytes
    a voxel in 3-D.
    """
    if isinstance(transform, AffineTransform):
        matrix = transform.reorder(axes, default_axes(transform.ndim)).matrix
        affine = sitk.AffineTransform(transform.ndim)
        affine.SetMatrix(matrix[:-1, :-1].ravel().tolist())
        affine.SetTranslation(matrix[:-1, -1].tolist())
        return affine
    if isinstance(transform, DisplacementField):
        image = to_itk_image(np.asarray(transform.data, np.float64), transform.grid)
        return sitk.DisplacementFieldTransform(image)
    if isinstance(transform, BSplineTransform):
        order = transform.grid.axis_order(default_axes(transform.ndim))
        parts = [to_itk_image(transform.coefficients[..., k], transform.grid) for k in order]
        return sitk.BSplineTransform(parts, transform.order)
    if isinstance(transform, CompositeTransform):
        # ITK applies the transform added last first.
        steps = [to_itk_transform(t, axes) for t in reversed(transform.transforms)]
        return sitk.CompositeTransform(steps)
    raise InputError(
        f"no ITK transform stands for a {type(transform).__name__}; sample it to a "
        "DisplacementField first"
    )


def from_itk_transform(transform: sitk.Transform, axes: Sequence[str] | None = None) -> Transform:
    """Turn a SimpleITK transform into this package's values, axes x first by default.

    A matrix transform, a translation, a displacement field, B-splines, or a composite of these.
    """
    ndim = transform.GetDimension()
    axes = tuple(axes or default_axes(ndim))
    steps = _steps(transform)
    if steps is not None:
        return CompositeTransform(tuple(from_itk_transform(t, axes) for t in reversed(steps)))
    transform = _own_kind(transform)
    if isinstance(transform, sitk.DisplacementFieldTransform):
        data, grid = _unwrap(transform.GetDisplacementField(), axes, "micrometer")
        return DisplacementField(data, grid)
    if isinstance(transform, sitk.BSplineTransform):
        images = transform.GetCoefficientImages()
        unwrapped = [_unwrap(image, axes, "micrometer") for image in images]
        parts = [unwrapped[k][0] for k in axis_order(default_axes(ndim), axes)]
        return BSplineTransform(np.stack(parts, -1), unwrapped[0][1], transform.GetOrder())
    if not transform.IsLinear():
        raise InputError(
            f"a {transform.GetName()} is neither affine, nor a field, nor B-splines, nor "
            "composite: sample it to a displacement field first "
            "(SimpleITK.TransformToDisplacementField)"
        )
    return AffineTransform(linear_matrix(transform)).reorder(default_axes(ndim), axes)


def resample(
    moving: Image,
    transform: sitk.Transform,
    out_grid: Grid,
    *,
    interpolator: str = "linear",
    background: float = 0.0,
) -> NDArray[Any]:
    """Resample an image in memory with SimpleITK: any ITK transform, any of `INTERPOLATORS`.

    `out_grid` has the axes of the image. The voxels keep their type for label interpolators; else
    they are float64, so that rounding to integers is the caller's.
    """
    if interpolator not in INTERPOLATORS:
        raise unknown_name("interpolator", interpolator, INTERPOLATORS)
    voxels = moving.read()
    keeps_type = interpolator in CHOOSING
    labels = None
    if keeps_type and voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 8:
        labels, voxels, background = _numbered(voxels, background)
    image = to_itk_image(voxels, moving.grid)
    itk_grid = out_grid.reorder(default_axes(out_grid.ndim))
    resampled = sitk.Resample(
        image,
        itk_grid.shape,
        transform,
        INTERPOLATORS[interpolator],
        itk_grid.origin,
        itk_grid.spacing,
        np.ravel(itk_grid.direction).tolist(),
        float(background),
        image.GetPixelID() if keeps_type else sitk.sitkFloat64,
    )
    data, _ = _unwrap(resampled, out_grid.axes, out_grid.unit)
    return data if labels is None else labels[data]


def sample_transform(transform: sitk.Transform, grid: Grid) -> NDArray[np.float32]:
    """The displacement of any ITK transform on a grid, float32, vectors in array-axis order."""
    if transform.GetDimension() != grid.ndim:
        raise InputError(
            f"a {transform.GetDimension()}-D transform cannot act on a {grid.ndim}-D image"
        )
    itk_grid = grid.reorder(default_axes(grid.ndim))
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        itk_grid.shape,
        itk_grid.origin,
        itk_grid.spacing,
        np.ravel(itk_grid.direction).tolist(),
    )
    data, _ = _unwrap(field, grid.axes, grid.unit)
    return data.astype(np.float32)


def transform_token(transform: sitk.Transform) -> tuple[Any, ...]:
    """Kind, parameters and fixed parameters of an ITK transform, the same in every process."""
    own = _own_kind(transform)
    kind = type(own).__name__
    steps = _steps(own)
    if steps is not None:
        return (kind, *map(transform_token, steps))
    if isinstance(own, sitk.DisplacementFieldTransform):
        numbers = sitk.GetArrayViewFromImage(own.GetDisplacementField())
    else:
        numbers = np.array(own.GetParameters())
    order = own.GetOrder() if isinstance(own, sitk.BSplineTransform) else None
    digest = blake2b(np.ascontiguousarray(numbers).data, digest_size=16).hexdigest()
    return kind, digest, tuple(own.GetFixedParameters()), order


def _numbered(
    voxels: NDArray[Any], background: float
) -> tuple[NDArray[Any], NDArray[np.uint32], float]:
    """Labels as places in a list, since ITK's interpolators pass through doubles, of 53 bits."""
    outside = np.array([background]).astype(voxels.dtype)
    labels, places = np.unique(np.append(voxels.ravel(), outside), return_inverse=True)
    numbered = places[:-1].astype(np.uint32).reshape(voxels.shape)
    return labels, numbered, float(places[-1])


def _itk_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The nearest type that ITK has: no truth values, no half precision, no foreign byte order."""
    stand_in = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}
    return np.dtype(stand_in.get(dtype, dtype.newbyteorder("=")))


def _unwrap(image: sitk.Image, axes: Sequence[str] | None, unit: str) -> tuple[NDArray[Any], Grid]:
    ndim = image.GetDimension()
    grid = from_itk_geometry(
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), unit
    )
    axes = tuple(axes or grid.axes)
    order = list(grid.axis_order(axes))
    array = sitk.GetArrayFromImage(image)
    to_names = tuple(reversed(range(ndim)))
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array.transpose(*to_names, ndim).transpose(*order, ndim)[..., order]
    else:
        array = array.transpose(to_names).transpose(order)
    return np.ascontiguousarray(array), grid.reorder(axes)


def _steps(transform: sitk.Transform) -> list[sitk.Transform] | None:
    """The transforms of a composite, as they were added; None for any other kind.

    A kind that SimpleITK has no class for, such as the MatrixOffsetTransformBase of ANTs and
    greedy, comes as a composite of itself, without end: that is none.
    """
    inner, depth = transform, 0
    while inner.GetName() == "CompositeTransform":
        composite = sitk.CompositeTransform(inner)
        count, depth = composite.GetNumberOfTransforms(), depth + 1
        if depth > _DEEPEST:
            return None
        if count != 1:
            break
        inner = composite.GetNthTransform(0)
    if depth == 0:
        return None
    whole = sitk.CompositeTransform(transform)
    return [whole.GetNthTransform(k) for k in range(whole.GetNumberOfTransforms())]


def _own_kind(transform: sitk.Transform) -> sitk.Transform:
    try:
        return transform.Downcast()
    except KeyError:
        # SimpleITK reads kinds that it has no class for.
        return transform


def linear_matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """The homogeneous matrix of a linear transform, x first.

    As it is stored or, where none is, from where points go.
    """
    n = transform.GetDimension()
    if hasattr(transform, "GetMatrix") and hasattr(transform, "GetTranslation"):
        linear = np.reshape(transform.GetMatrix(), (n, n))
        centre = np.array(transform.GetCenter())
        shift = np.array(transform.GetTranslation()) + (centre - linear @ centre)
    elif isinstance(transform, sitk.TranslationTransform):
        linear, shift = np.eye(n), np.array(transform.GetOffset())
    else:
        shift = np.array(transform.TransformPoint([0.0] * n))
        columns = [np.array(transform.TransformPoint(e.tolist())) - shift for e in np.eye(n)]
        linear = np.stack(columns, axis=1)
    matrix = np.eye(n + 1)
    matrix[:n, :n], matrix[:n, n] = linear, shift
    return matrix

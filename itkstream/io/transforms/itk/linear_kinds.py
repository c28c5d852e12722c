"""All kinds of ITK's transforms that are a matrix and a shift, as affines.

SimpleITK and itk turn the parameters of a kind into its matrix; what they are given is counted
first, since ITK reads beyond the end of parameters that are too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, default_axes
from itkstream.geometry.itk_bridge import linear_matrix

__all__ = ["LINEAR_KINDS", "linear_transform"]

_PLAIN = ("AffineTransform", "MatrixOffsetTransformBase")
# Dimensions of the spaces in which a kind exists.
LINEAR_KINDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_PLAIN, (2, 3)),
    "IdentityTransform": (2, 3),
    "TranslationTransform": (2, 3),
    "ScaleTransform": (2, 3),
    "ScaleLogarithmicTransform": (2, 3),
    "ScalableAffineTransform": (2, 3),
    "CenteredAffineTransform": (2, 3),
    "FixedCenterOfRotationAffineTransform": (2, 3),
    "Euler2DTransform": (2,),
    "Rigid2DTransform": (2,),
    "CenteredRigid2DTransform": (2,),
    "Similarity2DTransform": (2,),
    "CenteredSimilarity2DTransform": (2,),
    "Euler3DTransform": (3,),
    "CenteredEuler3DTransform": (3,),
    "Rigid3DTransform": (3,),
    "QuaternionRigidTransform": (3,),
    "VersorTransform": (3,),
    "VersorRigid3DTransform": (3,),
    "Similarity3DTransform": (3,),
    "ScaleVersor3DTransform": (3,),
    "ScaleSkewVersor3DTransform": (3,),
    "ComposeScaleSkewVersor3DTransform": (3,),
}
"""Names of the kinds that are read."""

# Files of earlier versions of ITK lack the number that says in which order the angles act.
_EULER = ("Euler3DTransform", "CenteredEuler3DTransform")


def linear_transform(
    name: str,
    parameters: NDArray[np.float64],
    fixed: NDArray[np.float64],
    axes: Sequence[str],
) -> AffineTransform:
    """The affine of one of `LINEAR_KINDS`, of points with these axes; the numbers are x first."""
    ndim = len(axes)
    if ndim not in LINEAR_KINDS[name]:
        raise InputError(f"ITK has no {ndim}-D {name}")
    if name in _EULER and len(fixed) == ndim:
        fixed = np.append(fixed, 0.0)
    if name in _PLAIN:
        matrix = _about(parameters, fixed, ndim)
    elif name == "IdentityTransform":
        _check_counts(name, parameters, 0, fixed, 0)
        matrix = np.eye(ndim + 1)
    else:
        matrix = _by_itk(name, parameters, fixed, ndim)
    return AffineTransform(matrix).reorder(default_axes(ndim), axes)


def _about(
    parameters: NDArray[np.float64], centre: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """ITK's ``matrix (p - centre) + centre + translation``."""
    if len(centre) != n or len(parameters) != n * n + n:
        raise InputError(
            f"an affine has 6 numbers and a centre of 2, or 12 and a centre of 3; got "
            f"{len(parameters)} and {len(centre)}: is the file whole?"
        )
    matrix = np.eye(n + 1)
    matrix[:n, :n] = parameters[: n * n].reshape(n, n)
    matrix[:n, n] = parameters[n * n :] + centre - matrix[:n, :n] @ centre
    return matrix


def _by_itk(
    name: str, parameters: NDArray[np.float64], fixed: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    known = getattr(sitk, name, None)
    try:
        if known is not None:
            one = known(n) if len(LINEAR_KINDS[name]) > 1 else known()
            sizes = len(one.GetParameters()), len(one.GetFixedParameters())
            _check_counts(name, parameters, sizes[0], fixed, sizes[1])
            one.SetFixedParameters(fixed.tolist())
            one.SetParameters(parameters.tolist())
            return linear_matrix(one)
        return _of_itk(name, parameters, fixed, n)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"ITK does not take the numbers of its {name}: {reason}") from error


def _of_itk(
    name: str, parameters: NDArray[np.float64], fixed: NDArray[np.float64], n: int
) -> NDArray[np.float64]:
    """For the kinds that SimpleITK has no class for; itk takes a second to load."""
    import itk

    family = getattr(itk, name)
    one = (family[itk.D, n] if len(LINEAR_KINDS[name]) > 1 else family[itk.D]).New()
    sizes = int(one.GetNumberOfParameters()), int(one.GetFixedParameters().GetSize())
    _check_counts(name, parameters, sizes[0], fixed, sizes[1])
    one.SetFixedParameters(_numbers(itk, fixed))
    one.SetParameters(_numbers(itk, parameters))
    matrix = np.eye(n + 1)
    matrix[:n, :n] = itk.array_from_matrix(one.GetMatrix())
    matrix[:n, n] = list(one.GetOffset())
    return matrix


def _numbers(itk: Any, values: NDArray[np.float64]) -> Any:
    kept = itk.OptimizerParameters[itk.D](len(values))
    for k, value in enumerate(values.tolist()):
        kept.SetElement(k, value)
    return kept


def _check_counts(
    name: str,
    parameters: NDArray[np.float64],
    count: int,
    fixed: NDArray[np.float64],
    fixed_count: int,
) -> None:
    if (len(parameters), len(fixed)) != (count, fixed_count):
        raise InputError(
            f"a {name} has {count} parameters and {fixed_count} fixed parameters; got "
            f"{len(parameters)} and {len(fixed)}: is the file whole?"
        )

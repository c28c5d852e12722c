"""Smoothing operators for vector fields.

The kernel (a, b, c, d) is the inverse of the d-th power of ``c - (a/2) laplacian - (b/2) grad div``
on a lattice. At wave number k (radians per unit length) its discrete form uses

``|k|^2 = sum_i (1 - cos(k_i h_i)) / h_i^2``        (h_i: spacing)

and multiplies the part of the field across k by ``(c + a |k|^2)^-d`` and the part along k by
``(c + (a + b) |k|^2)^-d``. The mean of the field is multiplied by ``c^-d``.

Under scaling: a and b are areas (unit^2), c and d are pure numbers. A lattice whose spacing is s
times as large gives the same result in voxels with ``(a s^2, b s^2, c, d)``. At a spacing of 1 and
b = 0 the operator is that of the 2021 code, which had no spacing inside the cosine.

Fields are continued by reflection: with b = 0 through the cosine transform, else by reflected
padding as wide as the kernel reaches, so nothing wraps around to the opposite face.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from itkstream.errors import InputError
from itkstream.numerics.compiling import compiled
from itkstream.numerics.threads import get_threads, over_slabs

__all__ = ["SmoothingKernel", "affine_trend", "smooth_field", "squared_waves"]

REACH = 6.0
"""Decay lengths of the kernel that padding covers: exp(-6) is 0.25 %."""

# To hand fewer voxels to two threads takes longer than to transform them: 0.07 ms or 0.10 of 24^3,
# 0.18 or 0.20 of 256 x 256, but 1.3 or 0.8 of 64^3.
_SHARED_VOXELS = 1e5

_AT_ONCE = 3


@dataclass(frozen=True)
class SmoothingKernel:
    """A smoothing operator, by its four numbers.

    Parameters
    ----------
    a : float
        Strength of the laplacian, unit^2; at least 0.
    b : float
        Strength of the gradient of the divergence, unit^2; at least 0.
    c : float
        Weight of the identity; above 0. With c = 1 a constant field is unchanged.
    d : float
        Power; at least 0. Zero is no smoothing.

    Raises
    ------
    InputError
        For a value out of range; the message names it.
    """

    a: float
    b: float
    c: float
    d: float

    def __post_init__(self) -> None:
        for name, least in (("a", 0.0), ("b", 0.0), ("c", 1e-12), ("d", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                bound = "above 0" if name == "c" else "at least 0"
                raise InputError(
                    f"the smoothing kernel's {name} must be finite and {bound}; got {value}"
                )

    @property
    def is_identity(self) -> bool:
        """Whether the kernel leaves every field as it is."""
        return self.d == 0 or (self.a == 0 and self.b == 0 and self.c == 1)

    def scaled(self, length: float) -> SmoothingKernel:
        """The same kernel on a lattice whose spacing is `length` times as large."""
        return SmoothingKernel(self.a * length**2, self.b * length**2, self.c, self.d)


def smooth_field(
    field: NDArray[np.floating[Any]],
    spacing: Sequence[float],
    kernel: SmoothingKernel,
    lattice_spacing: Sequence[float] | None = None,
    spare_affine: bool = False,
    overwrite: bool = False,
) -> NDArray[np.float32]:
    """Smooth a vector field; the affine field nearest to it may be spared.

    Smoothing by reflection flattens a field towards the borders; an affine needs no smoothing. The
    result may be written over the field, if that is allowed: 9 components of 128 x 150 x 128
    vectors take two thirds of the time.

    Shapes: `field` shape + (components,).
    """
    vectors = np.ascontiguousarray(field, np.float32)
    if kernel.is_identity:
        return vectors if overwrite else vectors.copy()
    steps = spacing if lattice_spacing is None else lattice_spacing
    if kernel.b == 0:
        smoother = _CosineSmoother.of(vectors.shape[:-1], spacing, kernel, steps)
        smooth = smoother.spare if spare_affine else smoother.smooth
        return _by_components(vectors, smooth, vectors if overwrite else np.empty_like(vectors))
    if vectors.shape[-1] != vectors.ndim - 1:
        raise InputError(
            "a kernel with b > 0 couples the components: the field needs one per axis, "
            f"{vectors.ndim - 1}; got {vectors.shape[-1]}"
        )
    if not spare_affine:
        return _smooth_coupled(vectors, spacing, kernel, steps)
    trend: NDArray[np.float32] = affine_trend(vectors)
    return trend + _smooth_coupled(vectors - trend, spacing, kernel, steps)


def affine_trend(field: Any, xp: Any = np) -> Any:
    """The affine field nearest to one; `xp` is the namespace of its arrays."""
    parts = [affine_part(field[..., c], xp) for c in range(field.shape[-1])]
    return xp.stack(parts, axis=-1)


def affine_part(values: Any, xp: Any = np) -> Any:
    """The affine function nearest to values on a lattice; `xp` is the namespace of the array."""
    rows, axes = values.sum(axis=-1, dtype=np.float64), tuple(range(values.ndim - 1))
    sums = [rows.sum(axis=tuple(set(axes) - {axis})) for axis in axes]
    trend = (rows.sum() / values.size).astype(np.float32)
    for axis, profile in enumerate([*sums, values.sum(axis=axes, dtype=np.float64)]):
        x = np.arange(len(profile)) - (len(profile) - 1) / 2
        along = xp.asarray(x)
        slope = along @ profile * len(profile) / values.size / max(x @ x, 1.0)
        place = [1] * values.ndim
        place[axis] = -1
        trend = trend + (along * slope).astype(np.float32).reshape(place)
    return trend


def _by_components(
    vectors: NDArray[np.float32],
    smooth: Callable[[NDArray[np.float32]], None],
    out: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Smooth the components of a field, each in place where its values lie side by side.

    Three at a time are laid so: one by one, a field is read from end to end for each (9 components
    of 128 x 150 x 128 vectors, two threads: 0.33 s; so 0.22 s), and all of them take its memory
    once more. Compiled, by all threads, they are laid apart and together in 0.05 s, by numpy in
    0.09.
    """
    planes = len(vectors)
    rows, rows_out = (v.reshape(planes, -1, vectors.shape[-1]) for v in (vectors, out))
    for first in range(0, vectors.shape[-1], _AT_ONCE):
        count = min(_AT_ONCE, vectors.shape[-1] - first)
        parts = np.empty((count, *vectors.shape[:-1]), np.float32)
        apart = parts.reshape(count, planes, -1)
        over_slabs(partial(_lay_apart, rows, first, apart), planes)
        for part in parts:
            # What points along the depth of a plane is 0, and stays so.
            if part.any():
                smooth(part)
        over_slabs(partial(_lay_together, apart, first, rows_out), planes)
    return out


@compiled
def _lay_apart(vectors, first, parts, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for j in range(vectors.shape[1]):
            for c in range(parts.shape[0]):
                parts[c, i, j] = vectors[i, j, first + c]


@compiled
def _lay_together(parts, first, vectors, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for j in range(vectors.shape[1]):
            for c in range(parts.shape[0]):
                vectors[i, j, first + c] = parts[c, i, j]


@dataclass(frozen=True, eq=False)
class _CosineSmoother:
    """A kernel without grad-div term as a product with the spectrum of cosines, of one shape."""

    kernel: SmoothingKernel
    waves: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        spacing: Sequence[float],
        kernel: SmoothingKernel,
        steps: Sequence[float],
    ) -> _CosineSmoother:
        """With lengths that are quick to transform; reflection continues values to these."""
        padded = [fft.next_fast_len(n, real=True) for n in shape]
        waves = (squared_waves(n, h, s) for n, h, s in zip(padded, spacing, steps, strict=True))
        return cls(kernel, tuple(waves))

    def smooth(self, values: NDArray[np.float32]) -> None:
        """Smooth values in place."""
        padded = [len(w) for w in self.waves]
        shared = math.prod(padded) >= _SHARED_VOXELS
        # Nothing is to be smoothed along the depth of a plane.
        how: dict[str, Any] = {"axes": [k for k, n in enumerate(padded) if n > 1] or [0]}
        how |= {"overwrite_x": True, "workers": get_threads() if shared else 1}
        widths = [(0, m - n) for n, m in zip(values.shape, padded, strict=True)]
        spectrum = fft.dctn(_reflected(values, widths), **how)
        waves = [np.zeros(1, np.float32)] * (3 - len(padded)) + list(self.waves)
        _damp(spectrum.reshape([len(w) for w in waves]), waves, self.kernel)
        values[...] = fft.idctn(spectrum, **how)[tuple(slice(n) for n in values.shape)]

    def spare(self, values: NDArray[np.float32]) -> None:
        """Smooth values in place but for their affine part."""
        trend = affine_part(values)
        values -= trend
        self.smooth(values)
        values += trend


def _smooth_coupled(
    vectors: NDArray[np.float32],
    spacing: Sequence[float],
    kernel: SmoothingKernel,
    steps: Sequence[float],
) -> NDArray[np.float32]:
    shape, axes = vectors.shape[:-1], tuple(range(vectors.ndim - 1))
    widths = [_margin(n, h, kernel) for n, h in zip(shape, spacing, strict=True)]
    padded = [n + a + b for n, (a, b) in zip(shape, widths, strict=True)]
    spectra = [fft.rfftn(_reflected(vectors[..., c], widths), workers=get_threads()) for c in axes]
    waves = []
    for axis, (n, h) in enumerate(zip(padded, spacing, strict=True)):
        last = axis == axes[-1]
        omega = 2 * np.pi * (fft.rfftfreq(n, h) if last else fft.fftfreq(n, h))
        place = [1] * len(shape)
        place[axis] = -1
        waves.append((omega.reshape(place), steps[axis], n))
    _project(spectra, waves, kernel)
    out = np.empty_like(vectors)
    crop = tuple(slice(a, a + n) for n, (a, _) in zip(shape, widths, strict=True))
    for c, spectrum in enumerate(spectra):
        out[..., c] = fft.irfftn(spectrum, s=padded, workers=get_threads())[crop]
    return out


def _project(
    spectra: list[NDArray[np.complex64]],
    waves: list[tuple[NDArray[np.float64], float, int]],
    kernel: SmoothingKernel,
) -> None:
    """Damp the parts along and across the wave vector, each by its own eigenvalue."""
    square: Any = np.float64(0)
    components = []
    for omega, step, n in waves:
        size = _squares(omega, step)
        square = square + size
        component = np.sign(omega) * np.sqrt(size)
        if n % 2 == 0:
            # Plus and minus the Nyquist frequency are one sample: its direction has no sign.
            nyquist = np.argmax(np.abs(omega))
            component.flat[nyquist] = 0.0
        components.append(component)
    length = sum(k * k for k in components)
    across = ((kernel.c + kernel.a * square) ** -kernel.d).astype(np.float32)
    along = ((kernel.c + kernel.a * square + kernel.b * length) ** -kernel.d).astype(np.float32)
    divergence = sum(k.astype(np.float32) * s for k, s in zip(components, spectra, strict=True))
    divergence *= (along - across) / np.maximum(length, 1e-30).astype(np.float32)
    for k, spectrum in zip(components, spectra, strict=True):
        spectrum *= across
        spectrum += k.astype(np.float32) * divergence


def squared_waves(n: int, spacing: float, step: float) -> NDArray[np.float32]:
    """|k|^2 of the cosines on n nodes of a spacing, by differences over a step."""
    omega = np.asarray(np.pi * np.arange(n) / (n * spacing), np.float64)
    return _squares(omega, step).astype(np.float32)


def _squares(omega: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    return np.asarray((1.0 - np.cos(omega * step)) / step**2)


def _margin(n: int, spacing: float, kernel: SmoothingKernel) -> tuple[int, int]:
    """Padding before and after, at least the kernel's reach in total, to a fast length."""
    decay = math.sqrt((kernel.a + kernel.b) * max(kernel.d, 1.0) / (2 * kernel.c))
    reach = math.ceil(REACH * decay / spacing)
    total = fft.next_fast_len(n + 2 * reach, real=True) - n
    return total // 2, total - total // 2


def _reflected(values: NDArray[np.float32], widths: list[tuple[int, int]]) -> NDArray[np.float32]:
    if not any(map(any, widths)):
        return values
    return np.pad(values, widths, mode="symmetric")


def _damp(
    spectrum: NDArray[np.float32], waves: list[NDArray[np.float32]], kernel: SmoothingKernel
) -> None:
    a, c, d = np.float32(kernel.a), np.float32(kernel.c), kernel.d
    whole = int(d) if d == int(d) and d <= 8 else -1
    over_slabs(
        lambda i, j: _damp_planes(spectrum, waves[0], waves[1], waves[2], (a, c, d, whole), i, j),
        spectrum.shape[0],
    )


@compiled
def _damp_planes(spectrum, x, y, z, kernel, start, stop):  # type: ignore[no-untyped-def]
    a, c, d, whole = kernel
    for i in range(start, stop):
        for j in range(spectrum.shape[1]):
            base = c + a * (x[i] + y[j])
            for k in range(spectrum.shape[2]):
                value = base + a * z[k]
                if whole >= 0:
                    # Whole powers, the usual case, by multiplication: pow is ten times slower.
                    power = np.float32(1.0)
                    for _ in range(whole):
                        power *= value
                    spectrum[i, j, k] /= power
                else:
                    spectrum[i, j, k] *= value ** (-d)

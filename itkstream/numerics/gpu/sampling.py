"""Images and fields at mapped positions, on a GPU: the bits that the processors give.

Images and vectors lie there as a whole, the output and what moves its voxels some planes at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.checks import floating_dtype
from itkstream.numerics.gpu.backend import Backend
from itkstream.numerics.gpu.dispatch import in_batches

__all__ = ["Placement", "launch_vectors", "sample_vectors", "sampling_bytes", "warp_image"]

# Values of another type than the output's are mixed as doubles.
_WIDE = 8


@dataclass(frozen=True, eq=False)
class Placement:
    """Voxels of an output as they lie in an image or field, in three dimensions.

    Parameters
    ----------
    start, whole : tuple of int, (3,)
        Where the part that is here begins, and the shape of the whole.
    index : tuple of float, (15,)
        The map from index to index, row by row, and the index of the first voxel of the output.
    vector : tuple of float, (9,)
        The map from vectors to indices.
    moves : ndarray, output shape + (n,)
        Vectors by which the voxels are moved first; of length 0 for none. An array of the engine.
    """

    start: tuple[int, ...]
    whole: tuple[int, ...]
    index: tuple[float, ...]
    vector: tuple[float, ...]
    moves: Any

    @property
    def window(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The start of the part and the shape of the whole."""
        return self.start, self.whole

    @property
    def stretches(self) -> bool:
        """Whether the axes are parallel and nothing moves."""
        apart = [self.index[4 * row + k] for row in range(3) for k in range(3) if k != row]
        return not self.moves.shape[0] and not any(apart)

    def planes(self, begin: int, moves: Any) -> Placement:
        """The placement of an output that begins so many planes later, moved by these vectors."""
        index = (*self.index[:12], self.index[12] + begin, *self.index[13:])
        return replace(self, index=index, moves=moves)


def sampling_bytes(values: NDArray[Any], placement: Placement, out: NDArray[Any]) -> float:
    """Memory of a device without which it is of no use to sample: for one plane of the output."""
    plane = placement.moves[:1].nbytes + out[:1].nbytes
    if values.dtype == out.dtype:
        return values.nbytes + plane
    return values.nbytes + (values.size + out[:1].size) * _WIDE + plane


def warp_image(
    backend: Backend,
    interpolator: str,
    image: NDArray[Any],
    placement: Placement,
    background: Any,
    out: NDArray[Any],
) -> None:
    """Sample an image, "linear" or "nearest", into an array of its own.

    For "nearest" image and output are of one type, which may be any of up to 8 bytes; for "linear"
    they are of any, and the output float32 or float64.
    """
    if interpolator == "nearest":
        bits = np.dtype(f"u{out.itemsize}")
        kernel, kind = f"warp_nearest_{8 * out.itemsize}", bits
        source, target = backend.put(image.view(bits)), out.view(bits)
        edge = backend.put(np.array([background], out.dtype).view(bits))
    else:
        kind = np.promote_types(out.dtype, floating_dtype(image.dtype))
        kernel, target = f"warp_linear_{8 * kind.itemsize}", out
        source = backend.put(image).astype(kind, copy=False)
        edge = backend.put(np.array([background], out.dtype).astype(kind))

    def fill(start: int, stop: int) -> None:
        part = placement.planes(start, backend.put(placement.moves[start:stop]))
        shape = target[start:stop].shape
        found = backend.xp.empty(shape, kind)
        numbers = _numbers(backend, part, source.shape, shape, 1)
        backend.launch(kernel, shape[::-1], source, *numbers, part.moves, edge, found)
        target[start:stop] = backend.get(found.astype(target.dtype, copy=False))

    in_batches(len(target), fill, backend)


def sample_vectors(
    backend: Backend, field: NDArray[np.float32], placement: Placement, out: NDArray[np.float32]
) -> None:
    """Sample a field (a, b, c, n) into an array of its own, (x, y, z, n)."""
    source = backend.put(field)

    def fill(start: int, stop: int) -> None:
        part = placement.planes(start, backend.put(placement.moves[start:stop]))
        found = backend.xp.empty(out[start:stop].shape, np.float32)
        launch_vectors(backend, source, part, found)
        out[start:stop] = backend.get(found)

    in_batches(len(out), fill, backend)


def launch_vectors(backend: Backend, field: Any, placement: Placement, out: Any) -> None:
    """As `sample_vectors`, from and to arrays of the device."""
    shape = out.shape[:3]
    numbers = _numbers(backend, placement, field.shape[:3], shape, field.shape[3])
    if placement.stretches:
        backend.launch("stretch_vectors", shape[::-1], field, *numbers, out)
    else:
        backend.launch("sample_vectors", shape[::-1], field, *numbers, placement.moves, out)


def _numbers(
    backend: Backend,
    placement: Placement,
    part: tuple[int, ...],
    shape: tuple[int, ...],
    components: int,
) -> tuple[Any, Any]:
    """Sizes and map as the kernels take them."""
    moves = placement.moves.shape[3] if placement.moves.shape[0] else 0
    sizes = [*part, *placement.start, *placement.whole, *shape, moves, components]
    maps = np.array([*placement.index, *placement.vector])
    return backend.put(np.array(sizes, np.int32)), backend.put(maps)

"""Likeness of two images whose contrasts differ: self-similarity descriptors, and their pull.

A voxel is described by how alike the small patches around it are, two at a time, and not by its
intensity: an edge is described alike whichever side is bright, in whichever stain.

Heinrich et al., Medical Image Analysis 16 (2012) 1423-1435, doi:10.1016/j.media.2012.05.008, for
the descriptors; Heinrich et al., MICCAI (2013) 187-194, doi:10.1007/978-3-642-40811-3_24, for the
pairs of neighbours, which leave the noise of the voxel itself out.

Descriptors are bytes, all channels of a voxel side by side: sums over voxels are whole numbers,
and so the same however threads share the planes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from itkstream.numerics.threads import over_slabs

__all__ = ["PatchPairs", "SelfSimilarity", "describe", "likeness"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ALIKE = 254
"""Byte of the pair of patches that are most alike around a voxel."""

NO_VALUE = 255
"""Byte of voxels that do not count, in all channels."""

FLOOR = 0.1
"""Share of an image's mean contrast that is added to that of each place, so that where there is
nothing but noise all pairs look alike."""

_TABLE = 4096

ARM_VOX = 1
PATCH_VOX = 1


@dataclass(frozen=True, eq=False)
class PatchPairs:
    """The pairs of patches that are compared around a voxel.

    Each patch lies a step along one axis, its partner a step along another: 12 pairs in volumes, 4
    in planes.

    Parameters
    ----------
    offsets : ndarray, (channels, 2, 3), int64
        Voxels from the middle to the patches of each pair.
    radius : tuple of int
        Voxels per axis from the middle of a patch to its border.
    """

    offsets: NDArray[np.int64]
    radius: tuple[int, ...]

    @classmethod
    def along(
        cls, shape: tuple[int, ...], steps: tuple[int, ...], radius: tuple[int, ...]
    ) -> PatchPairs:
        """The pairs along those axes of a lattice that are more than a voxel long."""
        long = [axis for axis in range(3) if shape[axis] > 1]
        axes = long if len(long) > 1 else range(3)
        arms = [(a, s * steps[a] * np.eye(3, dtype=np.int64)[a]) for a in axes for s in (1, -1)]
        pairs = [(p, q) for (a, p), (b, q) in itertools.combinations(arms, 2) if a != b]
        within = tuple(r if n > 1 else 0 for r, n in zip(radius, shape, strict=True))
        return cls(np.array(pairs, np.int64), within)

    @property
    def reach(self) -> tuple[int, ...]:
        """Voxels per axis that a descriptor looks beyond its voxel."""
        arms = np.abs(self.offsets).max(axis=(0, 1))
        return tuple(int(a) + r for a, r in zip(arms, self.radius, strict=True))


def mean_contrast(image: Floats) -> float:
    """Mean squared difference of voxels next to each other, over all axes."""
    sums, count = 0.0, 0
    for axis in range(image.ndim):
        squares = np.square(np.diff(image, axis=axis))
        known = np.isfinite(squares)
        sums += float(squares.sum(where=known, dtype=np.float64))
        count += int(known.sum())
    return sums / count if count else 0.0


def describe(image: Floats, pairs: PatchPairs, contrast: float) -> Bytes:
    """Describe every voxel of a 3-D image by its patches; NaN within reach leaves it out.

    `contrast` is that of the image, see `mean_contrast`. Returns shape + (channels,).
    """
    padded = np.pad(image, [(r, r) for r in pairs.reach], mode="edge")
    patch = np.prod([2 * r + 1 for r in pairs.radius])
    floor = np.float32(max(FLOOR * contrast * patch, 1e-30))
    channels = len(pairs.offsets)
    # Differences are at most so many times their own mean as there are channels.
    table = np.rint(ALIKE * np.exp(-(np.arange(_TABLE) + 0.5) * channels / _TABLE))
    table[0] = ALIKE
    out = np.empty((*image.shape, channels), np.uint8)
    places = pairs.offsets + np.array(pairs.reach)
    radius = np.array(pairs.radius, np.int64)
    over_slabs(
        lambda a, b: _describe_planes(
            padded, (places, radius), (floor, table.astype(np.uint8)), out, a, b
        ),
        image.shape[0],
    )
    return out


def likeness(a: Bytes, b: Bytes) -> float:
    """Share of the variance of two images' descriptors that they have in common.

    1 for images described alike, 0 for what chance gives; 0 where no voxel shows texture.
    """
    totals = np.zeros((a.shape[0], 1 + 5 * a.shape[3]), np.int64)
    over_slabs(lambda i, j: _add_products(a, b, totals, i, j), a.shape[0])
    return _share(totals.sum(axis=0))[0]


class SelfSimilarity:
    """Descriptors of a fixed image and of a moving one as it is warped, and their pull."""

    def __init__(self, fixed: Floats, moving: Floats, pairs: PatchPairs) -> None:
        self._pairs = pairs
        self._contrast = mean_contrast(moving)
        self._fixed = describe(fixed, pairs, mean_contrast(fixed))
        self._warped = self._fixed
        self._variance = 0.0

    def compare(self, warped: Floats) -> float:
        """Describe the warped image; how alike both are, 0 where nothing can be compared."""
        self._warped = self._fixed
        self._warped = describe(warped, self._pairs, self._contrast)
        totals = np.zeros((warped.shape[0], 1 + 5 * len(self._pairs.offsets)), np.int64)
        over_slabs(lambda i, j: _add_products(self._fixed, self._warped, totals, i, j), len(warped))
        share, self._variance = _share(totals.sum(axis=0))
        return share

    def collect(self, spacing: tuple[float, ...], stride: tuple[int, ...], out: Floats) -> None:
        """Mean force, and Gauss-Newton matrix if wanted, of the voxels of each node.

        Shapes: `out` (a, b, c, 3 or 9).
        """
        h = 2 * np.asarray(spacing)
        scales = [1 / h, 1 / h**2, 1 / (h * np.roll(h, -1))[[0, 2, 1]]]
        scale = np.concatenate(scales)[: out.shape[3]] / max(self._variance, 1e-30)
        steps = np.asarray(stride, np.int64)
        over_slabs(
            lambda a, b: _collect_planes((self._fixed, self._warped), steps, scale, out, a, b),
            out.shape[0],
        )


def _share(totals: NDArray[np.int64]) -> tuple[float, float]:
    """The share of variance in common, and the variance of a voxel's descriptor."""
    # Numbers of any length: products of sums over a large block leave 64 bits.
    count, rows = int(totals[0]), totals[1:].reshape(5, -1).T.tolist()
    spread = sum(count * (aa + bb) - a * a - b * b for a, b, aa, bb, _ in rows)
    if not spread:
        return 0.0, 0.0
    common = 2 * sum(count * ab - a * b for a, b, _, _, ab in rows)
    apart = sum((a - b) ** 2 for a, b, *_ in rows)
    return common / (spread + apart), spread / (2 * count**2)


@njit(nogil=True, cache=True)
def _patch_plane(padded, x, places, radius, squares, sums):  # type: ignore[no-untyped-def]
    """Squared differences of a pair in plane x, added up over the patch within the plane."""
    a, b = places
    first, second = padded[x + a[0]], padded[x + b[0]]
    ny, nz = sums.shape
    for j in range(ny + 2 * radius[1]):
        p = first[j + a[1] - radius[1]]
        q = second[j + b[1] - radius[1]]
        for k in range(nz + 2 * radius[2]):
            d = p[k + a[2] - radius[2]] - q[k + b[2] - radius[2]]
            squares[j, k] = d * d
    for j in range(ny):
        for k in range(nz):
            sums[j, k] = 0.0
        for dj in range(2 * radius[1] + 1):
            line = squares[j + dj]
            for dk in range(2 * radius[2] + 1):
                for k in range(nz):
                    sums[j, k] += line[k + dk]


@njit(nogil=True, cache=True)
def _encode_line(sums, floor, table, out):  # type: ignore[no-untyped-def]
    """From the sums over the patches of all pairs to the bytes of a line of voxels."""
    channels, nz = sums.shape
    scale = np.float32(table.shape[0]) / np.float32(channels)
    for k in range(nz):
        least = sums[0, k]
        total = sums[0, k]
        for c in range(1, channels):
            least = min(least, sums[c, k])
            total += sums[c, k]
        if total != total:
            for c in range(channels):
                out[k, c] = NO_VALUE
            continue
        factor = scale / (total / np.float32(channels) - least + floor)
        for c in range(channels):
            place = int((sums[c, k] - least) * factor)
            out[k, c] = table[min(place, table.shape[0] - 1)]


@njit(nogil=True, cache=True)
def _describe_planes(padded, pairs, scales, out, start, stop):  # type: ignore[no-untyped-def]
    places, radius = pairs
    floor, table = scales
    ny, nz, channels = out.shape[1:]
    deep = 2 * radius[0] + 1
    squares = np.empty((ny + 2 * radius[1], nz + 2 * radius[2]), np.float32)
    planes = np.empty((deep, channels, ny, nz), np.float32)
    line = np.empty((channels, nz), np.float32)
    for i in range(start, stop):
        for x in range(i - radius[0] if i == start else i + radius[0], i + radius[0] + 1):
            for c in range(channels):
                _patch_plane(padded, x, places[c], radius, squares, planes[x % deep, c])
        for j in range(ny):
            line[:] = 0.0
            for d in range(deep):
                for c in range(channels):
                    for k in range(nz):
                        line[c, k] += planes[d, c, j, k]
            _encode_line(line, floor, table, out[i, j])


@njit(nogil=True, cache=True)
def _add_products(a, b, totals, start, stop):  # type: ignore[no-untyped-def]
    """Count the voxels that both images describe, and add up bytes and their products, by plane."""
    channels = a.shape[3]
    for i in range(start, stop):
        for j in range(a.shape[1]):
            for k in range(a.shape[2]):
                if a[i, j, k, 0] == NO_VALUE or b[i, j, k, 0] == NO_VALUE:
                    continue
                totals[i, 0] += 1
                for c in range(channels):
                    p, q = np.int64(a[i, j, k, c]), np.int64(b[i, j, k, c])
                    totals[i, 1 + c] += p
                    totals[i, 1 + channels + c] += q
                    totals[i, 1 + 2 * channels + c] += p * p
                    totals[i, 1 + 3 * channels + c] += q * q
                    totals[i, 1 + 4 * channels + c] += p * q


@njit(nogil=True, cache=True)
def _collect_line(images, i, j, stride, sums):  # type: ignore[no-untyped-def]
    """Add one line of voxels to the sums of its nodes, in bytes and half voxels."""
    fixed, warped = images
    nx, ny, nz, channels = warped.shape
    counts = warped[:, :, :, 0]
    for k in range(nz):
        if fixed[i, j, k, 0] == NO_VALUE or counts[i, j, k] == NO_VALUE:
            continue
        x0 = i - 1 if i > 0 and counts[i - 1, j, k] != NO_VALUE else i
        x1 = i + 1 if i < nx - 1 and counts[i + 1, j, k] != NO_VALUE else i
        y0 = j - 1 if j > 0 and counts[i, j - 1, k] != NO_VALUE else j
        y1 = j + 1 if j < ny - 1 and counts[i, j + 1, k] != NO_VALUE else j
        z0 = k - 1 if k > 0 and counts[i, j, k - 1] != NO_VALUE else k
        z1 = k + 1 if k < nz - 1 and counts[i, j, k + 1] != NO_VALUE else k
        # A one-sided difference spans half of what a central one does.
        fx, fy, fz = 3 - max(x1 - x0, 1), 3 - max(y1 - y0, 1), 3 - max(z1 - z0, 1)
        node = sums[k // stride]
        for c in range(channels):
            r = np.int64(fixed[i, j, k, c]) - np.int64(warped[i, j, k, c])
            x = (np.int64(warped[x1, j, k, c]) - np.int64(warped[x0, j, k, c])) * fx
            y = (np.int64(warped[i, y1, k, c]) - np.int64(warped[i, y0, k, c])) * fy
            z = (np.int64(warped[i, j, z1, c]) - np.int64(warped[i, j, z0, c])) * fz
            node[0] += r * x
            node[1] += r * y
            node[2] += r * z
            node[3] += x * x
            node[4] += y * y
            node[5] += z * z
            node[6] += x * y
            node[7] += x * z
            node[8] += y * z


@njit(nogil=True, cache=True)
def _collect_planes(images, stride, scale, out, start, stop):  # type: ignore[no-untyped-def]
    nx, ny, nz = images[0].shape[:3]
    sums = np.empty((out.shape[2], 9), np.int64)
    for a in range(start, stop):
        for b in range(out.shape[1]):
            sums[:] = 0
            x1 = min((a + 1) * stride[0], nx)
            y1 = min((b + 1) * stride[1], ny)
            for i in range(a * stride[0], x1):
                for j in range(b * stride[1], y1):
                    _collect_line(images, i, j, stride[2], sums)
            lines = (x1 - a * stride[0]) * (y1 - b * stride[1])
            for k in range(out.shape[2]):
                count = lines * (min((k + 1) * stride[2], nz) - k * stride[2])
                for c in range(out.shape[3]):
                    out[a, b, k, c] = sums[k, c] * scale[c] / count

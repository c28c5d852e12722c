"""Likeness of two images whose contrasts differ: self-similarity descriptors, and their pull.

A voxel is described by how alike the small patches around it are, two at a time, and not by its
intensity: an edge is described alike whichever side is bright, in whichever stain.

Heinrich et al., Medical Image Analysis 16 (2012) 1423-1435, doi:10.1016/j.media.2012.05.008, for
the descriptors; Heinrich et al., MICCAI (2013) 187-194, doi:10.1007/978-3-642-40811-3_24, for the
pairs of neighbours, which leave the noise of the voxel itself out.

Two images are compared by the squared correlation of their descriptors in box windows, all channels
together, as `correlation` compares intensities. The force at a voxel is that of both images moved
half a step, towards each other: where they agree it vanishes, however noise weakens the descriptors
of one of them. Plain differences of the same descriptors do as well on nuclei in random contrast
(0.10 to 0.15 voxel), and less on two real stains (median and 95th percentile 1.75 and 3.45 against
1.54 and 3.11 voxels) and on cell membranes (1.01 and 2.51 against 0.89 and 2.19).

Both images are described on the fixed lattice, the warped one anew in each iteration. Descriptors
of the moving image, warped as intensities are, led as far (0.11, 0.10 and 0.17 voxel on nuclei
against 0.11, 0.10 and 0.15, and 1.47 and 3.32 on the stains). But they keep the axes of their
patches however the affine turns, and the twelve channels take 354 ns a voxel to warp, 145 to
compute. Descriptors are bytes: with those of both images a block takes 75 bytes a voxel, without
them 44. An iteration takes four times as long as one by intensities, 0.4 µs a voxel on one core.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.compiling import compiled, expanded, helper
from itkstream.numerics.deformation.correlation import LEAST_FILLED, next_line
from itkstream.numerics.deformation.force import mean_line
from itkstream.numerics.threads import over_slabs

__all__ = ["ARM_VOX", "PATCH_VOX", "PatchPairs", "SelfSimilarity", "describe", "mean_contrast"]

Bytes = NDArray[np.int8]
Floats = NDArray[np.float32]

ALIKE = 254
"""Twice the byte of the most alike pair of patches around a voxel, before the mean is taken off."""

NO_VALUE = -128
"""Byte of voxels that do not count, in all channels."""

FLOOR = 0.5
"""Share of an image's mean contrast that is added to that of each place.

All pairs look alike where there is nothing but noise. A fifth of it leaves 1.1 to 1.2 times the
error on noisy nuclei; four times as much 0.85 to 1.0 times, but 1.3 times on two real stains, as
long as the field is soft.
"""

ARM_VOX = PATCH_VOX = 1
"""Voxels of a level from a voxel to its patches, and from their middle to their border.

Steps of two leave 1.0 to 1.3 times the error on nuclei, larger patches 1.1 to 1.5 times.
"""

_TABLE = 4096


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

    The mean over the channels, which is a measure of noise, is taken off. `contrast` is that of the
    image, see `mean_contrast`. Returns shape + (channels,).
    """
    padded = np.pad(image, [(r, r) for r in pairs.reach], mode="edge")
    patch = np.prod([2 * r + 1 for r in pairs.radius])
    floor = np.float32(max(FLOOR * contrast * patch, 1e-30))
    channels = len(pairs.offsets)
    # Differences are at most so many times their own mean as there are channels.
    table = np.rint(ALIKE * np.exp(-(np.arange(_TABLE) + 0.5) * channels / _TABLE))
    table[0] = ALIKE
    out = np.empty((*image.shape, channels), np.int8)
    places = pairs.offsets + np.array(pairs.reach)
    radius = np.array(pairs.radius, np.int64)
    over_slabs(
        lambda a, b: _describe_planes(
            padded, (places, radius), (floor, table.astype(np.int64)), out, a, b
        ),
        image.shape[0],
    )
    return out


class SelfSimilarity:
    """Descriptors of a fixed image and of a moving one as it is warped, and their pull.

    `radius` is that of the window in which they are compared, in voxels per axis.
    """

    def __init__(
        self, fixed: Floats, moving: Floats, pairs: PatchPairs, radius: tuple[int, ...]
    ) -> None:
        self._pairs = pairs
        self._contrast = mean_contrast(moving)
        self._fixed = describe(fixed, pairs, mean_contrast(fixed))
        self._warped = self._fixed
        self._window = np.array(radius, np.int64)
        self._scales = np.empty((3, *fixed.shape), np.float32)

    def compare(self, warped: Floats) -> float:
        """Mean squared local correlation of the descriptors of the warped image and the fixed."""
        # The old ones go before the new ones come.
        self._warped = self._fixed
        self._warped = describe(warped, self._pairs, self._contrast)
        shape = warped.shape
        cut = np.prod([min(2 * r + 1, n) for r, n in zip(self._window, shape, strict=True)])
        least, totals = max(2.0, LEAST_FILLED * cut), np.zeros((shape[0], 2))
        images = self._fixed, self._warped
        over_slabs(
            lambda i, j: _compare_planes(images, self._window, least, self._scales, totals, i, j),
            shape[0],
        )
        total, count = totals.sum(axis=0)
        return float(total / count) if count else 0.0

    def collect(self, spacing: tuple[float, ...], stride: tuple[int, ...], out: Floats) -> None:
        """Mean force, and Gauss-Newton matrix if wanted, of the voxels of each node.

        Shapes: `out` (a, b, c, 3 or 9).
        """
        steps, h = np.asarray(stride, np.int64), 0.5 / np.asarray(spacing, np.float32)
        images = self._fixed, self._warped
        over_slabs(
            lambda a, b: _collect_planes(images, self._scales, h, steps, out, a, b), out.shape[0]
        )


@helper
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


@helper
def _encode_line(sums, floor, table, out):  # type: ignore[no-untyped-def]
    """From the sums over the patches of all pairs to the bytes of a line of voxels."""
    channels, nz = sums.shape
    scale = np.float32(table.shape[0]) / np.float32(channels)
    codes = np.empty(channels, np.int64)
    for k in range(nz):
        least = sums[0, k]
        total = sums[0, k]
        for c in range(1, channels):
            least = min(least, sums[c, k])
            total += sums[c, k]
        if total != total:
            out[k] = NO_VALUE
            continue
        factor = scale / (total / np.float32(channels) - least + floor)
        whole = 0
        for c in range(channels):
            codes[c] = table[min(int((sums[c, k] - least) * factor), table.shape[0] - 1)]
            whole += codes[c]
        for c in range(channels):
            # Half of what is above the mean, to the nearest whole number.
            out[k, c] = (codes[c] * channels - whole + channels) // (2 * channels)


@compiled
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


@helper
def _add_plane(a, b, sign, columns):  # type: ignore[no-untyped-def]
    """Add products of one plane of descriptors, or take them away, to the sums along axis 0."""
    for j in range(a.shape[0]):
        for k in range(a.shape[1]):
            if a[j, k, 0] == NO_VALUE or b[j, k, 0] == NO_VALUE:
                continue
            aa = bb = ab = np.int32(0)
            for c in range(a.shape[2]):
                p, q = np.int32(a[j, k, c]), np.int32(b[j, k, c])
                aa += p * p
                bb += q * q
                ab += p * q
            columns[0, j, k] += sign
            columns[1, j, k] += sign * aa
            columns[2, j, k] += sign * bb
            columns[3, j, k] += sign * ab


@helper
def _next_plane(a, b, radius, i, start, columns):  # type: ignore[no-untyped-def]
    """Sums along axis 0 of the windows centred on plane i, given those of plane i - 1."""
    if i == start:
        for x in range(max(0, i - radius), min(a.shape[0], i + radius)):
            _add_plane(a[x], b[x], 1.0, columns)
    if i + radius < a.shape[0]:
        _add_plane(a[i + radius], b[i + radius], 1.0, columns)
    if i > start and i > radius:
        _add_plane(a[i - radius - 1], b[i - radius - 1], -1.0, columns)


@compiled
def _compare_planes(images, window, least, scales, totals, start, stop):  # type: ignore[no-untyped-def]
    """Squared correlation by plane, and of each voxel the scales of its force and its matrices.

    These are half of r over both deviations, and of r^2 over either variance; 0 where nothing is
    compared.
    """
    a, b = images
    ny, nz = a.shape[1:3]
    columns = np.zeros((4, ny, nz))
    rows, sums = np.zeros((4, nz)), np.zeros((4, nz))
    for i in range(start, stop):
        _next_plane(a, b, window[0], i, start, columns)
        for j in range(ny):
            next_line(columns, j, window, rows, sums)
            for k in range(nz):
                scales[:, i, j, k] = 0.0
                if a[i, j, k, 0] == NO_VALUE or b[i, j, k, 0] == NO_VALUE:
                    continue
                totals[i, 1] += 1
                n, aa, bb, ab = sums[0, k], sums[1, k], sums[2, k], sums[3, k]
                if n >= least and aa > 0.0 and bb > 0.0:
                    totals[i, 0] += ab * ab / (aa * bb)
                    pull = 0.5 * n * ab / (aa * bb)
                    scales[0, i, j, k] = pull
                    scales[1, i, j, k] = pull * ab / aa
                    scales[2, i, j, k] = pull * ab / bb


@expanded
def _counts(a, b, i, j, k):  # type: ignore[no-untyped-def]
    """Whether both images describe a voxel."""
    return a[i, j, k, 0] != NO_VALUE and b[i, j, k, 0] != NO_VALUE


@expanded
def _neighbours(a, b, i, j, k):  # type: ignore[no-untyped-def]
    """Along each axis, the voxels before and after one, or itself where there is none."""
    nx, ny, nz = a.shape[:3]
    x0 = i - 1 if i > 0 and _counts(a, b, i - 1, j, k) else i
    x1 = i + 1 if i < nx - 1 and _counts(a, b, i + 1, j, k) else i
    y0 = j - 1 if j > 0 and _counts(a, b, i, j - 1, k) else j
    y1 = j + 1 if j < ny - 1 and _counts(a, b, i, j + 1, k) else j
    z0 = k - 1 if k > 0 and _counts(a, b, i, j, k - 1) else k
    z1 = k + 1 if k < nz - 1 and _counts(a, b, i, j, k + 1) else k
    return x0, x1, y0, y1, z0, z1


@helper
def _multiply(a, b, voxel, near, found):  # type: ignore[no-untyped-def]
    """Sums over the channels: the pull, and products of the slopes of either image."""
    i, j, k = voxel
    x0, x1, y0, y1, z0, z1 = near
    gx = gy = gz = axx = ayy = azz = axy = axz = ayz = np.int32(0)
    bxx = byy = bzz = bxy = bxz = byz = np.int32(0)
    for c in range(a.shape[3]):
        p, q = np.int32(a[i, j, k, c]), np.int32(b[i, j, k, c])
        x = np.int32(b[x1, j, k, c]) - np.int32(b[x0, j, k, c])
        y = np.int32(b[i, y1, k, c]) - np.int32(b[i, y0, k, c])
        z = np.int32(b[i, j, z1, c]) - np.int32(b[i, j, z0, c])
        u = np.int32(a[x1, j, k, c]) - np.int32(a[x0, j, k, c])
        v = np.int32(a[i, y1, k, c]) - np.int32(a[i, y0, k, c])
        w = np.int32(a[i, j, z1, c]) - np.int32(a[i, j, z0, c])
        gx, gy, gz = gx + p * x - q * u, gy + p * y - q * v, gz + p * z - q * w
        axx, ayy, azz = axx + u * u, ayy + v * v, azz + w * w
        axy, axz, ayz = axy + u * v, axz + u * w, ayz + v * w
        bxx, byy, bzz = bxx + x * x, byy + y * y, bzz + z * z
        bxy, bxz, byz = bxy + x * y, bxz + x * z, byz + y * z
    found[0, 0], found[0, 1], found[0, 2] = gx, gy, gz
    found[1, 0], found[1, 1], found[1, 2] = axx, ayy, azz
    found[1, 3], found[1, 4], found[1, 5] = axy, axz, ayz
    found[2, 0], found[2, 1], found[2, 2] = bxx, byy, bzz
    found[2, 3], found[2, 4], found[2, 5] = bxy, bxz, byz


@helper
def _collect_line(images, scales, line, h, stride, sums):  # type: ignore[no-untyped-def]
    """Add one line of voxels to the sums of its nodes."""
    a, b = images
    i, j = line
    found = np.empty((3, 6), np.int32)
    f = np.empty(3, np.float32)
    for k in range(a.shape[2]):
        if scales[0, i, j, k] == 0.0:
            continue
        near = _neighbours(a, b, i, j, k)
        _multiply(a, b, (i, j, k), near, found)
        # A one-sided difference spans half of what a central one does.
        f[0] = h[0] if near[1] - near[0] == 2 else 2 * h[0]
        f[1] = h[1] if near[3] - near[2] == 2 else 2 * h[1]
        f[2] = h[2] if near[5] - near[4] == 2 else 2 * h[2]
        pull, s, t = scales[0, i, j, k], scales[1, i, j, k], scales[2, i, j, k]
        node = k // stride
        for axis in range(3):
            sums[axis, node] += found[0, axis] * f[axis] * pull
        if sums.shape[0] == 9:
            for axis in range(3):
                sums[3 + axis, node] += (found[1, axis] * s + found[2, axis] * t) * f[axis] ** 2
            sums[6, node] += (found[1, 3] * s + found[2, 3] * t) * f[0] * f[1]
            sums[7, node] += (found[1, 4] * s + found[2, 4] * t) * f[0] * f[2]
            sums[8, node] += (found[1, 5] * s + found[2, 5] * t) * f[1] * f[2]


@compiled
def _collect_planes(images, scales, h, stride, out, start, stop):  # type: ignore[no-untyped-def]
    sums = np.empty((out.shape[3], out.shape[2]), np.float32)
    nx, ny, nz = images[0].shape[:3]
    for a in range(start, stop):
        for b in range(out.shape[1]):
            sums[:] = 0.0
            x1 = min((a + 1) * stride[0], nx)
            y1 = min((b + 1) * stride[1], ny)
            for i in range(a * stride[0], x1):
                for j in range(b * stride[1], y1):
                    _collect_line(images, scales, (i, j), h, stride[2], sums)
            lines = (x1 - a * stride[0]) * (y1 - b * stride[1])
            mean_line(sums, lines, stride[2], nz, out[a, b])

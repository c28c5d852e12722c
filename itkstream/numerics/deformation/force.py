"""The compiled steps of the deformable descent: warp through nodes, collect forces, solve them.

The displacement lives on nodes: the centres of groups of ``stride`` voxels per axis of a level
(`Grid.shrink`). Images are 3-D float32; NaN marks voxels that do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itkstream.numerics.compiling import compiled, expanded, helper
from itkstream.numerics.threads import over_slabs

__all__ = ["collect_forces", "solve_newton", "warp_through_nodes"]

Floats = NDArray[np.float32]


def warp_through_nodes(
    moving: Floats,
    index: NDArray[np.float64],
    vector: NDArray[np.float64],
    nodes: Floats,
    stride: tuple[int, ...],
    out: Floats,
) -> None:
    """Sample an image at ``index @ [i, 1] + vector @ u(i)``, u interpolated from nodes.

    Shapes: `index` (3, 4); `vector` (3, 3); `nodes` (a, b, c, 3).
    """
    steps = np.asarray(stride, np.int64)
    over_slabs(
        lambda a, b: _warp_planes(moving, (index, vector), nodes, steps, out, a, b), out.shape[0]
    )


def collect_forces(
    warped: Floats,
    drive: tuple[Floats, Floats],
    spacing: tuple[float, ...],
    stride: tuple[int, ...],
    out: Floats,
) -> None:
    """Mean force, and mean Gauss-Newton matrix if wanted, of the voxels of each node.

    Shapes: `out` (a, b, c, 3 or 9).
    """
    steps, h = np.asarray(stride, np.int64), np.asarray(spacing, np.float32)
    over_slabs(lambda a, b: _collect_planes(warped, drive, h, steps, out, a, b), out.shape[0])


def solve_newton(normal: Floats, damping: float, out: Floats) -> None:
    """Solve ``(H + damping) v = g`` at each node.

    Shapes: `normal` (a, b, c, 9); `out` (a, b, c, 3).
    """
    over_slabs(lambda a, b: _solve_planes(normal, damping, out, a, b), out.shape[0])


@expanded
def _between(i, stride, n):  # type: ignore[no-untyped-def]
    """Lower node, upper node and weight of the upper one; the weight may leave [0, 1]."""
    x = (i - 0.5 * (stride - 1)) / stride
    low = min(max(int(np.floor(x)), 0), max(n - 2, 0))
    return low, min(low + 1, n - 1), np.float32(x - low)


@helper
def _node_line(nodes, i, j, stride, line):  # type: ignore[no-untyped-def]
    """Interpolate nodes to one line of voxels, along axis 2 still at the nodes."""
    x0, x1, fx = _between(i, stride[0], nodes.shape[0])
    y0, y1, fy = _between(j, stride[1], nodes.shape[1])
    one = np.float32(1.0)
    for k in range(nodes.shape[2]):
        for c in range(3):
            low = nodes[x0, y0, k, c] * (one - fy) + nodes[x0, y1, k, c] * fy
            high = nodes[x1, y0, k, c] * (one - fy) + nodes[x1, y1, k, c] * fy
            line[c, k] = low * (one - fx) + high * fx


@expanded
def _sample(moving, x, y, z):  # type: ignore[no-untyped-def]
    nx, ny, nz = moving.shape
    x = min(max(x, 0.0), nx - 1.0)
    y = min(max(y, 0.0), ny - 1.0)
    z = min(max(z, 0.0), nz - 1.0)
    x0, y0, z0 = int(x), int(y), int(z)
    x1, y1, z1 = min(x0 + 1, nx - 1), min(y0 + 1, ny - 1), min(z0 + 1, nz - 1)
    fx, fy, fz = np.float32(x - x0), np.float32(y - y0), np.float32(z - z0)
    v00 = moving[x0, y0, z0] + fz * (moving[x0, y0, z1] - moving[x0, y0, z0])
    v01 = moving[x0, y1, z0] + fz * (moving[x0, y1, z1] - moving[x0, y1, z0])
    v10 = moving[x1, y0, z0] + fz * (moving[x1, y0, z1] - moving[x1, y0, z0])
    v11 = moving[x1, y1, z0] + fz * (moving[x1, y1, z1] - moving[x1, y1, z0])
    v0 = v00 + fy * (v01 - v00)
    v1 = v10 + fy * (v11 - v10)
    return v0 + fx * (v1 - v0)


@compiled
def _warp_planes(moving, maps, nodes, stride, out, start, stop):  # type: ignore[no-untyped-def]
    index, vector = maps
    line = np.empty((3, nodes.shape[2]), np.float32)
    nx, ny, nz = moving.shape
    for i in range(start, stop):
        for j in range(out.shape[1]):
            _node_line(nodes, i, j, stride, line)
            for k in range(out.shape[2]):
                low, high, f = _between(k, stride[2], nodes.shape[2])
                u = line[0, low] + f * (line[0, high] - line[0, low])
                v = line[1, low] + f * (line[1, high] - line[1, low])
                w = line[2, low] + f * (line[2, high] - line[2, low])
                x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3]
                y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3]
                z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3]
                x += vector[0, 0] * u + vector[0, 1] * v + vector[0, 2] * w
                y += vector[1, 0] * u + vector[1, 1] * v + vector[1, 2] * w
                z += vector[2, 0] * u + vector[2, 1] * v + vector[2, 2] * w
                if -0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5:
                    out[i, j, k] = _sample(moving, x, y, z)
                else:
                    out[i, j, k] = np.nan


@expanded
def _slope(before, here, after, h):  # type: ignore[no-untyped-def]
    """Central difference, one-sided beside a voxel without value, else 0."""
    if before == before and after == after:
        return np.float32(0.5) * (after - before) / h
    if after == after:
        return (after - here) / h
    if before == before:
        return (here - before) / h
    return np.float32(0.0)


@expanded
def _gradient(a, i, j, k, h):  # type: ignore[no-untyped-def]
    nx, ny, nz = a.shape
    here = a[i, j, k]
    none = np.float32(np.nan)
    x = _slope(
        a[i - 1, j, k] if i > 0 else none, here, a[i + 1, j, k] if i < nx - 1 else none, h[0]
    )
    y = _slope(
        a[i, j - 1, k] if j > 0 else none, here, a[i, j + 1, k] if j < ny - 1 else none, h[1]
    )
    z = _slope(
        a[i, j, k - 1] if k > 0 else none, here, a[i, j, k + 1] if k < nz - 1 else none, h[2]
    )
    return x, y, z


@helper
def _collect_line(warped, drive, line, h, stride, sums):  # type: ignore[no-untyped-def]
    """Add one line of voxels to the sums of its nodes."""
    residual, weight = drive
    i, j = line
    for k in range(warped.shape[2]):
        w = weight[i, j, k]
        if w == 0.0:
            continue
        x, y, z = _gradient(warped, i, j, k, h)
        x, y, z = w * x, w * y, w * z
        r = residual[i, j, k]
        node = k // stride
        sums[0, node] += r * x
        sums[1, node] += r * y
        sums[2, node] += r * z
        if sums.shape[0] == 9:
            sums[3, node] += x * x
            sums[4, node] += y * y
            sums[5, node] += z * z
            sums[6, node] += x * y
            sums[7, node] += x * z
            sums[8, node] += y * z


@compiled
def mean_line(sums, lines, stride, length, out):  # type: ignore[no-untyped-def]
    """From the sums of a line of nodes, over so many lines of voxels, to their means."""
    for k in range(out.shape[0]):
        count = lines * (min((k + 1) * stride, length) - k * stride)
        for c in range(out.shape[1]):
            out[k, c] = sums[c, k] / count


@compiled
def _collect_planes(warped, drive, h, stride, out, start, stop):  # type: ignore[no-untyped-def]
    sums = np.empty((out.shape[3], out.shape[2]), np.float32)
    nx, ny, nz = warped.shape
    for a in range(start, stop):
        for b in range(out.shape[1]):
            sums[:] = 0.0
            x1 = min((a + 1) * stride[0], nx)
            y1 = min((b + 1) * stride[1], ny)
            for i in range(a * stride[0], x1):
                for j in range(b * stride[1], y1):
                    _collect_line(warped, drive, (i, j), h, stride[2], sums)
            lines = (x1 - a * stride[0]) * (y1 - b * stride[1])
            mean_line(sums, lines, stride[2], nz, out[a, b])


@compiled
def _solve_planes(normal, damping, out, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                n = normal[i, j, k]
                a, b, c = n[3] + damping, n[4] + damping, n[5] + damping
                d, e, f = np.float64(n[6]), np.float64(n[7]), np.float64(n[8])
                # Cofactors of the symmetric matrix a d e / d b f / e f c.
                aa, bb, cc = b * c - f * f, a * c - e * e, a * b - d * d
                ab, ac, bc = e * f - d * c, d * f - b * e, d * e - a * f
                scale = 1.0 / (a * aa + d * ab + e * ac)
                out[i, j, k, 0] = (aa * n[0] + ab * n[1] + ac * n[2]) * scale
                out[i, j, k, 1] = (ab * n[0] + bb * n[1] + bc * n[2]) * scale
                out[i, j, k, 2] = (ac * n[0] + bc * n[1] + cc * n[2]) * scale

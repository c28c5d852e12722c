"""Light and camera: from the tissue to counts in voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled
from itkstream.numerics.threads import over_slabs
from itkstream.phantoms.settings import PhantomSettings
from itkstream.phantoms.tissue import CELL_UM, SPOT_WIDTH, Scene, depth_at

__all__ = ["camera_of", "photograph", "plane_by_plane", "render"]


@compiled
def _ramp(t: float) -> float:
    """Smooth step: 0 below 0, 1 above 1."""
    t = min(1.0, max(0.0, t))
    return t * t * (3.0 - 2.0 * t)


@compiled
def _body_light(p: Any, bodies: Any, b: int, u: Any) -> float:
    """Light of body `b` at `p`; `u` is scratch."""
    for i in range(3):
        u[i] = 0.0
        for j in range(3):
            u[i] += bodies.frames[b, i, j] * (p[j] - bodies.centres[b, j])
    radius = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
    soft = bodies.softness[b]
    inside = _ramp((1.0 + soft - radius) / (2.0 * soft))
    if inside == 0.0:
        return 0.0
    value = 0.5 + bodies.rim[b] * (_ramp(radius / 0.9) - 0.5)
    for s in range(bodies.spots.shape[1]):
        height = bodies.spots[b, s, 3]
        if height != 0.0:
            x = u[0] - bodies.spots[b, s, 0]
            y = u[1] - bodies.spots[b, s, 1]
            z = u[2] - bodies.spots[b, s, 2]
            value += height * np.exp(-(x * x + y * y + z * z) / (2 * SPOT_WIDTH * SPOT_WIDTH))
    return inside * bodies.brightness[b] * max(value, 0.05)


@compiled
def _light(points: Any, scene: Any, out: Any) -> None:
    """Light of the scene at points (k, 3): bodies and the glow of the tissue between them."""
    cells, counts, u = scene.cells, scene.cells.counts, np.empty(3)
    for n in range(len(points)):
        p = points[n]
        out[n] = 0.04 * _ramp(depth_at(p, scene.tissue) / 8.0)
        i = int(np.floor((p[0] - cells.origin[0]) / CELL_UM))
        j = int(np.floor((p[1] - cells.origin[1]) / CELL_UM))
        k = int(np.floor((p[2] - cells.origin[2]) / CELL_UM))
        if 0 <= i < counts[0] and 0 <= j < counts[1] and 0 <= k < counts[2]:
            cell = (i * counts[1] + j) * counts[2] + k
            for m in range(cells.starts[cell], cells.starts[cell + 1]):
                out[n] += _body_light(p, scene.bodies, cells.members[m], u)


def render(
    scene: Scene, grid: Grid, locate: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Light at every voxel, in units of a nucleus of middle brightness.

    `locate` takes voxel positions (k, n) to tissue positions (k, 3), in µm.
    """

    def plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty(len(points))
        _light(locate(points), scene, out)
        return out

    return plane_by_plane(grid, np.float32, plane)


def plane_by_plane(
    grid: Grid, dtype: Any, evaluate: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> NDArray[Any]:
    """Evaluate a function of positions (k, n) on a grid, holding those of few planes at once."""
    out = np.empty(grid.shape, dtype)

    def planes(start: int, stop: int) -> None:
        for k in range(start, stop):
            cut = (slice(k, k + 1), *(slice(0, n) for n in grid.shape[1:]))
            points = grid.crop(cut).positions().reshape(-1, grid.ndim)
            out[k] = evaluate(points).reshape(grid.shape[1:])

    over_slabs(planes, grid.shape[0])
    return out


@dataclass(frozen=True)
class Camera:
    """Blur (µm, across and along the optical axis) and response: from light to counts."""

    stream: int
    gain: float
    gamma: float
    offset: float
    unevenness: float
    blur_um: tuple[float, float] = (0.45, 1.1)
    counts_per_electron: float = 0.25
    read_noise: float = 2.5


def camera_of(second: bool, restaining: float) -> Camera:
    """Choose the camera of a round; the second differs by `restaining`, from 0 to 1."""
    change = restaining if second else 0.0
    return Camera(
        stream=6 if second else 5,
        gain=2600.0 - 700.0 * change,
        gamma=1.0 + 0.2 * change,
        offset=120.0 + 30.0 * change,
        unevenness=0.08 + 0.14 * change,
    )


def photograph(
    light: NDArray[np.float32], grid: Grid, settings: PhantomSettings, camera: Camera
) -> NDArray[np.uint16]:
    """Turn light into uint16 counts: response, blur, uneven light and noise."""
    rng = np.random.default_rng([settings.seed, camera.stream])
    across, along = camera.blur_um
    blur = [across, across, along][: grid.ndim]
    counts = camera.gain * light**camera.gamma
    counts = ndimage.gaussian_filter(counts, np.divide(blur, grid.spacing), mode="nearest")
    for axis, n in enumerate(grid.shape):
        phase = rng.uniform(0, 2 * np.pi)
        wave = 1 + camera.unevenness * np.cos(np.pi * 1.3 * np.arange(n) / n + phase)
        counts *= np.expand_dims(
            wave.astype(np.float32), [a for a in range(grid.ndim) if a != axis]
        )
    if settings.noise > 0:
        per_electron = camera.counts_per_electron * settings.noise**2
        counts = rng.poisson(counts / per_electron).astype(np.float32) * np.float32(per_electron)
        read = rng.standard_normal(grid.shape, np.float32)
        counts += np.float32(camera.read_noise * settings.noise) * read
    return np.clip(np.rint(counts + camera.offset), 0, 65535).astype(np.uint16)

"""The tissue: nuclei, fibres and specks as a continuous function of position."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.geometry import Grid
from itkstream.numerics.compiling import compiled
from itkstream.phantoms.lattice import extent_of, in_three
from itkstream.phantoms.settings import PhantomSettings

__all__ = [
    "CELL_UM",
    "SPOT_WIDTH",
    "Scene",
    "Tissue",
    "depth_at",
    "depths_at",
    "draw_scene",
    "draw_scenes",
    "restain",
]


CELL_UM = 4.0
"""Width of the cells that bodies are sorted into."""

SPOT_WIDTH = 0.17
"""Width of a bright spot, in radii of its nucleus."""

_SPOTS = 6


class Tissue(NamedTuple):
    """A rounded box with wavy walls: centre and half widths in µm, waves in 1/µm and radians."""

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    wave: NDArray[np.float64]
    phase: NDArray[np.float64]


class Bodies(NamedTuple):
    """Soft textured ellipsoids; `frames` take an offset in µm to the unit ball."""

    centres: NDArray[np.float64]
    frames: NDArray[np.float64]
    reach: NDArray[np.float64]
    softness: NDArray[np.float64]
    brightness: NDArray[np.float64]
    rim: NDArray[np.float64]
    spots: NDArray[np.float64]


class Cells(NamedTuple):
    """The bodies that reach into each cell of a lattice, as one list cut at `starts`."""

    origin: NDArray[np.float64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    members: NDArray[np.int64]


class Scene(NamedTuple):
    """All that gives light in one round: the tissue, its bodies, and the cells they reach into."""

    tissue: Tissue
    bodies: Bodies
    cells: Cells


@compiled
def depth_at(p: Any, tissue: Any) -> float:
    """Depth of a point in the tissue, in µm; negative outside."""
    total = 0.0
    for i in range(3):
        j = (i + 1) % 3
        swing = 0.06 * np.sin(tissue.wave[j] * p[j] + tissue.phase[i])
        u = (p[i] - tissue.centre[i]) / tissue.half[i]
        if tissue.wave[i] > 0:
            u += swing
        total += u**6
    return (1.0 - total ** (1.0 / 6.0)) * tissue.half.min()


@compiled
def depths_at(points: Any, tissue: Any) -> Any:
    out = np.empty(len(points))
    for n in range(len(points)):
        out[n] = depth_at(points[n], tissue)
    return out


def draw_scenes(settings: PhantomSettings) -> tuple[Scene, Scene, NDArray[np.float64]]:
    """Draw the tissue as it is stained in both rounds, and the mean radii (µm) of its nuclei.

    The nuclei are the first bodies of each scene, in this order.
    """
    first, radii = draw_scene(settings)
    return first, restain(first, len(radii), settings), radii


def draw_scene(settings: PhantomSettings) -> tuple[Scene, NDArray[np.float64]]:
    """Draw the tissue as its first staining shows it, and the mean radii (µm) of its nuclei."""
    tissue = _draw_tissue(settings.fixed_grid, settings.seed)
    bodies, radii = _draw_bodies(settings, tissue)
    return Scene(tissue, bodies, _sort_into_cells(bodies)), radii


def _draw_tissue(grid: Grid, seed: int) -> Tissue:
    rng = np.random.default_rng([seed, 2])
    n, extent = grid.ndim, np.asarray(extent_of(grid))
    centre, half, wave = np.zeros(3), np.full(3, np.inf), np.zeros(3)
    centre[:n] = extent * rng.uniform(0.485, 0.515, n)
    half[:n] = extent * 0.46
    wave[:n] = 2 * np.pi * rng.uniform(1.0, 1.8, n) / extent
    return Tissue(centre, half, wave, rng.uniform(0, 2 * np.pi, 3))


def _draw_bodies(settings: PhantomSettings, tissue: Tissue) -> tuple[Bodies, NDArray[np.float64]]:
    """Nuclei first, then the fibres and specks between them; and the nuclei's mean radii."""
    rng = np.random.default_rng([settings.seed, 3])
    centres, radii = _place_nuclei(settings, tissue, rng)
    count = len(radii)
    fibres = _draw_points(settings, tissue, 4 * count, rng)
    long = np.concatenate(
        [_ellipsoids(radii, rng), rng.uniform([0.7, 0.7, 1.2], [1.2, 1.5, 6.0], (len(fibres), 3))]
    )
    soft_um = 0.6 * max(1.0, float(np.mean(settings.spacing)))
    total = len(long)
    turns = Rotation.from_quat(rng.normal(size=(total, 4))).as_matrix()
    nucleus = np.arange(total) < count
    bright = rng.lognormal(-0.1, 0.4, total) * np.where(nucleus, 1.0, 0.12)
    softness = np.minimum(soft_um / long.min(axis=1), 0.5)
    bodies = Bodies(
        np.concatenate([centres, fibres]),
        turns / long[:, :, None],
        long.max(axis=1) * (1 + softness),
        softness,
        bright,
        np.where(nucleus, rng.uniform(-0.1, 0.5, total), 0.0),
        _draw_spots(nucleus, rng),
    )
    return bodies, radii


def _draw_points(
    settings: PhantomSettings, tissue: Tissue, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """At most `count` points (k, 3) of the tissue, crowded in layers and clusters."""
    grid = settings.fixed_grid
    extent = np.asarray(extent_of(grid))
    points = in_three(rng.uniform(0, 1, (count, grid.ndim)) * extent)
    cycles = rng.uniform(-1, 1, (3, 3)) * 3
    cycles[0] = (0.3, 2.5, 0.2)  # layers across the second axis, a little tilted
    turns = points[:, : grid.ndim] / extent @ cycles[:, : grid.ndim].T + rng.uniform(0, 1, 3)
    crowd = 0.55 + np.cos(2 * np.pi * turns) @ (0.28, 0.18, 0.18)
    kept = (rng.uniform(0, 1, count) < crowd) & (depths_at(points, tissue) > 0)
    return points[kept]


def _place_nuclei(
    settings: PhantomSettings, tissue: Tissue, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (k, 3) and mean radii (k,), large nuclei first; neighbours touch, none merge."""
    low, high = settings.radii_um
    extent = extent_of(settings.fixed_grid)
    # A sheet of nuclei stands for a slab about one typical nucleus thick.
    thickness = 1.0 if len(extent) == 3 else low + high
    tries = int(np.prod(extent) * thickness * settings.density / 1000 / 0.55)
    centres = _draw_points(settings, tissue, tries, rng)
    large = rng.uniform(0, 1, len(centres)) < 0.35
    typical = np.where(large, low + 0.55 * (high - low), low + 0.22 * (high - low))
    radii = np.clip(typical * rng.lognormal(0, 0.15, len(centres)), low, high)
    order = np.argsort(-radii, kind="stable")
    centres, radii = centres[order], radii[order]
    if not len(radii):
        raise InputError(f"no nucleus fits {extent} µm at density {settings.density}; raise it")
    pairs = cKDTree(centres).query_pairs(2 * high, output_type="ndarray")
    gaps = np.linalg.norm(centres[pairs[:, 0]] - centres[pairs[:, 1]], axis=1)
    pairs = pairs[gaps < 0.82 * radii[pairs].sum(axis=1)]
    kept = np.ones(len(radii), bool)
    # In order of the smaller nucleus: the fate of the larger is settled when it is asked for.
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]:
        if kept[first]:
            kept[second] = False
    return centres[kept], radii[kept]


def _ellipsoids(radii: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Half axes (k, 3) of the given geometric mean."""
    axes = rng.uniform(0.72, 1.35, (len(radii), 3))
    mean = np.prod(axes, axis=1) ** (1 / 3)
    return np.asarray(axes * (radii / mean)[:, None])


def _draw_spots(nucleus: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
    """Position in the unit ball and height (k, spots, 4): chromocentres, one dark nucleolus."""
    total = len(nucleus)
    spots = np.zeros((total, _SPOTS, 4))
    towards = rng.normal(size=(total, _SPOTS, 3))
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    spots[..., :3] = towards * rng.uniform(0.2, 0.8, (total, _SPOTS, 1))
    heights = rng.uniform(0.4, 1.6, (total, _SPOTS))
    heights *= rng.uniform(0, 1, (total, _SPOTS)) < 0.7
    heights[:, 0] = -0.4
    spots[..., 3] = heights * nucleus[:, None]
    return spots


def restain(scene: Scene, nuclei: int, settings: PhantomSettings) -> Scene:
    """Stain the same bodies again: brightness varies, some nuclei are gone (brightness 0)."""
    bodies = scene.bodies
    rng = np.random.default_rng([settings.seed, 4])
    factor = rng.lognormal(0, 0.25 * settings.restaining, len(bodies.brightness))
    factor[:nuclei] *= rng.uniform(0, 1, nuclei) >= settings.missing
    return scene._replace(bodies=bodies._replace(brightness=bodies.brightness * factor))


def _sort_into_cells(bodies: Bodies) -> Cells:
    lowest = (bodies.centres - bodies.reach[:, None]).min(axis=0)
    highest = (bodies.centres + bodies.reach[:, None]).max(axis=0)
    counts = np.floor((highest - lowest) / CELL_UM).astype(np.int64) + 1
    first = ((bodies.centres - bodies.reach[:, None] - lowest) / CELL_UM).astype(np.int64)
    last = ((bodies.centres + bodies.reach[:, None] - lowest) / CELL_UM).astype(np.int64)
    sizes = np.zeros(int(np.prod(counts)) + 1, np.int64)
    nothing = np.empty(0, np.int64)
    _fill_cells(first, last, counts, sizes, nothing)
    starts = np.concatenate([[0], np.cumsum(sizes[:-1])])
    members = np.empty(int(starts[-1]), np.int64)
    _fill_cells(first, last, counts, starts.copy(), members)
    return Cells(lowest, counts, starts, members)


@compiled
def _fill_cells(first: Any, last: Any, counts: Any, cursor: Any, members: Any) -> None:
    """Advance the cursor of every cell a body reaches into, listing it there if there is room."""
    for b in range(len(first)):
        for i in range(first[b, 0], last[b, 0] + 1):
            for j in range(first[b, 1], last[b, 1] + 1):
                for k in range(first[b, 2], last[b, 2] + 1):
                    cell = (i * counts[1] + j) * counts[2] + k
                    if len(members) > 0:
                        members[cursor[cell]] = b
                    cursor[cell] += 1

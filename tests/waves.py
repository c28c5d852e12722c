"""Texture and displacement that are functions of the place: nothing is interpolated twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bend", "texture"]

Floats = NDArray[np.float64]


def texture(points: Floats, seed: int = 0, shortest: float = 6.0) -> Floats:
    """Waves of `shortest` to 20 units in all directions, with a deviation of 55 about 100."""
    rng = np.random.default_rng(seed)
    n = points.shape[-1]
    total = np.zeros(points.shape[:-1])
    for _ in range(60):
        k = rng.normal(size=n)
        k *= 2 * np.pi / rng.uniform(shortest, 20) / np.linalg.norm(k)
        total += np.cos(points @ k + rng.uniform(0, 7))
    return 100 + 10 * total


def bend(points: Floats, amplitude: float = 2.5, length: float = 60.0) -> Floats:
    """A smooth displacement, at most `amplitude` along each axis."""
    n = points.shape[-1]
    phases = points @ (2 * np.pi / length * (np.eye(n) + 0.4 * np.roll(np.eye(n), 1, axis=0)))
    return amplitude * np.sin(phases + np.arange(n))

"""Rotations spread evenly over all there are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

__all__ = ["spread_rotations"]

# Of the super-Fibonacci spiral: sqrt(2), and the positive root of psi**4 = psi + 4.
_PHI, _PSI = np.sqrt(2.0), 1.533751168755204288118041


def spread_rotations(ndim: int, count: int) -> NDArray[np.float64]:
    """So many rotation matrices, evenly spread; the first of a plane turns nothing.

    In 3-D after M. Alexa, "Super-Fibonacci spirals", CVPR 2022, 8291-8300,
    doi:10.1109/CVPR52688.2022.00811.
    """
    if ndim == 2:
        angles = 2 * np.pi * np.arange(count) / count
        c, s = np.cos(angles), np.sin(angles)
        return np.moveaxis(np.array([[c, -s], [s, c]]), -1, 0)
    s = np.arange(count) + 0.5
    t = s / count
    alpha, beta = 2 * np.pi * s / _PHI, 2 * np.pi * s / _PSI
    r, w = np.sqrt(t), np.sqrt(1 - t)
    quaternions = np.stack(
        [r * np.sin(alpha), r * np.cos(alpha), w * np.sin(beta), w * np.cos(beta)], axis=1
    )
    return Rotation.from_quat(quaternions).as_matrix()

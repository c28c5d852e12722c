"""Landmarks as a command line or a file of steps says them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import Image, Landmarks
from itkstream.io.landmarks.files import read_landmarks
from itkstream.io.landmarks.sides import UNITS

__all__ = ["LandmarkOptions"]


@dataclass(frozen=True)
class LandmarkOptions:
    """Files of landmarks, and what they do not state.

    Parameters
    ----------
    files : sequence of str
        One of pairs, or the points of the fixed and of the moving image; none: no landmarks.
    unit : str, optional
        Unit of their coordinates, or ``"voxel"``.
    sigma_um : float, optional
        Standard deviation of how exactly they were placed, in µm.
    hold_out : float
        Share that is held out to judge by.
    """

    files: tuple[str, ...] = ()
    unit: str | None = None
    sigma_um: float | None = None
    hold_out: float = 0.0

    def __post_init__(self) -> None:
        given = (self.files,) if isinstance(self.files, str) else tuple(self.files or ())
        if len(given) > 2 or not all(isinstance(file, str) for file in given):
            raise InputError(
                f"landmarks are in one file, or in one per image, fixed first; got {self.files!r}"
            )
        object.__setattr__(self, "files", given)
        if self.unit is not None and self.unit not in UNITS:
            raise InputError(f"unknown unit of landmarks {self.unit!r}; known: {', '.join(UNITS)}")
        if self.sigma_um is not None and not (
            isinstance(self.sigma_um, int | float) and 0 < self.sigma_um < np.inf
        ):
            raise InputError(f"sigma_um must be a positive number of µm; got {self.sigma_um!r}")
        if not (isinstance(self.hold_out, int | float) and 0 <= self.hold_out < 1):
            raise InputError(f"hold_out must be at least 0 and below 1; got {self.hold_out!r}")

    def read(self, fixed: Image, moving: Image) -> Landmarks | None:
        """Read the landmarks of two images; None where there are no files."""
        if not self.files:
            return None
        found = read_landmarks(*self.files, fixed=fixed, moving=moving, unit=self.unit)
        if self.sigma_um is None:
            return found
        return replace(found, sigma_um=np.full(len(found), float(self.sigma_um)))

"""Settings of a phantom: its tissue, and the differences of its second round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import Grid, default_axes
from itkstream.phantoms.lattice import extent_of

__all__ = ["Motion", "PhantomSettings", "tutorial_settings"]


_MIN_EXTENT_RADII = 2.0


@dataclass(frozen=True)
class Motion:
    """Motion of the moving image from the fixed one; zeros leave them aligned.

    The numbers are upper ends: each axis draws between half of the number and all of it, with
    either sign.

    Parameters
    ----------
    rotation_deg : float
        Rotation about every axis, in degrees.
    stretch : float
        Relative change of scale per axis.
    shear : float
        Entries of the shear matrix.
    shift : float
        Translation of the centre, as a fraction of the image's extent per axis.
    warp_um : float
        Greatest length of the smooth deformation, in µm.

    Raises
    ------
    InputError
        Where a number is negative or not finite, or the stretch would flatten the image.

    Examples
    --------
    >>> itkstream.phantoms.Motion(rotation_deg=10, warp_um=2).shift
    0.06
    """

    rotation_deg: float = 4.0
    stretch: float = 0.03
    shear: float = 0.02
    shift: float = 0.06
    warp_um: float = 4.0

    def __post_init__(self) -> None:
        _check_not_negative(self, ("rotation_deg", "stretch", "shear", "shift", "warp_um"))
        if self.stretch >= 1:
            raise InputError(f"stretch must be below 1; got {self.stretch}. Try 0.03")


@dataclass(frozen=True)
class PhantomSettings:
    """Sizes, spacings, staining, noise and motion of a phantom pair.

    Parameters
    ----------
    shape : sequence of int
        Voxels of the fixed image, two or three axes; the last of three is the optical axis.
    spacing : sequence of float
        Voxel spacing of the fixed image, in µm.
    seed : int
        Same settings, same seed: same bits.
    moving_shape : sequence of int, optional
        Voxels of the moving image; default `shape`.
    moving_spacing : sequence of float, optional
        Voxel spacing of the moving image, in µm; default `spacing`.
    radii_um : (float, float)
        Smallest and largest mean radius of the nuclei, in µm.
    density : float
        Nuclei tried per 1000 µm³ of tissue (1000 µm² in two axes: scaled to fill alike);
        crowding drops some.
    missing : float
        Fraction of nuclei that the second round does not show.
    restaining : float
        How much the second round's brightness, response and light differ, 0 (not at all) to 1.
    noise : float
        Multiplies shot and read noise; 0 is none.
    motion : Motion
        How the moving image lies.

    Raises
    ------
    InputError
        Where a value does not fit.

    Examples
    --------
    >>> itkstream.phantoms.PhantomSettings((64, 64, 48), seed=7).spacing
    (1.0, 1.0, 1.5)
    """

    shape: tuple[int, ...] = (96, 80, 64)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.5)
    seed: int = 0
    moving_shape: tuple[int, ...] = ()
    moving_spacing: tuple[float, ...] = ()
    radii_um: tuple[float, float] = (3.0, 8.0)
    density: float = 1.6
    missing: float = 0.04
    restaining: float = 1.0
    noise: float = 1.0
    motion: Motion = field(default_factory=Motion)

    def __post_init__(self) -> None:
        _check_not_negative(self, ("density", "missing", "restaining", "noise", "seed"))
        low, high = self.radii_um
        if not 0 < low <= high:
            raise InputError(f"radii_um must be 0 < smallest <= largest; got {self.radii_um}")
        for name in ("missing", "restaining"):
            if getattr(self, name) > 1:
                raise InputError(f"{name} is a fraction, 0 to 1; got {getattr(self, name)}")
        if self.fixed_grid.ndim != self.moving_grid.ndim:
            raise InputError(
                f"fixed and moving need the same number of axes; got {self.fixed_grid.shape} and "
                f"{self.moving_grid.shape}"
            )
        if min(extent_of(self.fixed_grid)) < _MIN_EXTENT_RADII * high:
            raise InputError(
                f"an image of {extent_of(self.fixed_grid)} µm cannot hold nuclei of {high} µm "
                f"radius: give at least {_MIN_EXTENT_RADII * high} µm per axis, or smaller radii_um"
            )

    @property
    def fixed_grid(self) -> Grid:
        """Grid of the fixed image."""
        return Grid(self.shape, self.spacing, axes=default_axes(len(self.shape)))

    @property
    def moving_grid(self) -> Grid:
        """Grid of the moving image."""
        shape = self.moving_shape or self.shape
        return Grid(shape, self.moving_spacing or self.spacing, axes=default_axes(len(shape)))


def tutorial_settings() -> PhantomSettings:
    """Describe the pair that the tutorial and the demo register.

    Returns
    -------
    PhantomSettings
        Two images of about 8 million voxels, 0.8 x 0.8 x 1.2 µm, of different shapes, some 25 µm
        apart.

    Examples
    --------
    >>> itkstream.phantoms.tutorial_settings().seed
    7
    """
    return PhantomSettings(
        shape=(256, 224, 144),
        spacing=(0.8, 0.8, 1.2),
        seed=7,
        moving_shape=(240, 232, 152),
        motion=Motion(rotation_deg=5, stretch=0.035, shear=0.025, shift=0.1, warp_um=5),
    )


def _check_not_negative(settings: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be a finite number >= 0; got {value}")

"""Settings of a whole run of `itkstream.register`, beside its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from itkstream.errors import InputError
from itkstream.numerics.parameters import finite

__all__ = ["CameraPattern", "Content", "RegisterSettings"]

CameraPattern: TypeAlias = Literal["auto", "keep"]
Content: TypeAlias = Literal["common", "all"]


@dataclass(frozen=True)
class RegisterSettings:
    """Settings of a whole run of `register`, beside its steps.

    Parameters
    ----------
    coarse_voxels : float
        Most voxels of the coarse level, on which affines are found and quality is measured.
    blocksize : int
        Voxels per block and chunk of the aligned image, an even number.
    field_tolerance_vox : float
        How far the displacement that is handed out may be from the one that was computed, at any
        of its nodes, in the smallest fixed voxel spacing: it is stored at the coarsest spacing
        that keeps this. 0 keeps it as it was computed.
    background : float, optional
        Value of the aligned image outside the moving one; default what the moving image's border
        tells: 0, unless that is bright or negative.
    camera_pattern : {"auto", "keep"}
        "auto": hot and dead pixels, columns, rows and fixed noise, which a camera adds to every
        plane of a stack along z, are taken out of what the steps see where they are found; of the
        aligned image they are not. "keep": the steps see the images as they are.
    content : {"common", "all"}
        "common": where an image shows nothing up to its border, as it was painted over or has an
        empty ground, and the other shows much there, as the skull beside a template of the brain
        or a layer of mounting medium, no voxel counts in the steps that refine a transform. Tissue
        without counterpart in the moving image, torn out or replaced by other tissue, does not
        count in `Deformable` with method 'lcc', which continues the field there from what surrounds
        it. Key points on a ground that is certainly empty are left out where few of an affine's
        matches agree, voxels agree better so, and no mask leaves voxels of the image out. "all":
        every voxel counts that no mask leaves out.
    report : bool
        Whether a page of pictures and numbers is written at the end (`itkstream.write_report`).
    error_map : bool
        Whether to make a map of how far off the result may be: for each node the radius in which
        the true place lies with 95 % probability.

    Raises
    ------
    InputError
        For values out of range.

    Examples
    --------
    >>> itkstream.RegisterSettings(report=False).error_map
    True
    """

    coarse_voxels: float = 20e6
    blocksize: int = 128
    field_tolerance_vox: float = 0.05
    background: float | None = None
    camera_pattern: CameraPattern = "auto"
    content: Content = "common"
    report: bool = True
    error_map: bool = True

    def __post_init__(self) -> None:
        if not finite(self.coarse_voxels) or self.coarse_voxels < 32**2:
            raise InputError(f"coarse_voxels must be at least 1024; got {self.coarse_voxels!r}")
        if not finite(self.blocksize) or self.blocksize < 16 or self.blocksize % 2:
            raise InputError(f"blocksize must be an even number >= 16; got {self.blocksize!r}")
        if not finite(self.field_tolerance_vox) or self.field_tolerance_vox < 0:
            raise InputError(
                f"field_tolerance_vox must be a number >= 0; got {self.field_tolerance_vox!r}"
            )
        if self.background is not None and not finite(self.background):
            raise InputError(f"background must be a number or None; got {self.background!r}")
        if not isinstance(self.report, bool):
            raise InputError(f"report must be True or False; got {self.report!r}")
        if not isinstance(self.error_map, bool):
            raise InputError(f"error_map must be True or False; got {self.error_map!r}")
        for name, kind in (("camera_pattern", CameraPattern), ("content", Content)):
            known = get_args(kind)
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be {known[0]!r} or {known[1]!r}; got {getattr(self, name)!r}"
                )

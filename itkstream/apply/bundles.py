"""Bundles for 3D Slicer and ANTs: a folder of files, and how to use them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from itkstream.apply.coarsening import coarsen_field
from itkstream.apply.fields import axes_of
from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.errors import InputError
from itkstream.geometry import DisplacementField, Image, Transform, compose, steps_of
from itkstream.io.images.files.itk_images import write_itk
from itkstream.io.storage.inputs import check_apart
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import check_folder, claim_folder
from itkstream.io.transforms.files import write_transform
from itkstream.numerics.sampling.interpolate import round_to

__all__ = [
    "Bundle",
    "check_bundle_output",
    "coarsened",
    "export_ants",
    "export_slicer",
]

_PROOF = "bundle.json"
_NODE_BYTES = 8
# Headers of the images, and HDF5's tables, with room.
_OVERHEAD = 2**15
_LEAST_MB = 0.1

_SLICER_TEXT = """\
How to see the registration in 3D Slicer

1. Drag fixed.nrrd, moving.nrrd and transform.h5 into Slicer's window, and press OK.
2. Open the module "Transforms" and choose the transform "transform".
3. Under "Apply transform", move "moving" to the right (->). It now lies on "fixed".

All lengths are {unit}s; Slicer calls them mm. The images are {factors} times coarser than the
originals, along the axes {axes}. The transform is within {error:.2g} voxels of the original one,
voxels of its displacement field.
"""

_ANTS_TEXT = """\
#!/bin/sh
# moving.nii.gz and fixed.nii.gz stand for your images, with voxel spacings in {unit}s as in these
# files. What is listed first acts first on points of the fixed image; ANTs' names of files must
# not end in .mat, which it would invert.
antsApplyTransforms -d {ndim} -i moving.nii.gz -r fixed.nii.gz -o aligned.nii.gz -n Linear \\
    {files} --float 0
"""


@dataclass(frozen=True)
class Bundle:
    """The files in a folder for another program.

    Parameters
    ----------
    folder : str
        Where it is.
    files : tuple of str
        Their names.
    field_factors : tuple of int
        Voxels of the stored field per voxel of the exported one, per array axis.
    field_error_vox : float
        How far the exported transform is from the stored one, at most, in voxels of the field it
        was made of.

    Examples
    --------
    >>> bundle = itkstream.export_ants("ants", registration.transform)
    >>> len(bundle.field_factors)
    3
    """

    folder: str
    files: tuple[str, ...]
    field_factors: tuple[int, ...]
    field_error_vox: float


def export_slicer(
    out: str | os.PathLike[str],
    transform: Transform,
    images: tuple[Image, Image],
    *,
    limit_mb: float = 300.0,
    tolerance_vox: float = 0.05,
    overwrite: bool = False,
) -> Bundle:
    """Write a folder that 3D Slicer opens at once: two images, a transform, and what to click.

    Parameters
    ----------
    out : path
        New or empty folder.
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    images : (Image, Image)
        Fixed and moving; averaged to a third of the limit each.
    limit_mb : float
        Most megabytes of the images and the field together.
    tolerance_vox : float
        How far the field may be off where it is thinned out, in its own smallest voxel spacing;
        the limit goes before it.
    overwrite : bool
        Replace an earlier bundle.

    Returns
    -------
    Bundle
        Its files, and the error of the transform.

    Raises
    ------
    InputError
        For another kind of transform, a limit too small, or where `out` touches what is read.
    ExistingOutputError
        Where the folder holds something already.

    Examples
    --------
    >>> bundle = itkstream.export_slicer("for_slicer", registration.transform, (fixed, moving))
    >>> sorted(bundle.files)[0]
    'READ ME.txt'
    """
    if not limit_mb >= _LEAST_MB:
        raise InputError(f"limit_mb must be at least {_LEAST_MB}; got {limit_mb}")
    place = check_bundle_output(out, overwrite, transform, images)
    share = (limit_mb * 2**20 - _OVERHEAD) / 3
    max_nodes = share / (_NODE_BYTES * transform.ndim)
    thin, factors, error = coarsened(transform, tolerance_vox, max_nodes)
    axes = axes_of(transform, images[0].grid.axes)
    shrunk = []
    with claim_folder(place, _PROOF, overwrite) as folder:
        for name, image in zip(("fixed", "moving"), images, strict=True):
            turned = image.reorder(axes).in_unit("micrometer")
            by = factors_to_fit(turned.grid, share / turned.dtype.itemsize)
            coarse = read_coarse(turned, by)
            kept = Image(round_to(coarse.read(), turned.dtype), coarse.grid, name)
            write_itk(folder / f"{name}.nrrd", kept)
            shrunk.append(by)
        write_transform(folder / "transform.h5", thin, axes)
        text = _SLICER_TEXT.format(
            unit="micrometer",
            factors=" and ".join("x".join(map(str, by)) for by in shrunk),
            axes=", ".join(axes),
            error=error,
        )
        files = ("fixed.nrrd", "moving.nrrd", "transform.h5", "READ ME.txt")
        return _finished(folder, text, Bundle(str(place), files, factors, error))


def export_ants(
    out: str | os.PathLike[str],
    transform: Transform,
    *,
    tolerance_vox: float = 0.05,
    unit: str = "micrometer",
    overwrite: bool = False,
) -> Bundle:
    """Write a folder for ANTs: the displacement, the affine, and the call that applies them.

    Parameters
    ----------
    out : path
        New or empty folder.
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    tolerance_vox : float
        How far the field may be off where it is thinned out, in its own smallest voxel spacing.
    unit : str
        Unit of the numbers in the files: "millimeter" for images that ITK knows so, as NIfTI.
    overwrite : bool
        Replace an earlier bundle.

    Returns
    -------
    Bundle
        Its files, and the error of the transform.

    Raises
    ------
    InputError
        For another kind of transform, or where `out` touches what is read.
    ExistingOutputError
        Where the folder holds something already.

    Examples
    --------
    >>> bundle = itkstream.export_ants("for_ants", registration.transform)
    >>> bundle.field_error_vox <= 0.05
    True
    """
    place = check_bundle_output(out, overwrite, transform)
    thin, factors, error = coarsened(transform, tolerance_vox)
    axes = axes_of(thin)
    files = []
    with claim_folder(place, _PROOF, overwrite) as folder:
        for step in steps_of(thin):
            name, order = "affine.tfm", axes
            if isinstance(step, DisplacementField):
                # NIfTI has no 2-D vectors.
                name = f"displacement.{'nii.gz' if step.ndim == 3 else 'nrrd'}"
                order = step.grid.axes
            write_transform(folder / name, step, order, unit=unit)
            files.append(name)
        words = " ".join(f"-t {name}" for name in files)
        text = _ANTS_TEXT.format(unit=unit, ndim=thin.ndim, files=words)
        return _finished(folder, text, Bundle(str(place), (*files, "apply.sh"), factors, error))


def check_bundle_output(out: str | os.PathLike[str], overwrite: bool, *inputs: Any) -> Location:
    """Refuse a folder that a bundle of these inputs cannot be written to, before any work is done.

    Gives the folder.
    """
    check_apart(out, *inputs)
    return check_folder(out, _PROOF, overwrite)


def coarsened(
    transform: Transform, tolerance_vox: float = 0.05, max_nodes: float | None = None
) -> tuple[Transform, tuple[int, ...], float]:
    """A transform with its displacement field on the coarsest lattice that will do.

    Parameters
    ----------
    transform : Transform
        An affine, a displacement field, or a field followed by affines.
    tolerance_vox : float
        How far the field may be off, in its smallest voxel spacing.
    max_nodes : float, optional
        Bound on the field's voxels, which goes before the tolerance.

    Returns
    -------
    transform : Transform
        With the coarser field.
    factors : tuple of int
        Voxels of the field per voxel of the coarser one; 1 where there is no field.
    error_vox : float
        Greatest difference of the two fields, in the smallest voxel spacing of the finer.

    Raises
    ------
    InputError
        For another kind of transform, or a bound that cannot be kept.

    Examples
    --------
    >>> thinned, factors, error_vox = itkstream.coarsened(registration.transform, 0.1)
    >>> error_vox <= 0.1
    True
    """
    simple = compose(transform)
    steps = steps_of(simple)
    field = steps[0]
    if not isinstance(field, DisplacementField):
        return simple, (1,) * simple.ndim, 0.0
    voxel = min(field.grid.spacing)
    thin = coarsen_field(field, tolerance_vox * voxel, max_nodes=max_nodes)
    return compose(thin.field, *steps[1:]), thin.factors, thin.error / voxel


def _finished(folder: Path, text: str, bundle: Bundle) -> Bundle:
    """Write the guide, which is the last of the files, and the proof of what the bundle holds."""
    (folder / bundle.files[-1]).write_text(text, encoding="utf-8")
    (folder / _PROOF).write_text(json.dumps(asdict(bundle), indent=2) + "\n", encoding="utf-8")
    return bundle

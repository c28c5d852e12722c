"""The commands that take a transform: apply it, write it elsewhere, invert, check and repair it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import click

from itkstream.cli.exit_codes import FAILED, NOT_ALIGNED
from itkstream.cli.moving import open_moving
from itkstream.cli.options import (
    Channel,
    Number,
    Which,
    collect_image_options,
    collect_resources,
    open_given_image,
    open_own_image,
    with_image_options,
    with_overwrite,
    with_resources,
)
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell, with_out
from itkstream.errors import MissingDataError

__all__ = ["apply", "check", "export", "invert", "repair"]

_REGIONS_SHOWN = 10
_BUNDLE_TOLERANCE = 0.05  # voxels of the field


@click.command(
    cls=Verb,
    examples=(
        "itkstream apply registered round2.zarr --channel GFP --out gfp.ome.zarr",
        "itkstream apply registered cells.tif --labels --out cells.ome.zarr",
    ),
)
@click.argument("transform", type=click.Path())
@click.argument("moving")
@with_out("Image to write; its ending says as what.", also_last=True)
@click.option(
    "--like",
    metavar="IMAGE",
    help="Image on whose voxels it is wanted. [default: the fixed image]",
)
@click.option(
    "--order",
    type=click.IntRange(0, 3),
    metavar="N",
    default=1,
    show_default=True,
    help="How values between voxels are found: 0 nearest voxel, 1 linear, 3 cubic.",
)
@click.option("--labels", is_flag=True, help="Voxels are labels: no value is ever made up.")
@click.option(
    "--label-gaussian", is_flag=True, help="The same, with borders smoothed; takes longer."
)
@click.option(
    "--background",
    type=Number(),
    help="Value outside. [default: as on MOVING's border if that is bright or negative, else 0]",
)
@click.option(
    "--dtype",
    metavar="TYPE",
    help="Type of the result, such as uint8. [default: that of MOVING]",
)
@click.option(
    "--channel",
    type=Channel(),
    metavar="N|NAME|all",
    help="Channel, counted from 0, or its name, or all. [default: the one registered, if MOVING is "
    "that image; the only one, or the only one named after a stain of nuclei, such as DAPI]",
)
@click.option(
    "--time",
    type=Which(),
    metavar="N|all",
    help="Time point, counted from 0, or all. [default: 0]",
)
@with_overwrite
@with_resources
@with_image_options("like", own=("channel", "time"))
def apply(transform: str, moving: str, out: str, like: str | None, **options: Any) -> None:
    """Resample the image MOVING through TRANSFORM.

    OUT ends in .ome.zarr or .zarr, in .n5, in .ome.tif, .tif or .tiff or, for one image that fits
    in memory, in .nii.gz, .nii, .nrrd or .mha. Integers are rounded and clipped. With --labels,
    voxels take the nearest label.
    --spacing, --unit, --axes, --channel, --time and --level speak of MOVING; what was said of the
    image that was registered need not be said of it again.
    """
    with importing():
        from itkstream.apply.products import check_resampled_output, write_resampled
        from itkstream.io.images.units import itk_unit
        from itkstream.io.storage.inputs import check_apart
        from itkstream.io.transforms.files import read_transform
        from itkstream.numerics.sampling.warping import WarpSettings
        from itkstream.registration.folder import registered_places

    check_apart(out, transform, moving, like, *registered_places(transform))
    check_resampled_output(out, options["overwrite"])
    wanted = _open_lattice(like, options) if like else _read_registered_grid(transform, 0)
    labels = options["labels"] or options["label_gaussian"]
    names = ("nearest", "linear", "quadratic-bspline", "bspline")
    interpolator = names[0 if labels else options["order"]]
    if options["label_gaussian"]:
        interpolator = "label-gaussian"
    write_resampled(
        out,
        open_moving(transform, moving, options),
        read_transform(transform, unit=itk_unit(wanted)),
        wanted,
        WarpSettings(interpolator, None, options["background"], options["dtype"]),
        labels=labels,
        resources=collect_resources(options),
        overwrite=options["overwrite"],
    )
    tell({"written": out}, f"written: {out}")


@click.command(
    cls=Verb,
    examples=(
        "itkstream export registered --out field.nrrd",
        "itkstream export registered --slicer for_slicer --ants for_ants",
    ),
)
@click.argument("transform", type=click.Path())
@with_out("File to write; its ending says as what.", also_last=True, required=False)
@click.option("--slicer", metavar="DIR", help="Folder to write: images and a field for 3D Slicer.")
@click.option("--ants", metavar="DIR", help="Folder to write: files for ANTs, and the call.")
@click.option(
    "--like", metavar="IMAGE", help="Make it a field on the voxels of IMAGE, whatever it is."
)
@click.option(
    "--fixed", metavar="IMAGE", help="Fixed image of the bundle. [default: the one registered]"
)
@click.option(
    "--moving", metavar="IMAGE", help="Moving image of the bundle. [default: the one registered]"
)
@click.option(
    "--limit-mb",
    type=click.FloatRange(0.1),
    metavar="MB",
    default=300.0,
    show_default=True,
    help="Size of the bundle for Slicer: images are made coarser until it fits.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    metavar="VOXELS",
    help="Store fewer vectors, as long as the field stays this near, in its voxels. [default: 0.05 "
    "in bundles, else all are stored]",
)
@click.option("--overwrite", is_flag=True, help="Replace the file or bundle.")
@with_image_options("like", "fixed", "moving", common=False)
def export(transform: str, out: str | None, **options: Any) -> None:
    """Write TRANSFORM as a file for ITK, 3D Slicer and ANTs, or as a bundle for one of them.

    The ending of OUT decides: .tfm or .txt for affines and B-splines, .mat for affines; .h5 for
    any; .nii.gz, .nrrd or .mha for a displacement image with the affine folded in; .ome.zarr for an
    OME-Zarr 0.6 scene. The file is read back and compared before it gets its name. With --like, any
    other chain becomes one field, which can be checked, inverted and written.
    """
    from itkstream.apply.fields import axes_of
    from itkstream.io.images.units import itk_unit
    from itkstream.io.transforms.files import read_transform
    from itkstream.registration.folder import registered_unit
    from itkstream.transform import as_field

    _check_exports(transform, out, options)
    unit = registered_unit(transform)
    like = _open_lattice(options["like"], options) if options["like"] else None
    unit = itk_unit(like) if like else unit
    found = read_transform(transform, unit=unit)
    if like:
        wanted = like.in_unit("micrometer")
        found = as_field(found, wanted.reorder(axes_of(found)))
    facts: dict[str, Any] = {}
    if out:
        facts["file"] = _export_file(out, found, unit, options)
    if options["ants"]:
        facts["ants"] = _export_to_ants(found, unit, options)
    if options["slicer"]:
        facts["slicer"] = _export_to_slicer(transform, found, options)
    tell(facts, *(line for told in facts.values() for line in _describe_export(told)))


@click.command(cls=Verb, examples=("itkstream invert registered --out inverse.ome.zarr",))
@click.argument("transform", type=click.Path())
@with_out("Store or file to write.", also_last=True)
@click.option(
    "--like",
    metavar="IMAGE",
    help="Image on whose voxels it is sampled. [default: the moving image]",
)
@with_overwrite
@with_resources
@with_image_options("like", common=False)
def invert(transform: str, out: str, like: str | None, **options: Any) -> None:
    """Write the inverse of TRANSFORM, from moving to fixed points.

    OUT ends in .ome.zarr; with the displacement goes the error of every voxel, in the array
    inverse_error, and `itkstream export` makes other files of it. The exact inverse of an affine
    may be any file that holds affines.
    """
    from itkstream.apply.fields import axes_of
    from itkstream.apply.products import write_inverse
    from itkstream.geometry import AffineTransform
    from itkstream.io.images.units import itk_unit
    from itkstream.io.storage.inputs import check_apart
    from itkstream.io.transforms.files import (
        check_transform_output,
        read_transform,
        write_transform,
    )
    from itkstream.registration.folder import registered_places, registered_unit
    from itkstream.transform import compose, invert_transform

    check_apart(out, transform, like, *registered_places(transform))
    check_transform_output(out, options["overwrite"])
    wanted = _open_lattice(like, options) if like else None
    unit = itk_unit(wanted) if wanted else registered_unit(transform)
    found = compose(read_transform(transform, unit=unit))
    if isinstance(found, AffineTransform):
        write_transform(out, invert_transform(found), unit=unit, overwrite=options["overwrite"])
        tell({"written": out, "error_vox": 0.0}, f"inverted: {out}")
        return
    grid = wanted or _read_registered_grid(transform, 1)
    worst = write_inverse(
        out,
        found,
        grid.reorder(axes_of(found)).in_unit("micrometer"),
        resources=collect_resources(options),
        overwrite=options["overwrite"],
    )
    facts = {"written": out, "error_vox": worst}
    tell(facts, f"inverted, {worst:.2g} voxels off at most: {out}")


@click.command(
    cls=Verb, examples=("itkstream check registered", "itkstream check field.nrrd --json")
)
@click.argument("transform")
def check(transform: str) -> None:
    """Check TRANSFORM: no folds, an inverse that leads back; of a registration, its verdict.

    The exit code is 0 if it is sound, 1 if not, 2 if it cannot be read, and 4 if it is of a
    registration that failed. --json has a box for each fold.
    """
    with importing():
        from itkstream.apply.certificate import certify
        from itkstream.io.transforms.files import read_transform
        from itkstream.registration.folder import refuse_experiment, registered_verdict

    refuse_experiment(transform)
    found = certify(read_transform(transform), name=transform)
    verdict = registered_verdict(transform)
    failed = verdict is not None and verdict.outcome == "failed"
    code = NOT_ALIGNED if failed else 0 if found["passed"] else FAILED
    told = {} if verdict is None else {"verdict": verdict.facts}
    judged = verdict.describe() if verdict else ()
    tell(found | told, *_describe_soundness(found), *judged, *([] if code else ["passed"]))
    sys.exit(code)


def _describe_soundness(found: Any) -> Iterator[str]:
    yield f"least Jacobian determinant: {found['least_jacobian']:.4g}"
    yield f"voxels folded: {found['folded_voxels']} of {found['voxels']}"
    for region in found["regions"][:_REGIONS_SHOWN]:
        spans = zip(region["first"], region["stop"], strict=True)
        box = ", ".join(f"{first}:{stop}" for first, stop in spans)
        yield f"  voxels {box}: {region['voxels']} folded, least {region['least_jacobian']:.3g}"
    hidden = len(found["regions"]) - _REGIONS_SHOWN
    if hidden > 0:
        yield f"  and {hidden} more regions (--json lists them)"
    yield (
        f"inverse error: median {found['median_inverse_error_vox']:.2g}, largest "
        f"{found['largest_inverse_error_vox']:.2g} voxels"
    )
    for reason in found["failures"]:
        yield f"failed: {reason}"
    if found["repair"]:
        yield f"to smooth the folds alone: {found['repair']}"


@click.command(cls=Verb, examples=("itkstream repair registered --out repaired.ome.zarr",))
@click.argument("transform")
@with_out("File to write; its ending says as what, as for `export`.", also_last=True)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def repair(transform: str, out: str, overwrite: bool) -> None:
    """Smooth TRANSFORM where it folds, and nowhere else."""
    from itkstream.apply.certificate import check_transform
    from itkstream.apply.folds import repair_transform
    from itkstream.io.storage.inputs import check_apart
    from itkstream.io.transforms.files import (
        check_transform_output,
        read_transform,
        write_transform,
    )
    from itkstream.registration.folder import (
        refuse_experiment,
        registered_places,
        registered_unit,
    )

    refuse_experiment(transform)
    check_apart(out, transform, *registered_places(transform))
    unit = registered_unit(transform)
    before = read_transform(transform, unit=unit)
    check_transform_output(out, overwrite, before)
    repaired = repair_transform(before)
    write_transform(out, repaired, unit=unit, overwrite=overwrite)
    least = check_transform(repaired).least_jacobian
    facts = {"written": out, "least_jacobian": least}
    tell(facts, f"least Jacobian determinant: {least:.4g}: {out}")


def _check_exports(transform: str, out: str | None, options: dict[str, Any]) -> None:
    """Refuse places that are inputs, one another's, or not written, before anything is read."""
    from itkstream.apply.bundles import check_bundle_output
    from itkstream.io.storage.inputs import check_apart
    from itkstream.io.transforms.files import check_transform_output
    from itkstream.registration.folder import refuse_experiment, registered_places

    refuse_experiment(transform)
    bundles = [options[name] for name in ("ants", "slicer") if options[name]]
    if not (out or bundles):
        raise click.UsageError("say what to write: --out FILE, --slicer DIR or --ants DIR")
    inputs = [transform, *(options[name] for name in ("like", "fixed", "moving"))]
    places = [*([out] if out else []), *bundles]
    for number, place in enumerate(places):
        check_apart(place, *inputs, *places[:number], *registered_places(transform))
    if out:
        check_transform_output(out, options["overwrite"])
    for place in bundles:
        check_bundle_output(place, options["overwrite"])


def _export_file(out: str, found: Any, unit: str, options: dict[str, Any]) -> dict[str, Any]:
    from itkstream.apply.bundles import coarsened
    from itkstream.io.transforms.files import write_transform

    thinned = {}
    if options["tolerance"]:
        found, factors, error = coarsened(found, options["tolerance"])
        thinned = {"thinned_by": [*factors], "error_vox": error}
    same = write_transform(out, found, unit=unit, overwrite=options["overwrite"])
    return thinned | {"written": out, "same_to": same}


def _export_to_ants(found: Any, unit: str, options: dict[str, Any]) -> dict[str, Any]:
    from itkstream.apply.bundles import export_ants

    return asdict(
        export_ants(
            options["ants"],
            found,
            tolerance_vox=options["tolerance"] or _BUNDLE_TOLERANCE,
            unit=unit,
            overwrite=options["overwrite"],
        )
    )


def _export_to_slicer(transform: str, found: Any, options: dict[str, Any]) -> dict[str, Any]:
    from itkstream.apply.bundles import export_slicer

    return asdict(
        export_slicer(
            options["slicer"],
            found,
            _open_bundle_images(transform, options),
            limit_mb=options["limit_mb"],
            tolerance_vox=options["tolerance"] or _BUNDLE_TOLERANCE,
            overwrite=options["overwrite"],
        )
    )


def _describe_export(told: dict[str, Any]) -> Iterator[str]:
    if "folder" in told:
        files, error = ", ".join(told["files"]), told["field_error_vox"]
        yield f"written, {error:.2g} voxels off at most: {told['folder']}: {files}"
        return
    if "thinned_by" in told:
        by = " x ".join(map(str, told["thinned_by"]))
        yield f"field thinned out by {by}: {told['error_vox']:.2g} voxels off at most"
    yield f"written, and the same to {told['same_to']:.1e}: {told['written']}"


def _open_lattice(like: str, options: dict[str, Any]) -> Any:
    """The lattice of the image of --like, which all of its channels have."""
    said = collect_image_options(options, "like", common=False)
    any_channel = 0 if said.channel is None else said.channel
    return open_given_image("like", replace(said, channel=any_channel), like).grid


def _read_registered_grid(transform: str, side: int) -> Any:
    """The lattice of the fixed or the moving image that were registered."""
    from itkstream.io.storage.locations import Location
    from itkstream.registration.folder import registered_grids

    if not Location.parse(transform).exists():
        raise MissingDataError(f"there is no transform {transform}: check the name")
    try:
        return registered_grids(transform)[side]
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}: say --like IMAGE, on whose voxels it is wanted"
        ) from error


def _open_bundle_images(transform: str, options: dict[str, Any]) -> Any:
    from itkstream.registration.folder import registered_images

    given = [
        open_own_image(s, options[s], options) if options[s] else None for s in ("fixed", "moving")
    ]
    if None in given:
        registered = registered_images(transform)
        given = [image or found for image, found in zip(given, registered, strict=True)]
    return tuple(given)

"""The command that registers a pair of images, or previews that."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.console import console_reporter, make_console, tabulate_plan
from itkstream.cli.options import (
    choose_given_pair,
    collect_config,
    collect_resources,
    with_block,
    with_image_options,
    with_initial,
    with_local_block,
    with_masks,
    with_overwrite,
    with_resources,
)
from itkstream.cli.outcome import tell_outcome
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell, wants_json, with_out

__all__ = ["register"]


@click.command(
    cls=Verb,
    examples=(
        "itkstream register round1.n5/lowres round2.n5/lowres --out registered",
        "itkstream register fix.tif mov.tif --spacing 2,0.5,0.5 --channel DAPI -o registered",
        "itkstream register a.zarr b.zarr -o registered --crop 0:200,:,: --memory 8GB",
    ),
)
@click.argument("fixed")
@click.argument("moving")
@with_out("Folder to write.")
@click.option(
    "--radii",
    type=(float, float),
    metavar="MIN MAX",
    help="Smallest and largest radius of the nuclei, in voxels of the coarse level (that at which "
    "the image has at most 20 million). [default: several are tried]",
)
@click.option(
    "--match-threshold",
    type=float,
    metavar="R",
    help="How alike two nuclei must be to match, as a correlation from -1 to 1. "
    "[default: 0.7, or from the data where few match]",
)
@click.option(
    "--context-radius",
    type=int,
    metavar="N",
    help="Half width of the window by which nuclei are compared, in voxels of the coarse level. "
    "[default: 12, or from the data where few match]",
)
@click.option(
    "--contrast",
    type=click.Choice(("same", "inverted")),
    help="Contrast of MOVING: inverted where it is dark where FIXED is bright. [default: same]",
)
@click.option(
    "--mirror", is_flag=True, default=None, help="MOVING may be a mirror image: it is searched."
)
@with_block
@click.option(
    "--overlap",
    type=int,
    metavar="N",
    help="How far blocks look beyond their border, in voxels. [default: an eighth of a block]",
)
@with_local_block
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Random numbers of the fit: the same seed, the same result. [default: 0]",
)
@with_initial
@click.option(
    "--orient",
    type=(str, str),
    metavar="FIXED MOVING",
    help="How both images are known to lie, to start from: three letters each for where x, y and z "
    "lead, such as LIP RAS (left or right, anterior or posterior, inferior or superior), or `file` "
    "where its direction says it.",
)
@click.option(
    "--background",
    type=float,
    metavar="VALUE",
    help="Value of the aligned image outside MOVING. [default: as on its border if that is bright "
    "or negative, else 0]",
)
@click.option(
    "--no-error-map",
    is_flag=True,
    default=None,
    help="Leave out the map of how far off the result may be.",
)
@click.option(
    "--landmarks",
    multiple=True,
    metavar="FILE",
    help="Pairs of landmarks: CSV with columns fixed_x ... moving_z, or of BigWarp. Twice, fixed "
    "first, for files of one image each, as of Slicer and napari.",
)
@click.option(
    "--landmark-unit",
    metavar="NAME",
    help="Unit of the landmarks' coordinates, such as millimeter; voxel for indices. [default: "
    "what the file says, else micrometer]",
)
@click.option(
    "--landmark-sigma",
    type=float,
    metavar="UM",
    help="How exactly landmarks were placed: standard deviation, in µm. [default: a voxel]",
)
@click.option(
    "--near-landmarks",
    is_flag=True,
    default=None,
    help="Only deform, only in blocks with a landmark that --initial misses: to add landmarks to a "
    "finished registration.",
)
@click.option(
    "--hold-out",
    type=float,
    metavar="SHARE",
    help="Share of the landmarks that only judge the result. [default: 0]",
)
@with_masks
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file of steps and settings, as `itkstream config --defaults` prints one, or the "
    "registration.json of a run to repeat.",
)
@click.option(
    "--crop",
    "part",
    metavar="A:B,A:B,A:B",
    help="Register this part of FIXED alone, per axis, in voxels or µm, such as 100:400,0:200um,:, "
    "with what of MOVING it may lie in. The transform is in the coordinates of the whole images.",
)
@click.option(
    "--preview",
    "previewed",
    is_flag=True,
    help="Register a few blocks at full settings, tell what the whole would take, and write only "
    "a page about it, OUT.preview.html.",
)
@click.option(
    "--no-report", "report", flag_value=False, default=None, help="Leave report.html out."
)
@with_resources
@with_overwrite
@with_image_options("fixed", "moving", own=("crop",))
def register(fixed: str, moving: str, out: str, **options: Any) -> None:
    """Register MOVING to FIXED: affine, piecewise affine, deformation, aligned image.

    FIXED and MOVING are N5 or Zarr datasets (round1.n5/lowres), OME-Zarr, NIfTI, NRRD, MHA, TIFF or
    .npy files, or folders of TIFF planes. The folder gets the transform, the aligned image, ITK
    transform files and a report: open report.html. N5, Zarr and the folder may lie in object
    stores: s3://bucket/name, gs://bucket/name.

    At the end a verdict says whether the result is good, why not, and where to look. The exit code
    is 4 where it failed; all files are kept.
    """
    with importing():
        from itkstream.io.storage.inputs import check_apart
        from itkstream.pipelines import register as run

    check_apart(out, fixed, moving, options["config_file"])
    config = collect_config(options)
    check_apart(out, *config.landmarks.files)
    console = make_console()
    with console_reporter(console) as reporter:
        chosen = choose_given_pair((config.fixed, config.moving), (fixed, moving), reporter)
    images = chosen.images
    if options["previewed"]:
        _preview(images, out, config, options)
        return
    with console_reporter(console) as reporter:
        result = run(
            *images,
            out,
            config.steps,
            config.settings,
            initial_transform=config.start(*images),
            fixed_mask=config.fixed_mask,
            moving_mask=config.moving_mask,
            landmarks=config.landmarks.read(*images),
            hold_out=config.landmarks.hold_out,
            crop=options["part"],
            resources=collect_resources(options, config.engine),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    advice = [f"advice: {line}" for line in result.facts.get("advice", {}).get("lines", ())]
    tell_outcome(result, {"advice": advice}, *advice)


def _preview(images: tuple[Any, Any], out: str, config: Any, options: dict[str, Any]) -> None:
    """Write the page about a few blocks beside the folder that the registration would get."""
    from itkstream.pipelines import preview as run

    if config.landmarks.files or options["part"]:
        raise click.UsageError("--preview takes neither --landmarks nor --crop")
    console = make_console()
    with console_reporter(console) as reporter:
        result = run(
            *images,
            f"{out.rstrip('/')}.preview.html",
            config.steps,
            config.settings,
            initial_transform=config.start(*images),
            fixed_mask=config.fixed_mask,
            moving_mask=config.moving_mask,
            resources=collect_resources(options, config.engine),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    if not wants_json():
        console.print(tabulate_plan(result.plan))
    tell({"preview": str(result.page), "plan": result.plan.facts}, f"preview: {result.page}")

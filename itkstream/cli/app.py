"""The command line: parse, call one pipeline, report."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

import click
from rich.console import Console

from itkstream.cli.commands import transform_commands
from itkstream.cli.commands.advise import advise
from itkstream.cli.commands.report import report
from itkstream.cli.commands.serve import serve, view
from itkstream.cli.console import ConsoleReporter, tabulate_plan
from itkstream.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED, NOT_ALIGNED
from itkstream.cli.options import (
    CommandOfImages,
    collect_config,
    collect_resources,
    name_options,
    open_given_image,
    with_image_options,
    with_overwrite,
    with_resources,
)
from itkstream.errors import (
    BlockErrors,
    InterruptedRunError,
    ItkstreamError,
    OutputError,
    WorkersError,
)

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="itkstream")
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
def commands(verbose: int) -> None:
    """Register 3-D images too large for memory."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("itkstream").setLevel(level)


for _name in transform_commands.__all__:
    commands.add_command(getattr(transform_commands, _name))
commands.add_command(advise)
commands.add_command(report)
commands.add_command(serve)
commands.add_command(view)


@commands.command(cls=CommandOfImages)
@click.argument("fixed")
@click.argument("moving")
@click.option("--out", required=True, help="Folder to write.")
@click.option(
    "--radii",
    type=(float, float),
    metavar="MIN MAX",
    help="Radii of the nuclei, in voxels of the coarse level. [default: several are tried]",
)
@click.option("--match-threshold", type=float, help="Least correlation of a match. [default: 0.7]")
@click.option(
    "--context-radius",
    type=int,
    help="Half width of the window by which nuclei are compared, in voxels. [default: 12]",
)
@click.option(
    "--contrast",
    type=click.Choice(("same", "inverted")),
    help="Contrast of MOVING: inverted where it is dark where FIXED is bright. [default: same]",
)
@click.option(
    "--mirror", is_flag=True, default=None, help="MOVING may be a mirror image: it is searched."
)
@click.option("--block", type=int, help="Voxels per block of the deformation. [default: 256]")
@click.option(
    "--overlap",
    type=int,
    help="Voxels that blocks look beyond their border. [default: an eighth of a block]",
)
@click.option(
    "--local-block",
    type=int,
    help="Voxels of the coarse level per block of the piecewise affine; 0: none. [default: 128]",
)
@click.option("--seed", type=int, help="Seed of the robust fit. [default: 0]")
@click.option(
    "--initial",
    metavar="FILE",
    help="Transform file to start from, such as landmarks of Slicer or an affine of ANTs.",
)
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
@click.option("--fixed-mask", metavar="FILE", help="Image, not 0 where fixed voxels count.")
@click.option("--moving-mask", metavar="FILE", help="Image, not 0 where moving voxels count.")
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
    from itkstream.io.storage.inputs import check_apart
    from itkstream.pipelines import register as run

    check_apart(out, fixed, moving, options["config_file"])
    config = collect_config(options)
    check_apart(out, *config.landmarks.files)
    images = (
        open_given_image("fixed", config.fixed, fixed),
        open_given_image("moving", config.moving, moving),
    )
    console = Console()
    if options["previewed"]:
        _preview(console, images, out, config, options)
        return
    with ConsoleReporter(console) as reporter:
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
            resources=collect_resources(options),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    for line in result.verdict.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in result.report.get("advice", {}).get("lines", ()):
        console.print(f"advice: {line}", highlight=False, markup=False, soft_wrap=True)
    if result.verdict.outcome == "failed":
        console.print(f"files kept: {result.out}", highlight=False, soft_wrap=True)
        sys.exit(NOT_ALIGNED)
    console.print(f"registered: {result.out}", highlight=False, soft_wrap=True)


def _preview(
    console: Console, images: tuple[Any, Any], out: str, config: Any, options: dict[str, Any]
) -> None:
    """Write the page about a few blocks beside the folder that the registration would get."""
    from itkstream.pipelines import preview as run

    if config.landmarks.files or options["part"]:
        raise click.UsageError("--preview takes neither --landmarks nor --crop")
    with ConsoleReporter(console) as reporter:
        result = run(
            *images,
            f"{out.rstrip('/')}.preview.html",
            config.steps,
            config.settings,
            initial_transform=config.start(*images),
            fixed_mask=config.fixed_mask,
            moving_mask=config.moving_mask,
            resources=collect_resources(options),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    console.print(tabulate_plan(result.plan))
    console.print(f"preview: {result.page}", highlight=False, soft_wrap=True)


@commands.command(cls=CommandOfImages)
@click.argument("fixed")
@click.argument("moving")
@click.option("--block", type=int, help="Voxels per block of the deformation. [default: 256]")
@click.option("--local-block", type=int, help="As in `register`.")
@click.option(
    "--probe", type=click.IntRange(0), default=0, help="Blocks computed to tell the time."
)
@click.option("--config", "config_file", metavar="FILE", help="YAML file of steps and settings.")
@with_resources
@with_image_options("fixed", "moving")
def plan(fixed: str, moving: str, probe: int, **options: Any) -> None:
    """Show what registering MOVING to FIXED will need: memory, disk, tasks, time.

    Nothing is written. With --memory, blocks and threads are chosen to fit it; `register` with the
    same options chooses the same. The exit code is 2 where the memory is too small.
    """
    from itkstream.pipelines import plan as make

    config = collect_config(options)
    made = make(
        open_given_image("fixed", config.fixed, fixed),
        open_given_image("moving", config.moving, moving),
        config.steps,
        config.settings,
        resources=collect_resources(options),
        probe=probe,
    )
    console = Console()
    console.print(tabulate_plan(made))
    processes = f"{made.workers} worker processes" if made.workers else "this process"
    console.print(f"{processes}, {made.threads} blocks at a time each", highlight=False)
    console.print(made.choices(), highlight=False, soft_wrap=True)
    made.require_fit()


@commands.command()
@click.option("--defaults", is_flag=True, help="Print the default steps and settings.")
@click.argument("file", required=False)
def config(defaults: bool, file: str | None) -> None:
    """Print the steps and settings of FILE, checked and in full, or the defaults, as YAML."""
    from itkstream.cli.config import Config, read_config, to_yaml

    if defaults == (file is not None):
        raise click.UsageError("give either --defaults or a FILE")
    click.echo(to_yaml(Config() if file is None else read_config(file)), nl=False)


@commands.command()
@click.option("--out", required=True, help="Folder to write.")
@with_resources
@with_overwrite
def demo(out: str, **options: Any) -> None:
    """Register a synthetic pair of rounds and print the error against the truth."""
    from itkstream.cli.commands.demo import run_demo

    console = Console()
    with ConsoleReporter(console) as reporter:
        result = run_demo(
            out,
            resources=collect_resources(options),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    for name, error in (("before", result.before), ("after", result.after)):
        summary = error.summary()
        console.print(
            f"target registration error {name}: median {summary['median_vox']:.2f}, "
            f"95th percentile {summary['p95_vox']:.2f} voxels",
            highlight=False,
        )
    console.print(f"voxels folded: {result.folds}", highlight=False)
    console.print(f"picture: {result.overlay}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line, without tracebacks for what it knows.

    Exit code 1: a result is missing or not sound; 2: the input is at fault; 4: the images were not
    aligned; 130: it was stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as cleanly as Ctrl-C does
    try:
        commands.main(prog_name="itkstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(_describe_stop(error), err=True)
        sys.stdout.flush()
        # Everything is put away; threads still in compiled code would abort a slower end.
        os._exit(INTERRUPTED)
    except (BlockErrors, OutputError, WorkersError) as error:
        click.echo(f"itkstream: {error}", err=True)
        sys.exit(FAILED)
    except ItkstreamError as error:
        click.echo(f"itkstream: {name_options(str(error))}", err=True)
        sys.exit(BAD_INPUT)


def _describe_stop(error: BaseException) -> str:
    """Read how far a run was from its exception, which click puts one of its own around."""
    run = error.__cause__ if isinstance(error, click.Abort) else error
    return str(run) if isinstance(run, InterruptedRunError) else "stopped"

"""The command line: parse, call one pipeline, report."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import click
from rich.console import Console

from itkstream.console import ConsoleReporter, plan_table
from itkstream.errors import (
    BlockErrors,
    InterruptedRunError,
    ItkstreamError,
    MissingDataError,
    OutputError,
    WorkersError,
)

__all__ = ["main"]

_FAILED = 1
_REGIONS_SHOWN = 10
_BAD_INPUT = 2
_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="itkstream")
@click.option("-v", "--verbose", count=True, help="Log more; twice for everything.")
def commands(verbose: int) -> None:
    """Register 3-D images too large for memory."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("itkstream").setLevel(level)


def _resource_options() -> list[Callable[..., Any]]:
    """In the order of the help text, from its end."""
    count = click.IntRange(1)
    options = (
        ("--workers", count, "n_workers", "Worker processes. [default: threads of this process]"),
        ("--threads", count, "threads_per_worker", "Blocks computed at a time by each worker."),
        ("--memory-limit", str, "memory_limit", "Memory of each worker process, such as 8GB."),
        (
            "--cluster",
            str,
            "cluster",
            "slurm, lsf, pbs, sge, htcondor, oar or moab; a scheduler's address; or a cluster "
            "named in ~/.config/itkstream/clusters.yaml. [default: this machine]",
        ),
        ("--cores", count, "cores", "Cores per job."),
        ("--processes", count, "processes", "Worker processes per job. [default: 1]"),
        ("--memory", str, "memory", "Memory per job, such as 16GB."),
        ("--walltime", str, "walltime", "How long a job may run: hours:minutes."),
        ("--queue", str, "queue", "Where jobs wait."),
        ("--project", str, "project", "Which project is charged for the jobs."),
        ("--min-workers", count, "min_workers", "Workers to hold. [default: 1 job]"),
        ("--max-workers", count, "max_workers", "Workers to ask for. [default: 4 jobs]"),
    )
    return [
        click.option(flag, name, type=kind, help=text)
        for flag, kind, name, text in reversed(options)
    ]


def _with_resources(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what a run may use."""
    for option in _resource_options():
        command = option(command)
    return command


def _with_overwrite(command: Callable[..., None]) -> Callable[..., None]:
    text = "Replace an earlier run in the folder."
    return click.option("--overwrite", is_flag=True, help=text)(command)


@commands.command()
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
@click.option("--block", type=int, help="Voxels per block of the deformation. [default: 256]")
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
@click.option("--fixed-mask", metavar="FILE", help="Image, not 0 where fixed voxels count.")
@click.option("--moving-mask", metavar="FILE", help="Image, not 0 where moving voxels count.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file of steps and settings, as `itkstream config --defaults` prints one.",
)
@_with_resources
@_with_overwrite
def register(fixed: str, moving: str, out: str, **options: Any) -> None:
    """Register MOVING to FIXED: affine, piecewise affine, deformation, aligned image.

    FIXED and MOVING are N5 or Zarr datasets (round1.n5/lowres), OME-Zarr, NIfTI, NRRD, MHA or
    TIFF files. The folder gets the transform, the aligned image, ITK transform files and a
    report. N5, Zarr and the folder may lie in object stores: s3://bucket/name, gs://bucket/name.
    """
    from itkstream.pipelines import register as run

    config = _config(options)
    console = Console()
    with ConsoleReporter(console) as reporter:
        result = run(
            fixed,
            moving,
            out,
            config.steps,
            config.settings,
            initial_transform=config.initial_transform,
            fixed_mask=config.fixed_mask,
            moving_mask=config.moving_mask,
            resources=_resources(options),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    console.print(f"registered: {result.out}", highlight=False, soft_wrap=True)


@commands.command()
@click.argument("fixed")
@click.argument("moving")
@click.option("--block", type=int, help="Voxels per block of the deformation. [default: 256]")
@click.option("--local-block", type=int, help="As in `register`.")
@click.option(
    "--probe", type=click.IntRange(0), default=0, help="Blocks computed to tell the time."
)
@click.option("--config", "config_file", metavar="FILE", help="YAML file of steps and settings.")
@_with_resources
def plan(fixed: str, moving: str, probe: int, **options: Any) -> None:
    """Show what registering MOVING to FIXED will need: memory, disk, tasks, time.

    Nothing is written. With --memory, blocks and threads are chosen to fit it; `register` with the
    same options chooses the same. The exit code is 2 where the memory is too small.
    """
    from itkstream.pipelines import plan as make

    config = _config(options)
    made = make(
        fixed,
        moving,
        config.steps,
        config.settings,
        resources=_resources(options),
        probe=probe,
    )
    console = Console()
    console.print(plan_table(made))
    processes = f"{made.workers} worker processes" if made.workers else "this process"
    console.print(f"{processes}, {made.threads} blocks at a time each", highlight=False)
    console.print(made.choices(), highlight=False, soft_wrap=True)
    made.require_fit()


@commands.command()
@click.option("--defaults", is_flag=True, help="Print the default steps and settings.")
@click.argument("file", required=False)
def config(defaults: bool, file: str | None) -> None:
    """Print the steps and settings of FILE, checked and in full, or the defaults, as YAML."""
    from itkstream.config import Config, read_config, to_yaml

    if defaults == (file is not None):
        raise click.UsageError("give either --defaults or a FILE")
    click.echo(to_yaml(Config() if file is None else read_config(file)), nl=False)


@commands.command()
@click.option("--out", required=True, help="Folder to write.")
@_with_resources
@_with_overwrite
def demo(out: str, **options: Any) -> None:
    """Register a synthetic pair of rounds and print the error against the truth."""
    from itkstream.demo import run_demo

    console = Console()
    with ConsoleReporter(console) as reporter:
        result = run_demo(
            out,
            resources=_resources(options),
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


class _Number(click.ParamType):
    """A number; whole ones keep every digit."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return int(value)
        except (ValueError, OverflowError):
            return float(click.FLOAT.convert(value, param, ctx))


class _Which(click.ParamType):
    """A place counted from 0, or all of them, which is None."""

    name = "number|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value == "all":
            return None
        return int(click.IntRange(0).convert(value, param, ctx))


@commands.command()
@click.argument("transform", type=click.Path())
@click.argument("moving")
@click.argument("out")
@click.option("--like", help="Image on whose voxels it is wanted. [default: the fixed image]")
@click.option("--order", type=click.IntRange(0, 3), default=1, show_default=True)
@click.option("--labels", is_flag=True, help="Voxels are labels: no value is ever made up.")
@click.option(
    "--label-gaussian", is_flag=True, help="The same, with borders smoothed; takes longer."
)
@click.option("--background", type=_Number(), default=0, show_default=True, help="Value outside.")
@click.option("--dtype", help="Type of the result, such as uint8. [default: that of MOVING]")
@click.option("--channel", type=_Which(), default=0, show_default=True, help="A number, or all.")
@click.option("--time", type=_Which(), default=0, show_default=True, help="A number, or all.")
@_with_overwrite
@_with_resources
def apply(transform: str, moving: str, out: str, like: str | None, **options: Any) -> None:
    """Resample the image MOVING through TRANSFORM into the OME-Zarr OUT.

    Integers are rounded and clipped. With --labels, voxels take the nearest label.
    """
    from itkstream import exports
    from itkstream.block_kernels import WarpSettings
    from itkstream.io import open_image
    from itkstream.io.transform_files import read_transform

    labels = options["labels"] or options["label_gaussian"]
    names = ("nearest", "linear", "quadratic-bspline", "bspline")
    interpolator = names[0 if labels else options["order"]]
    if options["label_gaussian"]:
        interpolator = "label-gaussian"
    exports.write_resampled(
        out,
        _series(moving, options["channel"], options["time"]),
        read_transform(transform),
        open_image(like).grid if like else _registered_grid(transform, 0),
        WarpSettings(interpolator, None, options["background"], options["dtype"]),
        labels=labels,
        resources=_resources(options),
        overwrite=options["overwrite"],
    )
    click.echo(f"written: {out}")


@commands.command()
@click.argument("transform", type=click.Path())
@click.argument("points", type=click.Path())
@click.option("--out", type=click.Path(), required=True, help="File to write.")
@click.option("--inverse", is_flag=True, help="Map moving points to fixed ones.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def points(transform: str, points: str, out: str, inverse: bool, overwrite: bool) -> None:
    """Map the POINTS of a file through TRANSFORM, from fixed to moving.

    POINTS is a CSV or Parquet file with columns x, y, z (others are kept), or a numpy array
    (m, 3) in this order; in micrometers. TRANSFORM is a registration folder, a
    transform.ome.zarr, an ITK transform file or a displacement image. The CSV file written has a
    column `outside`: 1 where the transform says nothing about a point.
    """
    from itkstream.geometry import default_axes
    from itkstream.io.points import read_points, write_points
    from itkstream.io.transform_files import read_transform
    from itkstream.transform import apply_to_points

    stored = read_transform(transform)
    opened = read_transform(transform, default_axes(stored.ndim))
    table = read_points(points, opened.ndim)
    mapped = apply_to_points(opened, table.points, inverse=inverse)
    write_points(out, table, mapped.points, mapped.outside, overwrite=overwrite)
    click.echo(f"{len(mapped.points)} points mapped, {int(mapped.outside.sum())} outside: {out}")


@commands.command()
@click.argument("transform", type=click.Path())
@click.argument("out", type=click.Path(), required=False)
@click.option("--slicer", metavar="DIR", help="Folder to write: images and a field for 3D Slicer.")
@click.option("--ants", metavar="DIR", help="Folder to write: files for ANTs, and the call.")
@click.option(
    "--like", metavar="IMAGE", help="Make it a field on the voxels of IMAGE, whatever it is."
)
@click.option("--fixed", help="Fixed image of the bundle. [default: the one registered]")
@click.option("--moving", help="Moving image of the bundle. [default: the one registered]")
@click.option("--limit-mb", type=float, default=300.0, show_default=True, help="Of the bundle.")
@click.option(
    "--tolerance",
    type=float,
    help="Thin the field out by this error, in its voxels. [default: 0.05 in bundles, else none]",
)
@click.option("--overwrite", is_flag=True, help="Replace the file or bundle.")
def export(transform: str, out: str | None, **options: Any) -> None:
    """Write TRANSFORM as the file OUT, for ITK, 3D Slicer and ANTs, or as a bundle for one of them.

    The ending of OUT decides: .tfm or .txt for affines and B-splines, .mat for affines; .h5 for
    any; .nii.gz, .nrrd or .mha for a displacement image with the affine folded in; .ome.zarr for an
    OME-Zarr 0.6 scene. The file is read back and compared before it gets its name. With --like, any
    other chain becomes one field, which can be checked, inverted and written.
    """
    from itkstream import exports
    from itkstream.io import open_image
    from itkstream.io.transform_files import read_transform, write_transform
    from itkstream.transform import as_field

    if not (out or options["slicer"] or options["ants"]):
        raise click.UsageError("say what to write: a file OUT, --slicer DIR or --ants DIR")
    found = read_transform(transform)
    if options["like"]:
        wanted = open_image(options["like"]).grid.in_unit("micrometer")
        found = as_field(found, wanted.reorder(("z", "y", "x")[-found.ndim :]))
    overwrite, tolerance = options["overwrite"], options["tolerance"]
    if out:
        thin, factors, error = (found, None, 0.0)
        if tolerance:
            thin, factors, error = exports.coarsened(found, tolerance)
            click.echo(f"field thinned out by {factors}: {error:.2g} voxels off at most")
        same = write_transform(out, thin, overwrite=overwrite)
        click.echo(f"written, and the same to {same:.1e}: {out}")
    tolerance = tolerance or 0.05
    if options["ants"]:
        _say(
            exports.export_ants(
                options["ants"], found, tolerance_vox=tolerance, overwrite=overwrite
            )
        )
    if options["slicer"]:
        bundle = exports.export_slicer(
            options["slicer"],
            found,
            _images(transform, options["fixed"], options["moving"]),
            limit_mb=options["limit_mb"],
            tolerance_vox=tolerance,
            overwrite=overwrite,
        )
        _say(bundle)


@commands.command()
@click.argument("transform", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--like", help="Image on whose voxels it is sampled. [default: the moving image]")
@_with_overwrite
@_with_resources
def invert(transform: str, out: str, like: str | None, **options: Any) -> None:
    """Write the inverse of TRANSFORM, from moving to fixed points, as the store OUT.

    OUT ends in .ome.zarr; with the displacement goes the error of every voxel, in the array
    inverse_error, and `itkstream export` makes other files of it. The exact inverse of an affine
    may be any file that holds affines.
    """
    from itkstream import exports
    from itkstream.geometry import AffineTransform
    from itkstream.io import open_image
    from itkstream.io.transform_files import read_transform, write_transform
    from itkstream.transform import compose, invert_transform

    found = compose(read_transform(transform))
    if isinstance(found, AffineTransform):
        write_transform(out, invert_transform(found), overwrite=options["overwrite"])
        click.echo(f"inverted: {out}")
        return
    grid = open_image(like).grid if like else _registered_grid(transform, 1)
    axes = ("z", "y", "x")[-found.ndim :]
    worst = exports.write_inverse(
        out,
        found,
        grid.reorder(axes).in_unit("micrometer"),
        resources=_resources(options),
        overwrite=options["overwrite"],
    )
    click.echo(f"inverted, {worst:.2g} voxels off at most: {out}")


@commands.command()
@click.argument("transform")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with a box for each fold.")
def check(transform: str, as_json: bool) -> None:
    """Check TRANSFORM: no folds, and an inverse that leads back.

    The exit code is 0 if it is sound, 1 if not, and 2 if it cannot be read.
    """
    from itkstream.certificate import certify
    from itkstream.io.transform_files import read_transform

    found = certify(read_transform(transform), name=transform)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        sys.exit(0 if found["passed"] else _FAILED)
    click.echo(f"least Jacobian determinant: {found['least_jacobian']:.4g}")
    click.echo(f"voxels folded: {found['folded_voxels']} of {found['voxels']}")
    for region in found["regions"][:_REGIONS_SHOWN]:
        spans = zip(region["first"], region["stop"], strict=True)
        box = ", ".join(f"{first}:{stop}" for first, stop in spans)
        click.echo(f"  [{box}]: {region['voxels']} voxels, least {region['least_jacobian']:.3g}")
    hidden = len(found["regions"]) - _REGIONS_SHOWN
    if hidden > 0:
        click.echo(f"  and {hidden} more regions (--json lists them)")
    click.echo(
        f"inverse error: median {found['median_inverse_error_vox']:.2g}, largest "
        f"{found['largest_inverse_error_vox']:.2g} voxels"
    )
    for reason in found["failures"]:
        click.echo(f"failed: {reason}")
    if found["repair"]:
        click.echo(f"to smooth the folds alone: {found['repair']}")
    if not found["passed"]:
        sys.exit(_FAILED)
    click.echo("passed")


@commands.command()
@click.argument("transform")
@click.argument("out")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def repair(transform: str, out: str, overwrite: bool) -> None:
    """Smooth TRANSFORM where it folds, and nowhere else, and write it as the file OUT.

    The ending of OUT decides the format, as for `export`.
    """
    from itkstream.certificate import check_transform, repair_transform
    from itkstream.io.transform_files import read_transform, write_transform

    before = read_transform(transform)
    repaired = repair_transform(before)
    write_transform(out, repaired, overwrite=overwrite)
    click.echo(f"least Jacobian determinant: {check_transform(repaired).least_jacobian:.4g}: {out}")


def main() -> None:
    """Run the command line, without tracebacks for what it knows.

    Exit code 1: a result is missing or not sound; 2: the input is at fault; 130: it was stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as cleanly as Ctrl-C does
    try:
        commands.main(prog_name="itkstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(_how_far(error), err=True)
        sys.stdout.flush()
        # Everything is put away; threads still in compiled code would abort a slower end.
        os._exit(_INTERRUPTED)
    except (BlockErrors, OutputError, WorkersError) as error:
        click.echo(f"itkstream: {error}", err=True)
        sys.exit(_FAILED)
    except ItkstreamError as error:
        click.echo(f"itkstream: {error}", err=True)
        sys.exit(_BAD_INPUT)


def _how_far(error: BaseException) -> str:
    """What a run said when it was stopped; click puts its own exception around it."""
    run = error.__cause__ if isinstance(error, click.Abort) else error
    return str(run) if isinstance(run, InterruptedRunError) else "stopped"


def _series(path: str, channel: int | None, time: int | None) -> Any:
    """An image, or all channels, all time points, or both."""
    from itkstream.exports import Series
    from itkstream.io import open_image, open_series

    if channel is not None and time is not None:
        return open_image(path, channel=channel, time=time)
    times = [time or 0]
    if time is None:
        times = list(range(len(open_series(path, "time", channel=channel or 0))))
    channels = [channel or 0]
    if channel is None:
        channels = list(range(len(open_series(path, "channel", time=times[0]))))
    images = tuple(open_image(path, channel=c, time=t) for t in times for c in channels)
    axes = (("t", len(times), time), ("c", len(channels), channel))
    return Series(images, tuple((name, n) for name, n, chosen in axes if chosen is None))


def _registered_grid(transform: str, side: int) -> Any:
    """The lattice of the fixed or the moving image that were registered."""
    from itkstream.exports import registered_grids

    try:
        return registered_grids(transform)[side]
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}: say --like IMAGE, on whose voxels it is wanted"
        ) from error


def _images(transform: str, fixed: str | None, moving: str | None) -> Any:
    from itkstream.exports import registered_images
    from itkstream.io import open_image

    if fixed and moving:
        return open_image(fixed), open_image(moving)
    found = registered_images(transform)
    return (open_image(fixed) if fixed else found[0], open_image(moving) if moving else found[1])


def _say(bundle: Any) -> None:
    click.echo(
        f"written, {bundle.field_error_vox:.2g} voxels off at most: {bundle.folder}: "
        f"{', '.join(bundle.files)}"
    )


def _config(options: dict[str, Any]) -> Any:
    """What a file says, or the options that change steps; files named by options come first."""
    from itkstream.config import Config, read_config

    changing = [name for name in _STEP_OPTIONS if options.get(name) is not None]
    if options["config_file"] is None:
        config = Config(tuple(_steps(options)))
    elif changing:
        raise click.UsageError(
            f"--{changing[0].replace('_', '-')} and --config exclude each other: say it in the file"
        )
    else:
        config = read_config(options["config_file"])
    files = {
        "initial_transform": options.get("initial"),
        "fixed_mask": options.get("fixed_mask"),
        "moving_mask": options.get("moving_mask"),
    }
    return replace(config, **{name: file for name, file in files.items() if file is not None})


_STEP_OPTIONS = ("radii", "match_threshold", "block", "local_block", "seed")


def _steps(options: dict[str, Any]) -> list[Any]:
    """The default steps, with what the options change."""
    from itkstream.steps import DEFAULT_STEPS, step_from, step_name, step_parameters

    # `plan` has only those that change what a run costs.
    matching = {name: options.get(name) for name in ("match_threshold", "seed")}
    radii = options.get("radii")
    changes = {
        "ransac-affine": {**matching, "radii": None if radii is None else (radii,)},
        "local-affines": {**matching, "blocksize": options["local_block"]},
        "deformable": {"blocksize": options["block"]},
    }
    steps = []
    for step in DEFAULT_STEPS:
        name = step_name(step)
        given = {k: v for k, v in changes.get(name, {}).items() if v is not None}
        if name != "local-affines" or options["local_block"] != 0:
            steps.append(step_from(name, {**step_parameters(step), **given}))
    return steps


def _resources(options: dict[str, Any]) -> Any:
    from itkstream.workers import Resources

    names = {field.name for field in fields(Resources)}
    given = {name: value for name, value in options.items() if name in names}
    return Resources(**{name: value for name, value in given.items() if value is not None})

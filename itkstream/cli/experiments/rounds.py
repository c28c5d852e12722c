"""The command that registers all rounds of an experiment."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from itkstream.cli.console import console_reporter, make_console
from itkstream.cli.exit_codes import FAILED, NOT_ALIGNED
from itkstream.cli.options import (
    collect_image_options,
    collect_resources,
    with_image_options,
    with_overwrite,
    with_resources,
    with_steps,
)
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell, with_out

if TYPE_CHECKING:
    from itkstream.experiment.register import Experiment

__all__ = ["rounds"]


@click.command(
    cls=Verb,
    examples=(
        "itkstream rounds round1.zarr round2.zarr round3.zarr --channel DAPI --out experiment",
        "itkstream rounds experiment.yaml --reference round2 --chain --out experiment",
        "itkstream rounds experiment.csv --parallel 3 --cluster slurm --cores 8 --memory 32GB "
        "--max-workers 6 -o experiment",
    ),
)
@click.argument("images", nargs=-1, required=True, metavar="ROUND...")
@with_out("Folder to write.")
@click.option(
    "--reference",
    metavar="N|NAME",
    help="The round that the others are brought onto, counted from 1, or its name. [default: what "
    "the manifest says, else the first]",
)
@click.option(
    "--chain",
    is_flag=True,
    help="Register a round onto its neighbour where that shows more of it than the reference does.",
)
@click.option(
    "--parallel",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Rounds to register at a time, on the same workers.",
)
@with_steps
@click.option("--no-report", is_flag=True, help="Leave the report of each round out.")
@with_resources
@with_overwrite
@with_image_options(own=("crop",))
def rounds(images: tuple[str, ...], out: str, **options: Any) -> None:
    """Register all rounds of an experiment onto one of them, and join them in one image.

    Each ROUND is an image with all its channels, as `itkstream register` takes it; or a single
    manifest is given, YAML or CSV: name, path, channel, spacing, mask and more of each round, paths
    relative to it. OUT gets a registration of each round in rounds/NAME, all channels of all rounds
    on the voxels of the reference as joined.ome.zarr, and a page about all, overview.html: open it
    first. Killed, the same command goes on.

    A round that fails stops no other, and is left out of the joined image. The exit code is 4 where
    one was not aligned, 1 where one could not be computed.
    """
    with importing():
        from itkstream.cli.config import read_steps
        from itkstream.experiment.register import register_rounds

    given, said = _collect_rounds(images, options)
    config = read_steps(options["config_file"])
    settings = replace(config.settings, report=False) if options["no_report"] else config.settings
    with console_reporter(make_console()) as reporter:
        found = register_rounds(
            given,
            out,
            reference=said,
            channel=options["channel"],
            chain=options["chain"],
            parallel=options["parallel"],
            steps=config.steps,
            settings=settings,
            resources=collect_resources(options, config.engine),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    _tell(found)
    if any(r.verdict and r.outcome == "failed" for r in found.rounds) or (
        "RegistrationError" in found.faults
    ):
        sys.exit(NOT_ALIGNED)
    if found.faults:
        sys.exit(FAILED)


def _collect_rounds(images: tuple[str, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """The rounds, with what the options say of those of which the manifest says nothing."""
    from itkstream.experiment.rounds.manifest import (
        MANIFEST_ENDINGS,
        Round,
        name_rounds,
        read_manifest,
    )

    said = options["reference"]
    if said is not None and said.isdigit():
        said = int(said)
    if len(images) > 1 or not images[0].lower().endswith(MANIFEST_ENDINGS):
        return name_rounds(images, collect_image_options(options)), said
    manifest = read_manifest(images[0])
    common = collect_image_options(options)
    given = [Round(r.name, r.image, _over(common, r.options), r.mask) for r in manifest.rounds]
    return given, manifest.reference if said is None else said


def _over(common: Any, own: Any) -> Any:
    """Options of all rounds, under those of one."""
    stated = {k: v for k, v in vars(own).items() if v is not None and (k != "time" or v)}
    return replace(common, **stated)


def _tell(found: Experiment) -> None:
    """Print the verdict of each round, why, and where all of it is."""
    rounds, lines = {}, []
    width = max(len(r.name) for r in found.rounds)
    for r in found.rounds:
        reasons = [r.failed] if r.failed else list(r.verdict.reasons) if r.verdict else []
        rounds[r.name] = {"outcome": r.outcome, "reasons": reasons}
        lines.append(f"{r.name:{width}}  {r.outcome}")
        lines += [f"{'':{width}}    {reason}" for reason in reasons]
    places = {"joined": str(found.joined), "overview": str(found.overview)}
    ends = (f"joined image: {found.joined}", f"overview: {found.overview}")
    tell({"rounds": rounds} | places, *lines, *ends)

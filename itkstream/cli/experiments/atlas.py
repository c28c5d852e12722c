"""The command that registers a brain to an atlas."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.console import console_reporter, make_console
from itkstream.cli.options import (
    IMAGE_OPTIONS,
    collect_resources,
    open_own_image,
    with_image_options,
    with_overwrite,
    with_resources,
    with_steps,
)
from itkstream.cli.outcome import tell_outcome
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, with_out

__all__ = ["atlas"]


@click.command(
    cls=Verb,
    examples=(
        "itkstream atlas brain.zarr template.tif annotation.tif --template-spacing 25 "
        "--orientation psl -o in_atlas",
        "itkstream atlas brain.nii.gz template.nii.gz labels.nii.gz --orientation file -o in_atlas",
    ),
)
@click.argument("brain")
@click.argument("template")
@click.argument("annotation")
@with_out("Folder to write.")
@click.option(
    "--orientation",
    metavar="CODE",
    help="How BRAIN lies, to start from. Small letters: where its first voxel lies along each "
    "axis, slowest first, as brainglobe has it (asr: z from anterior, y from superior, x from "
    "right). Capitals: where x, y and z lead, as ITK has it (LIP is the same). `file`: what its "
    "direction says. [default: searched for]",
)
@click.option(
    "--template-orientation",
    metavar="CODE",
    help="The same of TEMPLATE. [default: asr, as brainglobe's atlases lie; `file` where BRAIN's "
    "is]",
)
@click.option(
    "--names",
    metavar="FILE",
    help="CSV file of names, with columns id and name, and perhaps acronym: brainglobe's "
    "structures.csv.",
)
@with_steps
@with_resources
@with_overwrite
@with_image_options("brain", "template", "annotation", common=False)
def atlas(brain: str, template: str, annotation: str, out: str, **options: Any) -> None:
    """Register BRAIN to an atlas, and carry its ANNOTATION over.

    TEMPLATE is the atlas' image, ANNOTATION the ids of its regions. The folder is one of
    `register`, of TEMPLATE onto BRAIN, and gets as well: annotation.ome.zarr, the regions on
    BRAIN's voxels; brain.ome.zarr, all channels of BRAIN on TEMPLATE's voxels;
    inverse.ome.zarr, the transform from template to brain; and regions.csv, a table of all regions
    with their volumes and the means of BRAIN's channels. report.html shows their borders over
    BRAIN.

    Run again after it was stopped, it goes on. The exit code is 4 where the registration failed;
    all files are kept.
    """
    with importing():
        from itkstream.atlas.register import register_atlas
        from itkstream.cli.config import read_steps
        from itkstream.io.storage.inputs import check_apart

    check_apart(out, brain, template, annotation, options["names"], options["config_file"])
    config = read_steps(options["config_file"])
    with console_reporter(make_console()) as reporter:
        result = register_atlas(
            open_own_image("brain", brain, options),
            open_own_image("template", template, options),
            _annotation(annotation, options),
            out,
            orientation=options["orientation"],
            template_orientation=options["template_orientation"],
            names=options["names"],
            steps=config.steps,
            settings=config.settings,
            resources=collect_resources(options, config.engine),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    named, seen = len(result.regions), sum(r.voxels > 0 for r in result.regions)
    facts = {"regions": named, "regions_in_brain": seen}
    tell_outcome(result, facts, f"regions: {seen} of {named} in the brain: regions.csv")


def _annotation(path: str, options: dict[str, Any]) -> Any:
    """The annotation as it is said to be, or its path where nothing is said of it."""
    said = any(options[f"annotation_{name}"] is not None for name in IMAGE_OPTIONS)
    return open_own_image("annotation", path, options) if said else path

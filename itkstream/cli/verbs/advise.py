"""The command that advises on a pair."""

from __future__ import annotations

import sys
from typing import Any

import click

from itkstream.cli.console import console_reporter, make_console
from itkstream.cli.exit_codes import NOT_ALIGNED
from itkstream.cli.options import (
    choose_given_pair,
    collect_image_options,
    with_image_options,
    with_initial,
    with_masks,
)
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell

__all__ = ["advise"]


@click.command(
    cls=Verb,
    examples=(
        "itkstream advise round1.zarr round2.zarr",
        "itkstream advise fix.tif mov.tif --spacing 2,0.5,0.5 --json",
    ),
)
@click.argument("fixed")
@click.argument("moving")
@with_initial
@with_masks
@click.option("--memory", metavar="SIZE", help="Memory that blocks must fit, such as 16GB.")
@with_image_options("fixed", "moving")
def advise(fixed: str, moving: str, **options: Any) -> None:
    """Say by which options MOVING registers to FIXED best, or why it does not match.

    From the images themselves, in some ten seconds, on coarse levels: radii of the nuclei, context,
    threshold, blocks, overlap, stiffness. Where the images do not match: the stage that lost the
    key points, and what to change. Nothing is written.

    The exit code is 0 if the images match, and 4 if not, or not as they are given.
    """
    with importing():
        from itkstream.advice import advise as find
        from itkstream.workers import Resources

    memory = options["memory"]
    said = (collect_image_options(options, "fixed"), collect_image_options(options, "moving"))
    with console_reporter(make_console()) as reporter:
        chosen = choose_given_pair(said, (fixed, moving), reporter)
    found = find(
        *chosen.images,
        initial_transform=options["initial"],
        fixed_mask=options["fixed_mask"],
        moving_mask=options["moving_mask"],
        resources=Resources() if memory is None else Resources(memory=memory),
    ).after(chosen.settings)
    tell(found.facts, *found.describe())
    sys.exit(0 if found.matches else NOT_ALIGNED)

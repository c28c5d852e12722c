"""The command that makes a registration's report again."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.options import open_own_image, with_image_options
from itkstream.cli.verb import Verb, tell

__all__ = ["report"]


@click.command(cls=Verb, examples=("itkstream report registered",))
@click.argument("folder")
@click.option("--fixed", metavar="IMAGE", help="Fixed image. [default: the one registered]")
@click.option("--moving", metavar="IMAGE", help="Moving image. [default: the one registered]")
@with_image_options("fixed", "moving", common=False)
def report(folder: str, fixed: str | None, moving: str | None, **options: Any) -> None:
    """Write report.html and report.json into FOLDER, which `register` wrote.

    The page shows the registration: before and after, where it may be wrong, what it was made of.
    """
    from itkstream.registration.folder import registered_image
    from itkstream.report.write import write_report

    images = []
    for which, path in (("fixed", fixed), ("moving", moving)):
        if path is None:
            images.append(registered_image(folder, which))
        else:
            images.append(open_own_image(which, path, options))
    place = str(write_report(folder, (images[0], images[1])))
    tell({"report": place}, f"written: {place}")

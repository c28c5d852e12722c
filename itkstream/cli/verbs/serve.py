"""The commands that show a registration: in a viewer of this machine, or served to one."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.moving import open_moving
from itkstream.cli.options import (
    Channel,
    Number,
    collect_image_options,
    open_own_image,
    with_image_options,
)
from itkstream.cli.verb import Verb, tell

__all__ = ["serve", "view"]

_VIEWER = "https://neuroglancer-demo.appspot.com"


@click.command(
    cls=Verb,
    examples=(
        "itkstream serve registered",
        "itkstream serve registered channel2.ome.zarr --channel all",
        "itkstream serve field.nrrd round2.ome.zarr --like round1.ome.zarr --port 8000",
    ),
)
@click.argument("transform", type=click.Path())
@click.argument("moving", required=False)
@click.option(
    "--like",
    metavar="IMAGE",
    help="Image on whose voxels it is shown. [default: the fixed image]",
)
@click.option("--labels", is_flag=True, help="Voxels are labels: no value is ever made up.")
@click.option(
    "--background",
    type=Number(),
    help="Value outside. [default: as on MOVING's border if that is bright or negative, else 0]",
)
@click.option(
    "--dtype",
    metavar="TYPE",
    help="Type that is served, such as uint8. [default: that of MOVING]",
)
@click.option(
    "--channel",
    type=Channel(),
    metavar="N|NAME|all",
    help="Channel, counted from 0, or its name, or all: a layer each. [default: the one "
    "registered, if MOVING is that image; else as for `apply`]",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Anyone who reaches it can look; 0.0.0.0 is any.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="N",
    default=0,
    help="Port. [default: any free one]",
)
@click.option(
    "--viewer", metavar="URL", default=_VIEWER, show_default=True, help="A neuroglancer to use."
)
@click.option(
    "--cache", metavar="SIZE", default="512MB", show_default=True, help="Memory for chunks kept."
)
@with_image_options("like", own=("channel", "crop"))
def serve(transform: str, moving: str | None, like: str | None, **options: Any) -> None:
    """Serve MOVING, aligned by TRANSFORM as it is looked at, to a viewer in the browser.

    TRANSFORM is a registration folder, or any transform file with MOVING and --like. Nothing is
    written: what is looked at is computed and kept in memory. A link to neuroglancer is printed,
    in which the fixed image is magenta and the aligned one green; Zarr readers open the addresses.
    Ctrl-C ends it.
    """
    from dask.utils import parse_bytes

    from itkstream.numerics.sampling.warping import WarpSettings
    from itkstream.serving.serve import serve as run

    interpolator = "nearest" if options["labels"] else "linear"
    with run(
        transform,
        _open_moving(transform, moving, options),
        like and open_own_image("like", like, options),
        WarpSettings(interpolator, None, options["background"], options["dtype"]),
        labels=options["labels"],
        host=options["host"],
        port=options["port"],
        viewer=options["viewer"],
        cache_bytes=parse_bytes(options["cache"]),
    ) as server:
        _tell(server)
        try:
            server.wait()
        except KeyboardInterrupt:
            click.echo("stopped")


@click.command(cls=Verb, examples=("itkstream view registered",))
@click.argument("folder", type=click.Path())
def view(folder: str) -> None:
    """Show the registration in FOLDER: in napari if it is there, and a screen, else its report.

    In napari: fixed image (magenta), aligned image (green), and hidden at first the moving image,
    the error map, the displacement as vectors and key points.
    """
    from itkstream.registration.folder import find_registration
    from itkstream.report.write import PAGE
    from itkstream.viewing import view as show

    shown = show(folder)
    lines = (
        f"the report, which opens in the browser: {find_registration(folder) / PAGE}",
        'to see the images in 3-D, pip install "itkstream[napari]", or try: '
        f"itkstream serve {folder}",
    )
    tell({"shown": shown}, *(lines if shown == "report" else ()))


def _open_moving(transform: str, moving: str | None, options: dict[str, Any]) -> Any:
    """The image to align; None for the one registered, of which nothing else was said."""
    from itkstream.registration.folder import find_registration, registered_path

    if moving is None:
        if collect_image_options(options) == collect_image_options({}):
            return None
        transform = str(find_registration(transform))
        moving = registered_path(transform, "moving")
    return open_moving(transform, moving, options)


def _tell(server: Any) -> None:
    """Print where everything is, and what may be in the way."""
    facts = {"link": server.link, "urls": [*server.urls], "unseen": [*server.unseen]}
    tell(
        facts,
        f"open in the browser: {server.link}",
        *(f"OME-Zarr: {url}" for url in server.urls),
        *(
            f"neuroglancer does not read the voxel type of {name}: say --dtype float32"
            for name in server.unseen
        ),
        "if the browser asks whether the page may reach this machine, allow it (Safari does not)",
        "Ctrl-C ends it",
    )

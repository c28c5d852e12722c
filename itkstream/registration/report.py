"""What a registration folder says of the images that were registered."""

from __future__ import annotations

import json
import os
from typing import Any

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import Grid, Image
from itkstream.io import open_image
from itkstream.io.storage.locations import Location
from itkstream.registration.folder import REPORT

__all__ = ["registered_grids", "registered_images", "registered_places", "registered_unit"]


def registered_images(folder: str | os.PathLike[str]) -> tuple[Image, Image]:
    """Open the two images of a registration.

    Parameters
    ----------
    folder : path
        What `register` wrote.

    Returns
    -------
    fixed, moving : Image
        Lazy, with the channel, spacing and all else as they were registered.

    Raises
    ------
    MissingDataError
        Where there is no report, or the images are no longer where they were.
    """
    report = _report(folder)
    images = []
    for side in ("fixed", "moving"):
        name = str(report[side]["name"])
        try:
            # With the channel, the spacing and whatever else was said of it.
            images.append(open_image(**(report[side].get("opened") or {"path": name})))
        except (MissingDataError, InputError) as error:
            raise MissingDataError(
                f"the {side} image of {folder} was {name or 'an array'}, which cannot be opened: "
                f"say where it is ({error})"
            ) from error
    return images[0], images[1]


def registered_grids(folder: str | os.PathLike[str]) -> tuple[Grid, Grid]:
    """The lattices of the two images of a registration.

    Parameters
    ----------
    folder : path
        What `register` wrote.

    Returns
    -------
    fixed, moving : Grid
        As they were registered.

    Raises
    ------
    MissingDataError
        Where there is no report.
    """
    report = _report(folder)
    return Grid(**report["fixed"]["grid"]), Grid(**report["moving"]["grid"])


def registered_unit(folder: str | os.PathLike[str]) -> str:
    """The unit of the ITK files of a registration.

    Parameters
    ----------
    folder : path
        What `register` wrote, its ``transform.ome.zarr``, or any other transform.

    Returns
    -------
    str
        "micrometer" for what is no registration folder.
    """
    steps = _report_around(folder).get("steps", [])
    return str(next((step["unit"] for step in steps if "unit" in step), "micrometer"))


def registered_places(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Where the two images of a registration lie, which nothing made of it may replace.

    Parameters
    ----------
    folder : path
        What `register` wrote, its ``transform.ome.zarr``, or any other transform.

    Returns
    -------
    tuple of str
        Paths or URLs; empty for what is no registration folder, and for images in memory.
    """
    report = _report_around(folder)
    sides = (report.get(side, {}) for side in ("fixed", "moving"))
    names = (side.get("opened", {}).get("path") or side.get("name") for side in sides)
    return tuple(str(name) for name in names if name)


def _report_around(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The report of a folder, or of the one around a transform; empty where there is none."""
    place = Location.parse(folder)
    reports = [p for p in (place, *place.parents[:1]) if (p / REPORT).is_file()]
    return _report(str(reports[0])) if reports else {}


def _report(folder: str | os.PathLike[str]) -> dict[str, Any]:
    file = Location.parse(folder) / REPORT
    if not file.is_file():
        raise MissingDataError(f"{folder} is no folder that register wrote: it has no {REPORT}")
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found

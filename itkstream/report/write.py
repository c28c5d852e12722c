"""The report of a registration, written: a page, and its numbers."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import Any

from itkstream.geometry import Image
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.report.drawings import inverse_errors, lying
from itkstream.report.methods import methods_of
from itkstream.report.numbers import collect_numbers
from itkstream.report.page import Contents, lay_out, windows_of
from itkstream.report.pictures import CONTRAST
from itkstream.report.places import worst_places
from itkstream.report.planes import cut_planes
from itkstream.report.sources import Sources, open_sources

__all__ = ["NUMBERS", "PAGE", "write_report"]

PAGE = "report.html"
"""The page."""

NUMBERS = "report.json"
"""Every number that the page shows."""


def write_report(
    folder: str | os.PathLike[str], images: tuple[Image, Image] | None = None
) -> Location:
    """Write ``report.html`` and ``report.json`` into a registration folder.

    The page holds its pictures itself and needs no network. They are drawn from the coarse levels
    that the registration saw as a whole, so that a large image takes no longer than a small one.

    Parameters
    ----------
    folder : path
        What `itkstream.register` wrote.
    images : (Image, Image), optional
        The fixed and the moving image, where ``registration.json`` does not say what to open, or
        they are elsewhere now.

    Returns
    -------
    Location
        The page.

    Raises
    ------
    MissingDataError
        Where the folder is no registration, or an image is not where it was.
    InputError
        Where an image cannot be opened.

    Examples
    --------
    >>> itkstream.write_report("registered").name
    'report.html'
    """
    began = time.perf_counter()
    place = Location.parse(folder)
    contents = _collect(open_sources(place, images))
    contents.numbers["seconds_of_report"] = round(time.perf_counter() - began, 3)
    page = lay_out(contents)
    write_text(place / NUMBERS, json.dumps(contents.numbers, indent=2) + "\n")
    write_text(place / PAGE, page)
    return place / PAGE


def _collect(sources: Sources) -> Contents:
    """Draw and count all that the page shows."""
    planes, places = cut_planes(sources), worst_places(sources)
    windows = windows_of(planes)
    numbers = collect_numbers(sources, planes, places)
    numbers["made"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    numbers["contrast"] = {
        "percentiles": list(CONTRAST),
        "fixed": [windows[0].low, windows[0].high],
        "moving": [windows[1].low, windows[1].high],
    }
    fixed, moving = (image.grid for image in sources.pair)
    drawn: dict[str, Any] = next((k["drawn"] for k in numbers["key_points"] if k["drawn"]), {})
    return Contents(
        numbers=numbers,
        planes=planes,
        places=places,
        windows=windows,
        methods=methods_of(sources.facts, numbers),
        lying=lying(fixed, moving, sources.transform.affine.inverse(), drawn),
        inverse=inverse_errors(fixed, (numbers["certificate"] or {}).get("inverse_worst", ())),
        voxel_um=min(fixed.spacing),
    )

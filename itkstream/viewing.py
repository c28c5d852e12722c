"""A registration folder, shown: in napari where it is installed, else the page of its report."""

from __future__ import annotations

import os
import webbrowser
from importlib import import_module
from typing import Any, Literal

from itkstream.errors import MissingDataError
from itkstream.registration.folder import find_registration
from itkstream.report.write import PAGE

__all__ = ["view"]


def view(folder: str | os.PathLike[str]) -> Literal["napari", "report"]:
    """Show a registration in napari, or its report in the browser where napari is not installed.

    In napari: fixed image (magenta), aligned image (green) and, hidden at first, the moving image,
    the error map, the displacement as vectors and key points. ``pip install "napari[all]"``
    installs it.

    Parameters
    ----------
    folder : path
        What `itkstream.register` wrote, or ``itkstream demo``.

    Returns
    -------
    {'napari', 'report'}
        What was shown; napari until it was closed.

    Raises
    ------
    MissingDataError
        Where the folder is no registration, or without napari has no report.
    """
    place = find_registration(folder)
    try:
        napari = import_module("napari")
    except ImportError:
        page = place / PAGE
        if not page.is_file():
            raise MissingDataError(
                f"{place} has no {PAGE}, and napari is not installed: `itkstream report {place}` "
                'makes the page, and pip install "napari[all]" installs napari'
            ) from None
        webbrowser.open(page.path.as_uri())
        return "report"
    _show(napari, str(place))
    return "napari"


def _show(napari: Any, folder: str) -> None:
    """Open a window with all layers, and wait until it is closed."""
    from itkstream.napari_reader import read_layers

    viewer = napari.Viewer(title=folder)
    for data, attributes, kind in read_layers(folder):
        getattr(viewer, f"add_{kind}")(data, **attributes)
    napari.run()

"""A registration folder, shown: in napari where it can be, else the page of its report."""

from __future__ import annotations

import os
import sys
import webbrowser
from importlib import import_module
from typing import Any, Literal

from itkstream.errors import MissingDataError
from itkstream.registration.folder import find_registration
from itkstream.report.write import PAGE

__all__ = ["view"]


def view(folder: str | os.PathLike[str]) -> Literal["napari", "report"]:
    """Show a registration in napari, or its report in the browser without napari or a screen.

    In napari: fixed image (magenta), aligned image (green) and, hidden at first, the moving image,
    the error map, the displacement as vectors and key points. ``pip install "itkstream[napari]"``
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
        Where the folder is no registration, or there is neither napari nor a report.

    Examples
    --------
    >>> itkstream.view("registered")  # doctest: +SKIP
    'napari'
    """
    place = find_registration(folder)
    napari = _napari() if _has_screen() else None
    if napari is not None:
        _show(napari, str(place))
        return "napari"
    page = place / PAGE
    if not page.is_file():
        lack = "napari is not installed" if _has_screen() else "there is no screen for napari"
        raise MissingDataError(
            f"{place} has no {PAGE}, and {lack}: `itkstream report {place}` makes the page, and "
            'pip install "itkstream[napari]" installs napari'
        )
    webbrowser.open(page.path.as_uri())
    return "report"


def _napari() -> Any:
    """The module, or None where it is not installed."""
    try:
        return import_module("napari")
    except ImportError:
        return None


def _has_screen() -> bool:
    """Whether a window can be opened: where there is no screen, as by ssh, Qt ends the process."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    return sys.platform != "linux" or any(map(os.environ.get, screens))


def _show(napari: Any, folder: str) -> None:
    """Open a window with all layers, and wait until it is closed."""
    from itkstream.napari_reader import read_layers

    viewer = napari.Viewer(title=folder)
    for data, attributes, kind in read_layers(folder):
        getattr(viewer, f"add_{kind}")(data, **attributes)
    napari.run()

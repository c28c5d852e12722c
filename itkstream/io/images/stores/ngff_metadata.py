"""The metadata of OME-Zarr images, 0.1 to 0.6, checked as they are taken.

References
----------
https://ngff.openmicroscopy.org/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError
from itkstream.io.storage.attributes import Attributes

__all__ = [
    "ChannelLook",
    "NgffAxis",
    "axes_listed",
    "channel_names",
    "hexadecimal",
    "level_axes",
    "level_paths",
    "multiscales_of",
    "placement",
    "scale_and_shift",
]

_OLD_AXES = ("t", "c", "z", "y", "x")
_KEPT = ("scale", "translation")


@dataclass(frozen=True)
class NgffAxis:
    """An axis as metadata have it; type and unit are "" where they do not say."""

    name: str
    type: str = ""
    unit: str = ""


@dataclass(frozen=True)
class ChannelLook:
    """A channel as viewers are to show it.

    The colour is six hexadecimal digits; the window is the least and the greatest intensity there
    may be, and those shown black and bright.
    """

    label: str
    colour: str
    window: tuple[float, float, float, float]
    active: bool

    @property
    def facts(self) -> dict[str, object]:
        """The channel as ``omero`` lists it."""
        names = ("min", "max", "start", "end")
        return {
            "label": self.label,
            "color": self.colour,
            "active": self.active,
            "coefficient": 1.0,
            "family": "linear",
            "inverted": False,
            "window": dict(zip(names, self.window, strict=True)),
        }


def hexadecimal(colour: Sequence[float]) -> str:
    """Write red, green and blue, from 0 to 1, as NGFF and CSS do, without a sign before."""
    return "".join(f"{round(255 * part):02X}" for part in colour)


def multiscales_of(attributes: Attributes) -> list[Attributes]:
    """List the multiscale images that the attributes of a group describe."""
    return (attributes.below("ome") or attributes).listed("multiscales")


def channel_names(attributes: Attributes) -> tuple[str, ...]:
    """List the labels of the channels of an image, for what viewers are told is worth."""
    omero = (attributes.below("ome") or attributes).values.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    found = channels if isinstance(channels, list) else []
    labels = (channel.get("label") if isinstance(channel, Mapping) else None for channel in found)
    return tuple(label if isinstance(label, str) else "" for label in labels)


def level_paths(multiscale: Attributes) -> list[str]:
    """List the paths of the levels of a multiscale image, in the order of the metadata."""
    multiscale.need("datasets", "a list of levels")
    found = []
    for dataset in multiscale.listed("datasets"):
        path = dataset.text("path")
        parts = [part for part in (path or "").split("/") if part not in ("", ".")]
        if not parts or ".." in parts or (path or "").startswith("/"):
            raise dataset.error("path", "the way to an array below the group")
        found.append("/".join(parts))
    if not found:
        raise multiscale.error("datasets", "a list of levels")
    return found


def level_axes(multiscale: Attributes, path: str | None = None) -> list[NgffAxis]:
    """List the axes of a level (default the first), one for each axis of its array."""
    if "coordinateSystems" not in multiscale:
        return axes_listed(multiscale, "axes") or [NgffAxis(name) for name in _OLD_AXES]
    # 0.6: the datasets say which system they map to.
    systems = multiscale.listed("coordinateSystems")
    if not systems:
        raise multiscale.error("coordinateSystems", "a list of coordinate systems")
    wanted = _end(_dataset(multiscale, path), "output")
    chosen = next((s for s in systems if wanted and s.text("name") == wanted), systems[0])
    chosen.need("axes", "a list of axes")
    return axes_listed(chosen, "axes")


def axes_listed(attributes: Attributes, key: str) -> list[NgffAxis]:
    """Read a list of axes, as objects or, in OME-Zarr 0.3, as names; empty without the key."""
    given = attributes.values.get(key)
    if isinstance(given, list) and any(isinstance(axis, str) for axis in given):
        return [NgffAxis(name.strip().lower()) for name in attributes.texts(key) or ()]
    found = []
    for axis in attributes.listed(key):
        name = axis.text("name") or axis.text("label")
        if not name:
            raise axis.error("name", "the name of an axis")
        kind, unit = (axis.text(k) or "" for k in ("type", "unit"))
        found.append(NgffAxis(name.strip().lower(), kind, unit))
    return found


def scale_and_shift(
    multiscale: Attributes, path: str, ndim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Compose the scale and translation of a level, (ndim,) each; None before OME-Zarr 0.4."""
    steps = _dataset(multiscale, path).listed("coordinateTransformations")
    if not steps:
        return None
    if "coordinateSystems" not in multiscale:
        # In 0.6 those of the whole image lead to other coordinate systems than the image's own.
        steps = steps + multiscale.listed("coordinateTransformations")
    flat = list(_flatten(steps))
    scale, shift = np.ones(ndim), np.zeros(ndim)
    for step in flat:
        kind = step.text("type")
        if kind == "identity":
            continue
        if kind not in _KEPT:
            raise step.error("type", "'scale' or 'translation' for a level of an image")
        values = step.numbers(kind)
        if values is None or len(values) != ndim:
            raise step.error(kind, f"{ndim} numbers")
        if kind == "scale":
            scale, shift = scale * values, shift * values
        else:
            shift = shift + values
    stated = any(step.text("type") != "translation" for step in flat)
    return (scale, shift) if stated else None


def placement(multiscale: Attributes, system: str, ndim: int) -> NDArray[np.float64] | None:
    """Read the affine, (ndim, ndim + 1), from levels to another system of a 0.6 image."""
    own = _end(_dataset(multiscale, None), "output")
    for step in multiscale.listed("coordinateTransformations"):
        if (_end_of(step, "input"), _end_of(step, "output")) != (own, system):
            continue
        found = step.rows("affine", ndim + 1)
        if found is None or len(found) != ndim:
            raise step.error("affine", f"{ndim} rows of {ndim + 1} numbers")
        return np.array(found)
    return None


def _dataset(multiscale: Attributes, path: str | None) -> Attributes:
    paths = level_paths(multiscale)
    datasets = multiscale.listed("datasets")
    return datasets[paths.index(path)] if path in paths else datasets[0]


def _end(dataset: Attributes, which: str) -> str | None:
    steps = dataset.listed("coordinateTransformations")
    return _end_of(steps[0], which) if steps else None


def _end_of(step: Attributes, which: str) -> str | None:
    """Name of the coordinate system at an end of a transformation."""
    given = step.values.get(which)
    if isinstance(given, Mapping):
        below = step.below(which)
        return below.text("name") if below else None
    return step.text(which)


def _flatten(steps: Sequence[Attributes], deep: int = 0) -> Iterator[Attributes]:
    for step in steps:
        kind = step.text("type")
        if kind is None:
            raise step.error("type", "the kind of a coordinate transformation")
        if kind != "sequence":
            yield step
        elif deep > len(_OLD_AXES):
            raise InputError(f"{step.file}: sequences of transformations within each other")
        else:
            yield from _flatten(step.listed("transformations"), deep + 1)

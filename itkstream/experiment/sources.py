"""Rounds of an experiment, or the two images of a registration: images, and ways between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from attrs import frozen

from itkstream.experiment.folder import EXPERIMENT, read_experiment
from itkstream.geometry import Grid, Image
from itkstream.io import ImageOptions
from itkstream.io.storage.locations import Location
from itkstream.registration.folder import ERROR, TRANSFORM, read_report

__all__ = ["Source", "is_experiment", "read_sources", "reference_grid", "reference_of"]

_TOLD = ("unit", "axes", "channel", "time", "level")


@frozen(eq=False)
class Source:
    """A round: its image, and the way from it to the reference; no transform for that one."""

    name: str
    open: Callable[[], Image]
    transform: Location | None
    error: Location | None
    failed: str = ""


def reference_grid(folder: str | os.PathLike[str]) -> Grid:
    """The voxels of the reference of an experiment, in µm."""
    return reference_of(read_sources(folder)).open().grid.in_unit("micrometer")


def is_experiment(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of an experiment."""
    return (Location.parse(folder) / EXPERIMENT).is_file()


def read_sources(folder: str | os.PathLike[str]) -> dict[str, Source]:
    """The rounds of an experiment, or the two images of a registration, by name."""
    place = Location.parse(folder)
    if not is_experiment(folder):
        return _sides_of(place)
    facts = read_experiment(folder)
    found = {}
    for entry in facts["rounds"]:
        name = entry["name"]
        transform, error = (place / entry[n] if entry[n] else None for n in ("transform", "error"))
        opening = partial(_finest(ImageOptions(**entry["options"])).open, entry["image"])
        failed = "" if name == facts["reference"] else _failure(entry)
        found[name] = Source(name, opening, transform, error, failed)
    return found


def _finest(options: ImageOptions) -> ImageOptions:
    """The whole of an image, whose voxels are counted; a stated spacing is that of its level."""
    whole = replace(options, crop=None)
    return whole if whole.spacing is not None else replace(whole, level=None)


def _failure(entry: Mapping[str, Any]) -> str:
    """Why a round has no transform to be trusted; empty where it has."""
    verdict = entry["verdict"] or {}
    if entry["failed"]:
        return f"its registration has no result: {entry['failed']}"
    if verdict.get("outcome") == "failed":
        return f"its registration failed: {'; '.join(verdict.get('reasons', ()))}"
    return "" if entry["transform"] else "it is not registered yet"


def _sides_of(place: Location) -> dict[str, Source]:
    """The two images of a registration as rounds."""
    report = read_report(str(place))
    opening = {}
    for side in ("fixed", "moving"):
        told = report[side].get("opened") or {"path": report[side]["name"]}
        options = ImageOptions(
            spacing=told.get("voxel_spacing"),
            **{key: told[key] for key in _TOLD if key in told},
        )
        opening[side] = partial(_finest(options).open, told["path"])
    error = place / ERROR if (place / ERROR).exists() else None
    failed = _failure({"verdict": report.get("verdict"), "failed": "", "transform": TRANSFORM})
    moving = Source("moving", opening["moving"], place / TRANSFORM, error, failed)
    return {"fixed": Source("fixed", opening["fixed"], None, None), "moving": moving}


def reference_of(sources: Mapping[str, Source]) -> Source:
    """The round that has no transform, as it needs none."""
    return next(s for s in sources.values() if s.transform is None and not s.failed)

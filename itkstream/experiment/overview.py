"""The page about all rounds of an experiment, and its numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from attrs import frozen

from itkstream.experiment.folder import JOINED, OVERVIEW, OVERVIEW_NUMBERS
from itkstream.geometry import Grid, Image, array_axes
from itkstream.io import open_series
from itkstream.io.storage.locations import Location
from itkstream.io.storage.outputs import write_text
from itkstream.numerics.evidence.quality import tissue_mask
from itkstream.registration.folder import ROUNDS, kept_level
from itkstream.report.page import placed, render, significant
from itkstream.report.pictures import Window, grey
from itkstream.report.planes import Cut, Picture, middle_cuts, picture_grid
from itkstream.report.sources import PIXELS, sampled, view_of
from itkstream.report.write import PAGE

__all__ = ["write_overview"]

_WORDS = {
    "good": "good",
    "look": "look at it",
    "failed": "failed",
    "reference": "reference",
}
_GRAVITY = ("reference", "good", "look", "failed")


@frozen(eq=False)
class _Layer:
    """A round in all planes, before and after, and its place and colour among the layers."""

    number: int
    colour: str
    label: str
    before: list[str]
    after: list[str]


@frozen(eq=False)
class _Drawing:
    """Planes to draw, and the images of all rounds."""

    work: Location
    images: Mapping[str, Image]
    voxels: float
    cuts: list[Cut]
    grids: list[Grid]

    def layer(self, number: int, channel: dict[str, Any]) -> _Layer:
        """Draw a round in all planes: as its file places it, and from the joined image."""
        image = self.images[channel["round"]]
        after = self._pictures(_joined_level(self.work, number, image.grid.axes))
        folder = self.work / ROUNDS / channel["round"]
        before = after
        if folder.exists():
            level = view_of(image, self.voxels, kept_level(folder, "moving")).level
            before = self._pictures(level)
        window = Window.of(*after, *before)
        drawn = ([grey(picture, window) for picture in some] for some in (before, after))
        return _Layer(number, channel["colour"], channel["label"], *drawn)

    def _pictures(self, level: Image) -> list[Picture]:
        pairs = zip(self.cuts, self.grids, strict=True)
        return [cut.picture(sampled(level, grid)) for cut, grid in pairs]


def write_overview(
    work: Location, facts: dict[str, Any], images: Mapping[str, Image], voxels: float
) -> Location:
    """Write the page and its numbers into the folder of an experiment, whose facts are given.

    `images` are the rounds, the reference among them, in µm and on its axes; a level has so many
    voxels at most. Pictures are drawn of one round after the other.
    """
    fixed = view_of(images[facts["reference"]], voxels, _kept(work, facts))
    overview = fixed.overview()
    tissue = Image(tissue_mask(overview.read()), overview.grid)
    cuts = middle_cuts(fixed.grid, tissue)
    grids = [picture_grid(fixed.grid, cut) for cut in cuts]
    drawing = _Drawing(work, images, voxels, cuts, grids)
    layers = [
        drawing.layer(number, channel)
        for number, channel in enumerate(facts["joined"]["channels"])
        if channel["registered"]
    ]
    numbers = {
        "itkstream": version("itkstream"),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "folder": str(work.settled),
        **facts,
    }
    write_text(work / OVERVIEW_NUMBERS, json.dumps(numbers, indent=2) + "\n")
    planes = [_plane(k, cut, fixed.grid, grids[k], layers) for k, cut in enumerate(cuts)]
    rows = [_row(entry, numbers, work) for entry in numbers["rounds"]]
    write_text(work / OVERVIEW, _page(numbers, rows, layers, planes))
    return work / OVERVIEW


def _kept(work: Location, facts: dict[str, Any]) -> Location | None:
    """The level of the reference that a registration onto it keeps."""
    onto = (r for r in facts["rounds"] if r["onto"] == facts["reference"])
    first = next(onto, None)
    return None if first is None else kept_level(work / first["folder"], "fixed")


def _joined_level(work: Location, number: int, axes: tuple[str, ...]) -> Image:
    """The coarsest level of a joined channel that is as fine as the pixels of a picture."""
    stored = ["c", *array_axes(len(axes))]
    levels = open_series(str(work / JOINED), "level", channel=number, axes=stored)
    fine = [level for level in levels if max(level.shape) >= PIXELS] or levels[:1]
    return fine[-1].reorder(axes)


def _plane(k: int, cut: Cut, lattice: Grid, grid: Grid, layers: Sequence[_Layer]) -> dict[str, Any]:
    """All layers in a plane, with its place and size."""
    drawn = [
        {
            "number": layer.number,
            "colour": layer.colour,
            "before": layer.before[k],
            "after": layer.after[k],
        }
        for layer in layers
    ]
    return {**placed(cut, lattice, grid), "layers": drawn}


def _page(
    numbers: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    layers: Sequence[_Layer],
    planes: Sequence[dict[str, Any]],
) -> str:
    """Lay the table of rounds and the planes out."""
    shown = {channel["round"] for channel in numbers["joined"]["channels"]}
    return render(
        "overview.html",
        title=f"{len(rows)} rounds to {numbers['reference']}: overview",
        n=numbers,
        rows=rows,
        worst=max((row["outcome"] for row in rows), key=_GRAVITY.index),
        headline=_headline([row["outcome"] for row in rows]),
        legend=layers,
        left_out=[row["name"] for row in rows if row["name"] not in shown],
        planes=planes,
    )


def _headline(outcomes: Sequence[str]) -> str:
    counts = Counter(outcomes)
    words = (("good", "good"), ("look", "to be looked at"), ("failed", "failed"))
    said = [f"{counts[name]} {word}" for name, word in words if counts[name]]
    return ", ".join(said).capitalize()


def _duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _row(entry: dict[str, Any], numbers: dict[str, Any], work: Location) -> dict[str, Any]:
    """A round as the table shows it."""
    name, verdict, predicted = entry["name"], entry["verdict"], entry["predicted"] or {}
    outcome = verdict["outcome"] if verdict else "failed"
    if name == numbers["reference"]:
        outcome = "reference"
    own = [c["median_um"] for c in numbers["cycles"] if name in c["rounds"]]
    told = [significant(um, 2) for um in own if um is not None]
    median, p95 = (predicted.get(key) for key in ("median_um", "p95_um"))
    overlap, report = entry["overlap"], f"{entry['folder']}/{PAGE}"
    reasons = [entry["failed"]] if entry["failed"] else []
    if outcome in ("look", "failed") and verdict:
        reasons = list(verdict["reasons"])
    return {
        "name": name,
        "onto": entry["onto"] or "",
        "outcome": outcome,
        "words": _WORDS[outcome],
        "error": "" if median is None else f"{significant(median, 2)} / {significant(p95, 2)} µm",
        "overlap": "" if not overlap else f"{100 * overlap['fixed']:.0f} %",
        "cycles": ", ".join(told),
        "time": _duration(entry["seconds"]) if entry["seconds"] else "",
        "report": quote(report) if entry["folder"] and (work / report).is_file() else "",
        "reasons": reasons,
    }

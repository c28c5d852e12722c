"""The page of a report: pictures, numbers and words laid out as one file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from itkstream.geometry import Grid
from itkstream.report.drawings import warped_grid
from itkstream.report.methods import Methods
from itkstream.report.pictures import Scale, Window, colour_bar, coloured, grey
from itkstream.report.places import Place
from itkstream.report.planes import Cut, Plane

__all__ = ["Contents", "laid_over", "lay_out", "placed", "render", "significant", "windows_of"]

_SECTIONS = (
    ("verdict", "Verdict"),
    ("planes", "Before and after"),
    ("regions", "Regions"),
    ("error", "Where it may be wrong"),
    ("steps", "Step by step"),
    ("points", "Key points and overlap"),
    ("deformation", "Deformation"),
    ("made", "How it was made"),
)

_CORRELATION = Scale("viridis", 0.0, 1.0)
_VOLUME = Scale("RdBu_r", -1.0, 1.0)  # of the logarithm to base 2
_ERROR_VOXELS = 4.0  # from where all errors have one colour
_BORDERS = Scale("autumn", 0.0, 1.0)  # borders of regions are 1, yellow
_LARGE_PERCENT = 99  # of the displacements, likewise
_OUTCOMES = {
    "good": (
        "Good",
        "The evidence says that this registration can be used. Look at the worst places below, as "
        "you would with any.",
    ),
    "look": (
        "Look before you use it",
        "Most of it may be right, but not all of it is known to be. Look at the places named here, "
        "and use the error map to leave out what is doubtful.",
    ),
    "failed": (
        "Failed: do not use it",
        "The evidence says that the images are not aligned. Check spacings, channels and the "
        "start; then give landmarks or an initial transform, and register again.",
    ),
    "none": (
        "Not judged",
        "No verdict was made on this registration: look at the pictures before you use it.",
    ),
}


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of a page: numbers, pictures that are still arrays, and words."""

    numbers: dict[str, Any]
    planes: tuple[Plane, ...]
    places: tuple[Place, ...]
    windows: tuple[Window, Window]
    methods: Methods
    lying: list[str]
    inverse: list[str]
    voxel_um: float


def lay_out(contents: Contents) -> str:
    """Write the page. Whatever comes from files is escaped."""
    numbers = contents.numbers
    seconds = [row["seconds"] for row in numbers["seconds"]]
    names = {side: _short(image["name"]) for side, image in numbers["images"].items()}
    return render(
        "page.html",
        title=f"{names['moving']} to {names['fixed']}: registration report",
        n=numbers,
        names=names,
        sections=_sections(contents),
        verdict=_verdict(numbers["verdict"]),
        cards=_cards(numbers),
        agreement="white",
        planes=_pictures(contents),
        error=_error(contents),
        correlation_scale=_legend(_CORRELATION),
        jacobian_scale=_legend(_VOLUME, ("half", "twice")),
        size_scale=_size_legend(contents.planes),
        places=[_thumbnail(place, contents.windows) for place in contents.places],
        places_words=_places_words(numbers),
        lying=_drawings(contents.lying, contents),
        inverse=_drawings(contents.inverse, contents),
        drawn_points=any(points["drawn"] for points in numbers["key_points"]),
        methods=contents.methods,
        longest=max([*seconds, 1e-9]),
        total=sum(seconds),
        parameters=json.dumps(numbers["parameters"], indent=2),
    )


def _sections(contents: Contents) -> list[tuple[str, str]]:
    """Ids and titles of the sections; that of regions where there are some."""
    without = {"regions"} if contents.planes[0].borders is None else set()
    return [section for section in _SECTIONS if section[0] not in without]


def _verdict(found: dict[str, Any] | None) -> dict[str, Any]:
    """Put the verdict into words."""
    outcome = found["outcome"] if found else "none"
    headline, advice = _OUTCOMES[outcome]
    shares = (found or {}).get("share_of_tissue") or {}
    return {
        "outcome": outcome,
        "headline": headline,
        "advice": advice,
        "reasons": (found or {}).get("reasons", []),
        "shares": [
            {"name": name, "share": share, "percent": significant(100 * share, 2)}
            for name, share in shares.items()
            if share is not None
        ],
    }


def _cards(numbers: dict[str, Any]) -> list[dict[str, str]]:
    """The few numbers that most people look for first."""
    values = [row["value"] for row in numbers["local_correlation"] if not row["left_out"]]
    values = [value for value in values if value is not None]
    cards = []
    if len(values) > 1:
        text = f"{_two(values[0])} → {_two(values[-1])}"
        cards.append({"name": "local correlation in the tissue", "value": text})
    error = numbers["error"] or {}
    if error.get("median_um") is not None:
        text = f"{significant(error['median_um'], 2)} / {significant(error.get('p95_um'), 2)} µm"
        cards.append({"name": "predicted error, median / 95 %", "value": text})
    for points in numbers["key_points"][:1]:
        text = f"{points['inliers']} of {points['matches']}"
        cards.append({"name": "key points agree", "value": text})
    sound = numbers["certificate"]
    if sound:
        text = "none" if not sound["folded_voxels"] else str(sound["folded_voxels"])
        cards.append({"name": "folds", "value": text})
    shown = numbers["overlap"]["fixed_in_moving"]
    cards.append({"name": "of the fixed image seen in both", "value": f"{100 * shown:.0f} %"})
    return cards


def _pictures(contents: Contents) -> list[dict[str, Any]]:
    """Everything that is drawn of each plane."""
    told = contents.numbers["planes"]
    size = _size_scale(contents.planes)
    return [
        _picture(plane, numbers, contents, size)
        for plane, numbers in zip(contents.planes, told, strict=True)
    ]


def _picture(
    plane: Plane, numbers: dict[str, Any], contents: Contents, size: Scale
) -> dict[str, Any]:
    error = plane.error_um
    tissue = np.where(plane.tissue, np.float32(1), np.float32(np.nan))
    return {
        "n": numbers,
        **laid_over(plane, contents.windows),
        "correlation": [coloured(found * tissue, _CORRELATION) for found in plane.correlation],
        "error": None
        if error is None
        else coloured(error / contents.voxel_um, _error_scale(), stripes=True),
        "borders": None if plane.borders is None else coloured(plane.borders, _BORDERS),
        "jacobian": coloured(np.log2(np.maximum(plane.jacobian, 1e-3)), _VOLUME),
        "size": coloured(plane.size_um, size),
        "grid": Markup(warped_grid(plane)),
    }


def windows_of(planes: Sequence[Plane]) -> tuple[Window, Window]:
    """Find which intensities of the fixed and of the moving image are black and white."""
    return (
        Window.of(*(plane.fixed for plane in planes)),
        Window.of(*(side for p in planes for side in (p.before, p.after[p.covered]))),
    )


def laid_over(plane: Plane, windows: tuple[Window, Window]) -> dict[str, Any]:
    """Both images in a plane, before and after, as a page lays them over each other."""
    return {
        **_located(plane.name, plane.across, plane.position_um),
        **_sides(plane.fixed),
        "fixed": grey(plane.fixed, windows[0]),
        "before": grey(plane.before, windows[1]),
        "after": grey(plane.after, windows[1]),
        "ruler": _ruler(plane.extent_um[0]),
    }


def placed(cut: Cut, lattice: Grid, pixels: Grid) -> dict[str, Any]:
    """The name, the size and the ruler of a plane of a lattice, drawn on a grid of pixels."""
    across = "" if cut.across is None else lattice.axes[cut.across]
    at = 0.0 if cut.across is None else cut.at * lattice.spacing[cut.across]
    width, height = pixels.shape[cut.columns], pixels.shape[cut.rows]
    return {
        **_located(f"{lattice.axes[cut.columns]}{lattice.axes[cut.rows]}", across, at),
        "width": width,
        "height": height,
        "ruler": _ruler(width * pixels.spacing[cut.columns]),
    }


def _located(name: str, across: str, position_um: float) -> dict[str, str]:
    where = f"the plane {name}"
    if across:
        where += f" at {across} = {significant(position_um)} µm"
    return {"where": where, "title": where.removeprefix("the ").capitalize()}


def _sides(picture: Any) -> dict[str, int]:
    rows, columns = picture.shape
    return {"width": columns, "height": rows}


def _ruler(width_um: float) -> dict[str, Any]:
    """A length of one digit, about a fifth of a picture."""
    power = 10.0 ** math.floor(math.log10(width_um / 5))
    length = max(step for step in (1, 2, 5) if step * power <= width_um / 5) * power
    return {"length": f"{length:g}", "share": round(length / width_um, 4)}


def _error_scale() -> Scale:
    return Scale("inferno", 0.0, _ERROR_VOXELS)


def _size_scale(planes: Sequence[Plane]) -> Scale:
    sizes = np.concatenate([plane.size_um[np.isfinite(plane.size_um)] for plane in planes])
    # At the border, where nothing holds it, a field may be far larger than anywhere else.
    return Scale("magma", 0.0, float(np.percentile(sizes, _LARGE_PERCENT)) or 1.0)


def _legend(scale: Scale, labels: tuple[str, str] | None = None) -> dict[str, Any]:
    low, high = labels or (significant(scale.low), significant(scale.high))
    known = {"low": scale.low, "high": scale.high, "low_label": low, "high_label": high}
    return {**known, "stops": colour_bar(scale)}


def _size_legend(planes: Sequence[Plane]) -> dict[str, Any]:
    scale = _size_scale(planes)
    return _legend(scale, ("0", f"{significant(scale.high, 2)} or more"))


def _error(contents: Contents) -> dict[str, Any] | None:
    """The error map's colours and numbers; None where no error was predicted."""
    if contents.planes[0].error_um is None:
        return None
    known = contents.numbers["error"] or {}
    rows = (
        ("median", "median_um", "µm"),
        ("95 % of the tissue within", "p95_um", "µm"),
        ("more than 2 voxels off", "share_over_2_vox", "%"),
        ("unknown", "share_unknown", "%"),
    )
    return {
        "scale": _legend(_error_scale(), ("0", f"{_ERROR_VOXELS:g} or more")),
        "high_um": _ERROR_VOXELS * contents.voxel_um,
        "numbers": [
            (name, f"{significant(known[key] * (100 if unit == '%' else 1), 2)} {unit}")
            for name, key, unit in rows
            if known.get(key) is not None
        ],
    }


def _thumbnail(place: Place, windows: tuple[Window, Window]) -> dict[str, Any]:
    return {
        **_sides(place.fixed),
        "where": f"a plane {place.plane} through place [{_box(place)}]",
        "what": place.what,
        "box": _box(place),
        "fixed": grey(place.fixed, windows[0]),
        "after": grey(place.after, windows[1]),
    }


def _box(place: Place) -> str:
    return ", ".join(f"{start}:{stop}" for start, stop in place.box)


def _places_words(numbers: dict[str, Any]) -> str:
    axes = ", ".join(numbers["images"]["fixed"]["axes"])
    if numbers["verdict"]:
        return f"The places that the verdict names, the worst first (voxels of axes {axes})."
    return (
        f"Where the images are least alike in the tissue, the worst first (voxels of axes {axes})."
    )


def _drawings(drawings: Sequence[str], contents: Contents) -> list[dict[str, Any]]:
    """Drawings, one per plane or none, with the names of the planes."""
    return [
        {"name": plane.name, "svg": Markup(drawing)}
        for plane, drawing in zip(contents.planes, drawings, strict=False)
    ]


def _short(name: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePosixPath(name).parts[-2:]) or name


def significant(value: float | None, digits: int = 3) -> str:
    """A number as people read it; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if power < -3 or power > 5:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{max(0, digits - 1 - power)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _two(value: float | None) -> str:
    """A correlation as people compare them."""
    return "-" if value is None else f"{value:.{2 if value >= 0.1 else 3}f}"


def render(template: str, **values: Any) -> str:
    """Fill a page in, with its style and script; values are escaped."""
    looks = {"style": Markup(_read("page.css")), "script": Markup(_read("page.js"))}
    return str(_templates().get_template(template).render(**looks, **values))


@cache
def _templates() -> Environment:
    found = Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["sig"] = significant
    found.filters["two"] = _two
    return found


def _read(name: str) -> str:
    return files("itkstream.report").joinpath(name).read_text(encoding="utf-8")

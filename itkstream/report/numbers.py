"""Numbers of a report: all that the page shows, as report.json holds it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import AffineTransform, Grid
from itkstream.io.images.channels import several_channels
from itkstream.io.storage.locations import Location
from itkstream.report.places import Place
from itkstream.report.planes import Plane
from itkstream.report.sources import Sources

__all__ = ["collect_numbers"]

# Points per axis of an image that say which share of it the other one shows.
_POINTS = 32


def collect_numbers(
    sources: Sources, planes: Sequence[Plane], places: Sequence[Place]
) -> dict[str, Any]:
    """Collect every number that the page shows."""
    facts = sources.facts
    steps = facts["steps"]
    return {
        "itkstream": facts["itkstream"],
        "versions": facts["versions"],
        "folder": str(sources.folder.settled),
        "images": {side: _image(facts[side]) for side in ("fixed", "moving")},
        "verdict": facts.get("verdict"),
        "local_correlation": _correlations(steps),
        "chance": _chance(facts),
        "drawn": {"shape": list(sources.fixed.grid.shape), "decimated": _decimated(sources)},
        "planes": [_plane(plane) for plane in planes],
        "error": facts.get("error"),
        "places": [_place(place) for place in places],
        "key_points": _key_points(steps),
        "affine": _affine(sources.transform.affine),
        "deformation": _deformation(sources, planes),
        "certificate": facts.get("certificate"),
        "landmarks": _landmarks(facts.get("landmarks", ())),
        "overlap": _overlap(sources),
        "seconds": _seconds(steps),
        "peak_bytes": max(
            (step["peak_bytes"] for step in steps if "peak_bytes" in step), default=0
        ),
        "parameters": facts["settings"],
        "command": _command(sources),
    }


def _image(facts: dict[str, Any]) -> dict[str, Any]:
    grid = Grid(**facts["grid"]).in_unit("micrometer")
    return {
        "name": facts["name"] or "an array in memory",
        "part": _part(facts),
        "shape": list(grid.shape),
        "spacing_um": list(grid.spacing),
        "axes": list(grid.axes),
        "dtype": facts["dtype"],
    }


def _part(facts: dict[str, Any]) -> str:
    """The channel, time and level of a file, where they are not its only or its first ones."""
    opened = facts.get("opened", {})
    said = [f"{name} {opened[name]}" for name in ("time", "level") if opened.get(name)]
    if "channel" in opened:
        first, *others = several_channels(opened["channel"]) or ((opened["channel"], None),)
        named = facts.get("channel_name")
        said.insert(0, f"channel {first[0]}" + (f" ({named})" if named else ""))
        if others:
            said[0] += f", registered with channel {' and '.join(str(n) for n, _ in others)}"
    return ", ".join(said)


def _correlations(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Local correlation before, and after each step, with the reason where one was left out."""
    return [
        {
            "step": "before" if step["name"] == "read" else step["name"],
            "value": step.get("local_correlation"),
            "left_out": step.get("dropped"),
        }
        for step in steps
        if "local_correlation" in step or "dropped" in step
    ]


def _chance(facts: dict[str, Any]) -> float | None:
    """Local correlation that unrelated tissue reaches, where it was measured."""
    chance = (facts.get("error") or {}).get("chance") or {}
    return chance.get("local_correlation_mean")


def _decimated(sources: Sources) -> list[str]:
    """Images of which every n-th voxel is drawn, since no coarse level is kept of them."""
    views = {"fixed": sources.fixed, "moving": sources.moving, "aligned": sources.aligned}
    return [name for name, view in views.items() if view.decimated]


def _plane(plane: Plane) -> dict[str, Any]:
    before, after = (_mean(values, plane.tissue) for values in plane.correlation)
    return {
        "name": plane.name,
        "across": plane.across,
        "position_um": plane.position_um,
        "extent_um": list(plane.extent_um),
        "pixel_um": plane.pixel_um,
        "local_correlation_before": before,
        "local_correlation_after": after,
        "largest_deformation_um": _number(np.nanmax(plane.size_um)),
        "least_jacobian": _number(np.nanmin(plane.jacobian)),
        "largest_jacobian": _number(np.nanmax(plane.jacobian)),
        "median_error_um": _median_error(plane),
    }


def _median_error(plane: Plane) -> float | None:
    """The middle of the predicted errors in the tissue; None where none is known."""
    if plane.error_um is None:
        return None
    values = plane.error_um[plane.tissue]
    values = values[np.isfinite(values)]
    return _number(np.median(values)) if values.size else None


def _place(place: Place) -> dict[str, Any]:
    return {
        "what": place.what,
        "box_voxels": [list(span) for span in place.box],
        "share_of_tissue": place.share_of_tissue,
        "plane": place.plane,
    }


def _key_points(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Matches of each step that matched key points in the whole images."""
    return [
        {
            "step": step["name"],
            "matches": step["matches"],
            "inliers": step["inliers"],
            "median_residual_um": step["median_residual"],
            "evidence": step.get("evidence") or {},
            "drawn": step.get("drawn_points"),
        }
        for step in steps
        if "inliers" in step
    ]


def _landmarks(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Distances of landmarks from where the transform puts them: those it went by, and others."""
    errors: dict[str, list[float]] = {"landmarks": [], "landmarks that no step saw": []}
    first, second = errors.values()
    for row in rows:
        (second if row["held_out"] else first).append(row["error_um"])
    return {
        name: {
            "count": len(found),
            "median_um": _number(np.median(found)) if found else None,
            "largest_um": _number(np.max(found)) if found else None,
        }
        for name, found in errors.items()
    }


def _affine(affine: AffineTransform) -> dict[str, Any]:
    """Take an affine apart: the turn nearest to it, stretches, and whether it mirrors."""
    linear = affine.matrix[:-1, :-1]
    u, stretches, v = np.linalg.svd(linear)
    turn = u @ v
    mirrored = bool(np.linalg.det(turn) < 0)
    n = len(linear)
    cosine = (np.trace(turn) - 1) / 2 if n == 3 else turn[0, 0]
    return {
        "matrix": affine.matrix.tolist(),
        "turn_degrees": None
        if mirrored
        else _number(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        "stretches": [_number(s) for s in sorted(stretches)],
        "mirrored": mirrored,
    }


def _deformation(sources: Sources, planes: Sequence[Plane]) -> dict[str, Any]:
    """Size of the deformation at the tissue of the planes that are drawn."""
    sizes = np.concatenate([p.size_um[p.tissue & np.isfinite(p.size_um)] for p in planes])
    grid = sources.transform.field.grid
    found = np.percentile(sizes, (50, 95, 100)) if sizes.size else (0.0, 0.0, 0.0)
    names = ("median_um", "p95_um", "largest_um")
    return {
        "nodes": list(grid.shape),
        "node_spacing_um": list(grid.spacing),
        **{name: _number(value) for name, value in zip(names, found, strict=True)},
    }


def _overlap(sources: Sources) -> dict[str, Any]:
    """Share of each image that the other one shows through the affine; nothing is read."""
    fixed, moving = (image.grid for image in sources.pair)
    affine = sources.transform.affine
    return {
        "fixed_in_moving": _share(fixed, moving, affine),
        "moving_in_fixed": _share(moving, fixed, affine.inverse()),
    }


def _share(grid: Grid, other: Grid, affine: AffineTransform) -> float:
    points = grid.shrink([max(1, n // _POINTS) for n in grid.shape]).positions()
    return float(other.contains(affine.apply(points)).mean())


def _seconds(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"part": step["name"], "seconds": step["seconds"]} for step in steps]


def _command(sources: Sources) -> str:
    """The command that does the same again, into another folder; empty where files are not all."""
    given = (sources.facts.get(name) for name in ("initial_transform", "fixed_mask", "moving_mask"))
    files = (name for name in given if isinstance(name, str))
    if "landmark_files" in sources.facts or not all(Location.parse(f).exists() for f in files):
        return ""
    names = [
        facts["opened"].get("path") for facts in (sources.facts[s] for s in ("fixed", "moving"))
    ]
    if None in names:
        return ""
    folder = str(sources.folder.settled)
    words = ["itkstream", "register", *names, "--config", f"{folder}/registration.json"]
    return shlex.join([*words, "--out", f"{folder}-again"])


def _mean(values: NDArray[np.float32], where: NDArray[np.bool_]) -> float | None:
    counting = values[where & np.isfinite(values)]
    return _number(counting.mean()) if counting.size else None


def _number(value: Any) -> float | None:
    """A number as JSON has it; None for what is none."""
    return float(value) if np.isfinite(value) else None

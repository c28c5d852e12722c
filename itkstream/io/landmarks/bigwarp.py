"""BigWarp's landmarks: rows of name, active, moving point, fixed point, or the same as JSON.

Coordinates are x, y, z in the unit of the images; a point that is missing in one image is infinite
there, and its row not active.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import default_axes
from itkstream.io.landmarks.sides import Pairs, Side

__all__ = ["bigwarp_pairs", "bigwarp_text", "is_bigwarp", "is_bigwarp_json", "json_pairs"]

_FLAGS = ("true", "false")


def is_bigwarp(text: str) -> bool:
    """Whether a text is a table of BigWarp: no header, and "true" or "false" in second place."""
    row = next(csv.reader(io.StringIO(text)), [])
    return len(row) in (6, 8) and row[1].strip().lower() in _FLAGS


def bigwarp_pairs(text: str, where: str) -> Pairs:
    """Read the active rows of a table."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    width = len(rows[0])
    found: list[tuple[str, bool, Any]] = []
    for number, row in enumerate(rows, 1):
        if len(row) != width or row[1].strip().lower() not in _FLAGS:
            raise InputError(
                f"{where}: row {number} is no landmark of BigWarp: name, true or false, the moving "
                "and the fixed point"
            )
        try:
            point = [float(cell) for cell in row[2:]]
        except ValueError as error:
            raise InputError(f"{where}: row {number} holds no number: {error}") from error
        found.append((row[0], row[1].strip().lower() == "true", point))
    return _pairs(found, where)


def is_bigwarp_json(known: Any) -> bool:
    """Whether a JSON value is, or holds, BigWarp's landmarks."""
    return _landmarks(known) is not None


def json_pairs(known: Any, where: str) -> Pairs:
    """Read the active landmarks of a JSON file: of landmarks alone, or of a whole project."""
    marks = _landmarks(known) or {}
    try:
        found = [
            (str(name), bool(active), [*map(float, moving), *map(float, fixed)])
            for name, active, moving, fixed in zip(
                *(marks[key] for key in ("names", "active", "movingPoints", "fixedPoints")),
                strict=True,
            )
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} holds landmarks of BigWarp that are not whole: {error}"
        ) from error
    return _pairs(found, where)


def _landmarks(known: Any) -> dict[str, Any] | None:
    if not isinstance(known, dict):
        return None
    if known.get("type") == "BigWarpLandmarks":
        return known
    inner = known.get("landmarks", known.get("Transform"))
    return _landmarks(inner)


def _pairs(found: list[tuple[str, bool, Any]], where: str) -> Pairs:
    kept = [(name, point) for name, active, point in found if active]
    if not kept:
        raise InputError(f"{where} holds {len(found)} landmarks, none of them active")
    points = np.array([point for _, point in kept], np.float64)
    lost = [name for (name, _), p in zip(kept, points, strict=True) if not np.isfinite(p).all()]
    if lost:
        raise InputError(f"{where}: {', '.join(lost)} has no point in one of the images")
    n = points.shape[1] // 2
    names = tuple(name for name, _ in kept)
    moving, fixed = points[:, :n], points[:, n:]
    return Pairs(Side(fixed, names, default_axes(n)), Side(moving, names, default_axes(n)))


def bigwarp_text(pairs: Pairs) -> str:
    """Write pairs as BigWarp exports them, every cell in quotes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    both = np.concatenate([pairs.moving.points, pairs.fixed.points], axis=1)
    for name, point in zip(pairs.fixed.names, both, strict=True):
        writer.writerow([name, "true", *(repr(float(v)) for v in point)])
    return out.getvalue()

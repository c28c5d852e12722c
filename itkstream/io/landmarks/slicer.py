"""3D Slicer's point lists: ``.mrk.json``, and ``.fcsv`` of before.

Both say whether their coordinates are LPS, which are ITK's, or RAS, whose x and y have the other
sign. Slicer calls every unit mm: the numbers are those of ITK's coordinates of the image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from itkstream.errors import InputError
from itkstream.geometry import default_axes
from itkstream.io.landmarks.sides import Side

__all__ = ["fcsv_side", "fcsv_text", "is_markups", "markups_side", "markups_text"]

_LPS = ("LPS", "1")
_RAS = ("RAS", "0")
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)


def is_markups(known: Any) -> bool:
    """Whether a JSON value is one of Slicer's markups files."""
    return isinstance(known, dict) and isinstance(known.get("markups"), list)


def markups_side(known: Any, where: str) -> Side:
    """Read the points of a markups file; those without a position are left out."""
    lists = [one for one in known["markups"] if one.get("controlPoints")]
    if len(lists) != 1:
        raise InputError(f"{where} holds {len(lists)} lists of points; save one list in a file")
    (one,) = lists
    points = [p for p in one["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
    try:
        positions = [[float(v) for v in point["position"]] for point in points]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: a point has no position of three numbers: {error}") from error
    labels = [str(p.get("label", "")) for p in points]
    return _side(positions, labels, str(one.get("coordinateSystem", "LPS")), where)


def fcsv_side(text: str, where: str) -> Side:
    """Read the points of a ``.fcsv`` file; without a coordinate system it is RAS, as of old."""
    said = {}
    for line in text.splitlines():
        if line.startswith("#") and "=" in line:
            key, _, value = line[1:].partition("=")
            said[key.strip().lower()] = value.strip()
    columns = said.get("columns", _COLUMNS).split(",")
    rows = [r for r in csv.reader(io.StringIO(text)) if r and not r[0].startswith("#")]
    places = [columns.index(a) if a in columns else -1 for a in ("x", "y", "z")]
    if min(places) < 0:
        raise InputError(f"{where} names no columns x, y, z; its columns are {', '.join(columns)}")
    try:
        positions = [[float(row[k]) for k in places] for row in rows]
    except (ValueError, IndexError) as error:
        raise InputError(f"{where} holds a point without three numbers: {error}") from error
    label = columns.index("label") if "label" in columns else len(columns)
    labels = [row[label] if label < len(row) else "" for row in rows]
    return _side(positions, labels, said.get("coordinatesystem", "RAS"), where)


def _side(positions: list[list[float]], labels: list[str], system: str, where: str) -> Side:
    points = np.array(positions, np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"{where} holds no points of three coordinates")
    if not np.isfinite(points).all():
        bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
        raise InputError(f"{where}: point {bad[0] + 1} is not finite")
    if system.upper() not in (*_LPS, *_RAS):
        raise InputError(f"{where} is in the coordinate system {system!r}; known: LPS, RAS")
    if system.upper() in _RAS:
        points = points * (-1.0, -1.0, 1.0)
    named = all(labels)
    names = tuple(labels) if named else tuple(str(k + 1) for k in range(len(points)))
    return Side(points, names, default_axes(3), labelled=named)


def markups_text(side: Side) -> str:
    """Write points as a markups file, in LPS."""
    points = [
        {
            "id": str(k + 1),
            "label": name,
            "position": [float(v) for v in position],
            "positionStatus": "defined",
        }
        for k, (name, position) in enumerate(zip(side.names, side.points, strict=True))
    ]
    markups = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": points,
    }
    return json.dumps({"@schema": _SCHEMA, "markups": [markups]}, indent=2) + "\n"


def fcsv_text(side: Side) -> str:
    """Write points as a ``.fcsv`` file, in LPS."""
    out = io.StringIO()
    out.write("# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n")
    out.write(f"# columns = {_COLUMNS}\n")
    writer = csv.writer(out, lineterminator="\n")
    for k, (name, p) in enumerate(zip(side.names, side.points, strict=True)):
        writer.writerow([k + 1, *_numbers(p), 0, 0, 0, 1, 1, 1, 0, name, "", ""])
    return out.getvalue()


def _numbers(values: Sequence[float]) -> list[str]:
    return [repr(float(v)) for v in values]

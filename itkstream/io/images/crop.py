"""A part of an image, as it is said in words: a span of voxels or µm per axis."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from itkstream.errors import InputError
from itkstream.geometry import Grid, Slices

__all__ = ["crop_slices", "crop_text"]

# Whole voxels, or any number of µm.
_SPAN = re.compile(
    r"\s*(?:(?P<start>\d*):(?P<stop>\d*)"
    r"|(?P<start_um>\d*\.?\d*):(?P<stop_um>\d*\.?\d*)\s*[uµ\u03bc]m)\s*"
)
_HOW = "give start:stop per axis of the image, in voxels or µm: 100:400,0:200um,:"


@dataclass(frozen=True)
class _Span:
    """A part of an axis, in voxels, or in µm from the edge of its first voxel; None for an end."""

    start: float | None
    stop: float | None
    in_um: bool

    def voxels(self, n: int, spacing_um: float) -> slice:
        """Find the voxels, each that is touched, of an axis of so many."""
        scale = spacing_um if self.in_um else 1.0
        start = 0 if self.start is None else math.floor(self.start / scale)
        stop = n if self.stop is None else math.ceil(self.stop / scale)
        return slice(min(start, n), min(stop, n))


def crop_slices(crop: str, grid: Grid) -> Slices:
    """Find the voxels of a lattice that a crop names; it ends where the image does.

    Raises an `InputError` where the axes are not as many, or nothing is left.
    """
    spans = _parse(crop)
    if len(spans) != grid.ndim:
        raise InputError(
            f"the crop {crop!r} names {len(spans)} axes, and the image has {grid.ndim} "
            f"({', '.join(grid.axes)}): {_HOW}"
        )
    sides = zip(spans, grid.shape, grid.in_unit("micrometer").spacing, strict=True)
    found = tuple(span.voxels(n, spacing_um) for span, n, spacing_um in sides)
    if not all(s.start < s.stop for s in found):
        raise InputError(
            f"the crop {crop!r} holds no voxel of an image of {grid.shape} voxels along "
            f"{', '.join(grid.axes)}: {_HOW}"
        )
    return found


def crop_text(crop: Any) -> str:
    """Write a crop as text: one that is, or slices of voxels; an `InputError` for anything else."""
    if isinstance(crop, str):
        _parse(crop)
        return crop
    try:
        parts = [_written(part) for part in crop]
    except (TypeError, ValueError) as error:
        raise InputError(f"a crop is a text or slices; got {crop!r}: {_HOW}") from error
    text = ",".join(parts)
    _parse(text)
    return text


def _written(part: Any) -> str:
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise ValueError("a crop has no steps")
        ends = part.start, part.stop
    else:
        start, stop = part
        ends = start, stop
    return ":".join("" if end is None else str(int(end)) for end in ends)


def _parse(text: str) -> list[_Span]:
    spans = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part)
        if found is None:
            raise InputError(f"{part.strip()!r} of the crop {text!r} is no span: {_HOW}")
        in_um = found["start"] is None
        names = ("start_um", "stop_um") if in_um else ("start", "stop")
        start, stop = (float(found[name]) if found[name] else None for name in names)
        spans.append(_Span(start, stop, in_um))
    return spans

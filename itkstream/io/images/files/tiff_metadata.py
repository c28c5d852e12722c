"""Spacing, unit and origin of the voxels of a TIFF file, as its many makers state them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPageSeries

from itkstream.errors import InputError
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.units import parse_unit

__all__ = ["Statement", "channel_names", "ome_pixels", "statement"]

# Printers, cameras and most programs write a resolution that means nothing: 72, 300, 1200 dots an
# inch. What is finer than this was measured.
_FINEST_PRINT_UM = 10.0
_MICROMETERS_PER_TAG = {2: 25400.0, 3: 10000.0}
_LONGEST = 2**31
_MANY_PLANES = 2_000_000


@dataclass(frozen=True)
class Statement:
    """Spacing, unit and origin by axis name, as a file spells them; empty where it has none."""

    spacing: Mapping[str, float] = field(default_factory=dict)
    unit: str | None = None
    origin: Mapping[str, float] = field(default_factory=dict)


def statement(tif: TiffFile, series: TiffPageSeries) -> Statement:
    """Read spacing, unit and origin of a series, the finest level.

    OME-XML, ImageJ's, Zeiss LSM's, MetaMorph's and Micro-Manager's metadata count, in this order.
    The resolution of the TIFF tags counts where it is finer than any printer's (10 µm), since most
    programs write one that means nothing.
    """
    makers = {"ome": _ome, "imagej": _imagej, "lsm": _lsm, "stk": _stk, "mmstack": _micro_manager}
    found = Statement()
    if series.kind in makers:
        found = makers[series.kind](tif, series)
    if not found.spacing and series.kind != "ome" and tif.is_ome:
        found = _ome(tif, series)
    return found if found.spacing else _resolution(series)


def channel_names(tif: TiffFile, series: TiffPageSeries) -> tuple[str, ...]:
    """List what OME-XML, Zeiss LSM or Micro-Manager call the channels; empty without names."""
    if series.kind == "ome" or tif.is_ome:
        image = _ome_image(tif, series)
        return image.channels if image else ()
    found: Any = None
    if series.kind == "lsm":
        found = ((tif.lsm_metadata or {}).get("ChannelColors") or {}).get("ColorNames")
    elif series.kind == "mmstack":
        found = ((tif.micromanager_metadata or {}).get("Summary") or {}).get("ChNames")
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


@dataclass(frozen=True)
class OmeImage:
    """An image of OME-XML: its name, the attributes of its pixels, the names of its channels."""

    name: str | None
    pixels: Mapping[str, str]
    channels: tuple[str, ...]


def ome_pixels(tif: TiffFile) -> list[OmeImage]:
    """Read each image of the OME-XML of a file; empty without it."""
    text = tif.ome_metadata
    if text is None:
        return []
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(
            f"the OME-XML in ImageDescription of {tif.filehandle.path} is malformed ({error}): "
            "repair it, with tiffcomment for instance"
        ) from error
    found = []
    for image in (e for e in root if e.tag.endswith("Image")):
        for pixels in (e for e in image if e.tag.endswith("Pixels")):
            _check_planes(pixels, tif.filehandle.path)
            channels = (e.attrib for e in pixels if e.tag.endswith("Channel"))
            names = tuple(c.get("Name") or c.get("Fluor") or "" for c in channels)
            found.append(OmeImage(image.attrib.get("Name"), dict(pixels.attrib), names))
    return found


def _check_planes(pixels: ElementTree.Element, name: str) -> None:
    """Refuse nonsense numbers: tifffile makes a list of the planes that are meant, however many."""
    numbers = {f"Size{a}": pixels.attrib.get(f"Size{a}", "") for a in "XYZCT"}
    for data in (e for e in pixels if e.tag.endswith("TiffData")):
        numbers |= {f"TiffData {k}": v for k, v in data.attrib.items()}
    for key, text in numbers.items():
        if not text.isdigit() or int(text) > _LONGEST or (key[:4] == "Size" and int(text) < 1):
            raise InputError(f"the OME-XML of {name} has {key}={text!r}: a whole number is meant")
    planes = math.prod(int(numbers[f"Size{a}"]) for a in "ZCT")
    most = max(planes, *(int(v) for k, v in numbers.items() if k[:4] != "Size"), 0)
    if most > _MANY_PLANES:
        raise InputError(
            f"the OME-XML of {name} means {most} planes; at most {_MANY_PLANES} are read. Check "
            "SizeZ, SizeC, SizeT and TiffData"
        )


def _ome_image(tif: TiffFile, series: TiffPageSeries) -> OmeImage | None:
    """Find what OME-XML says of a series; None where that is not clear."""
    images = ome_pixels(tif)
    if len(images) == len(tif.series):
        return images[series._index]
    named = [image for image in images if image.name == series.name]
    if len(named) == 1 or len(images) == 1:
        return (named or images)[0]
    return None


def _ome(tif: TiffFile, series: TiffPageSeries) -> Statement:
    image = _ome_image(tif, series)
    if image is None:
        return Statement()
    attributes = image.pixels
    lengths = {}
    for axis in "xyz":
        size = _positive(attributes.get(f"PhysicalSize{axis.upper()}"))
        unit, scale = _unit(attributes.get(f"PhysicalSize{axis.upper()}Unit", "µm"))
        if size is not None and unit is not None:
            lengths[axis] = (size * scale, unit)
    units = {unit for _, unit in lengths.values()}
    if len(units) == 1:
        return Statement({a: size for a, (size, _) in lengths.items()}, units.pop())
    scaled = {a: size * MICROMETERS_PER_UNIT[unit] for a, (size, unit) in lengths.items()}
    return Statement(scaled, "micrometer")


def _imagej(tif: TiffFile, series: TiffPageSeries) -> Statement:
    meta = tif.imagej_metadata or {}
    text = str(meta.get("unit", "")).strip()
    if "\\u" in text:  # as ImageJ writes what is not ASCII
        text = text.encode("latin-1", "replace").decode("unicode_escape", "ignore")
    unit, scale = _unit(text or {2: "inch", 3: "cm"}.get(_tag(series, 296), ""))
    lengths = {"x": _inverse(_tag(series, 282)), "y": _inverse(_tag(series, 283))}
    lengths["z"] = _positive(abs(_number(meta.get("spacing")) or 0.0))
    spacing = {a: v * scale for a, v in lengths.items() if v is not None}
    first = {a: _number(meta.get(f"{a}origin")) for a in spacing}
    origin = {a: -v * spacing[a] for a, v in first.items() if v}
    return Statement(spacing, unit, origin)


def _lsm(tif: TiffFile, series: TiffPageSeries) -> Statement:
    meta = tif.lsm_metadata or {}
    sizes = {a: _positive(meta.get(f"VoxelSize{a.upper()}")) for a in "xyz"}
    return Statement({a: v * 1e6 for a, v in sizes.items() if v}, "micrometer")


def _stk(tif: TiffFile, series: TiffPageSeries) -> Statement:
    meta = tif.stk_metadata or {}
    unit, scale = _unit(str(meta.get("CalibrationUnits", "")))
    if not meta.get("SpatialCalibration", True) or unit is None:
        return Statement()
    steps = {abs(float(v)) for v in meta.get("ZDistance", ())}
    lengths = {"x": _positive(meta.get("XCalibration")), "y": _positive(meta.get("YCalibration"))}
    lengths["z"] = _positive(steps.pop()) if len(steps) == 1 else None
    return Statement({a: v * scale for a, v in lengths.items() if v}, unit)


def _micro_manager(tif: TiffFile, series: TiffPageSeries) -> Statement:
    if tif.is_ome:
        return _ome(tif, series)
    summary = (tif.micromanager_metadata or {}).get("Summary", {})
    pixel, step = _positive(summary.get("PixelSizeUm")), _number(summary.get("z-step_um"))
    lengths = {"x": pixel, "y": pixel, "z": _positive(abs(step or 0.0))}
    return Statement({a: v for a, v in lengths.items() if v}, "micrometer")


def _resolution(series: TiffPageSeries) -> Statement:
    scale = _MICROMETERS_PER_TAG.get(_tag(series, 296))
    lengths = {"x": _inverse(_tag(series, 282)), "y": _inverse(_tag(series, 283))}
    if scale is None:
        return Statement()
    spacing = {a: v * scale for a, v in lengths.items() if v and v * scale < _FINEST_PRINT_UM}
    return Statement(spacing, "micrometer") if len(spacing) == 2 else Statement()


def _tag(series: TiffPageSeries, code: int) -> Any:
    return series.keyframe.tags.valueof(code)


def _inverse(ratio: Any) -> float | None:
    """Invert a resolution, which tags hold as a fraction, to the size of a pixel."""
    try:
        numerator, denominator = ratio
        return _positive(denominator / numerator)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _unit(text: str) -> tuple[str | None, float]:
    """Find a unit of length and the factor to it; None for "pixel" and what is no length."""
    if text.strip().lower() in ("inch", "inches", "in"):
        return "micrometer", _MICROMETERS_PER_TAG[2]
    try:
        return parse_unit(text), 1.0
    except InputError:
        return None, 1.0

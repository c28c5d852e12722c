"""Units of length, as files and headers spell them."""

from __future__ import annotations

from itkstream.errors import UnknownSpacingError
from itkstream.geometry.grid import MICROMETERS_PER_UNIT

__all__ = ["SPELLINGS", "parse_unit"]

SPELLINGS = {
    "angstrom": ("å", "angstrom", "angstroms", "ångström"),
    "nanometer": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "micrometer": (
        *("um", "µm", "\u03bcm", "micron", "microns"),
        *("micrometer", "micrometers", "micrometre", "micrometres"),
    ),
    "millimeter": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "centimeter": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    "meter": ("m", "meter", "meters", "metre", "metres"),
}
"""Units as `Grid` spells them, and all their spellings, the short one first."""

_UNITS = {word: unit for unit, words in SPELLINGS.items() for word in words}


def parse_unit(text: str) -> str:
    """Parse a unit of length as files spell it ("um", "micron"...) to `Grid`'s spelling."""
    unit = _UNITS.get(str(text).strip().lower())
    if unit is None:
        raise UnknownSpacingError(
            f"unknown unit of length {text!r}; pass unit= (--unit) with one of "
            f"{', '.join(MICROMETERS_PER_UNIT)}"
        )
    return unit

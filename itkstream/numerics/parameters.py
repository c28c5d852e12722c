"""Parameters of settings: checked and brought into one form as they are set, by attrs.

Every message names the parameter. What is one number per level follows `shrink_factors`, which is
therefore the first field of its class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self, get_args

import attrs
import numpy as np
from attrs import Attribute, Converter, evolve, frozen

from itkstream.errors import InputError

__all__ = [
    "Settings",
    "at_least",
    "check",
    "each_level",
    "finite",
    "length_or_none",
    "levels",
    "one_of",
    "per_level",
    "per_level_field",
    "positive_length",
    "scale_each",
    "scale_one",
    "whole",
]

Validator = Callable[[Any, "Attribute[Any]", Any], None]


@frozen
class Settings:
    """Parameters of which some are lengths, and some differ from level to level, coarse to fine."""

    def __dask_tokenize__(self) -> tuple[str, tuple[Any, ...]]:
        return (type(self).__name__, attrs.astuple(self, recurse=False))

    @classmethod
    def lengths(cls) -> frozenset[str]:
        """Names of the parameters that are lengths, or areas."""
        return frozenset(f.name for f in attrs.fields(cls) if "scale" in f.metadata)

    @classmethod
    def names_per_level(cls) -> list[str]:
        """Names of the parameters of which there is one per level."""
        return [f.name for f in attrs.fields(cls) if f.metadata.get("per_level")]

    def select(self, levels: slice) -> Self:
        """The settings of some levels only: coarse ones for a whole image, fine ones for blocks."""
        return evolve(
            self, **{name: getattr(self, name)[levels] for name in self.names_per_level()}
        )

    def scaled(self, length: float) -> Self:
        """The settings for images whose spacings are `length` times as large."""
        scales = {f.name: f.metadata.get("scale") for f in attrs.fields(type(self))}
        changes = {n: scale(getattr(self, n), length) for n, scale in scales.items() if scale}
        return evolve(self, **changes)

    def for_voxels(self, spacing: Sequence[float]) -> Self:
        """The settings for images of any voxels, out of those for a smallest spacing of 1."""
        return self.scaled(min(spacing))


def finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def check(allowed: Callable[[Any], Any], meaning: str) -> Validator:
    """A validator; its message is the parameter's name, "must", and what is meant."""

    def validate(_: Any, field: Attribute[Any], value: Any) -> None:
        if not allowed(value):
            raise InputError(f"{field.name} must {meaning}; got {value!r}")

    return validate


def whole(least: int, optional: bool = False) -> Validator:
    """A validator of whole numbers, and of None where it is optional."""

    def allowed(value: Any) -> bool:
        return bool(finite(value) and value == int(value) and value >= least)

    return check(lambda v: (optional and v is None) or allowed(v), f"be a whole number >= {least}")


def at_least(least: float) -> Validator:
    """A validator of finite numbers."""
    return check(lambda v: finite(v) and v >= least, f"be a number >= {least}")


def one_of(literal: Any) -> Validator:
    """A validator of the strings of a `Literal`."""
    known = get_args(literal)
    return check(lambda v: v in known, f"be one of {', '.join(known)}")


positive_length = check(lambda v: finite(v) and v > 0, "be a positive length")
length_or_none = check(lambda v: v is None or (finite(v) and v > 0), "be a positive length or None")


def levels(default: Sequence[int]) -> Any:
    """A field for the shrink factors of the levels, coarse to fine."""

    def convert(values: Any, field: Attribute[Any]) -> tuple[int, ...]:
        return per_level(field.name, values, None, 1, int)

    return per_level_field(default, Converter(convert, takes_field=True))


def each_level(
    default: Any,
    kind: type[int] | type[float],
    least: float,
    *,
    shared: bool = False,
    scale: Callable[[Any, float], Any] | None = None,
) -> Any:
    """A field for one number per level; where `shared`, one number stands for all levels."""

    def convert(values: Any, settings: Any, field: Attribute[Any]) -> tuple[Any, ...]:
        count = len(settings.shrink_factors)
        given = (values,) * count if shared and finite(values) else values
        return per_level(field.name, given, count, least, kind)

    return per_level_field(default, Converter(convert, takes_self=True, takes_field=True), scale)


def per_level(
    name: str, values: Any, count: int | None, least: float, kind: type[int] | type[float]
) -> tuple[Any, ...]:
    """Checked numbers of a kind, as many as are wanted; for None, at least one."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)) or not len(values):
        raise InputError(f"{name} must be a sequence of one number per level; got {values!r}")
    if count not in (None, len(values)):
        raise InputError(
            f"{name} needs one number per level, {count} as shrink_factors has; got {values!r}"
        )
    for number in values:
        if not finite(number) or number < least or kind(number) != number:
            what = "whole numbers" if kind is int else "numbers"
            raise InputError(f"{name} must be {what} >= {least}; got {values!r}")
    return tuple(kind(number) for number in values)


def scale_each(values: Any, length: float) -> tuple[float, ...]:
    """Lengths of all levels, multiplied."""
    return tuple(value * length for value in values)


def scale_one(value: float | None, length: float) -> float | None:
    """A length, multiplied."""
    return None if value is None else value * length


def per_level_field(default: Any, converter: Any, scale: Any = None) -> Any:
    """A field with one value per level and, where these are lengths, what multiplies them."""
    metadata = {"per_level": True} | ({} if scale is None else {"scale": scale})
    return attrs.field(default=default, converter=converter, metadata=metadata)

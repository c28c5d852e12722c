"""Parameters of a search for a start, checked once."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import frozen

from itkstream.errors import InputError
from itkstream.numerics.parameters import check, finite, one_of, whole

__all__ = ["Mirror", "SearchSettings"]

Mirror = Literal["refuse", "allow"]


def _scales(given: Any) -> tuple[float, ...]:
    """Positive numbers, of which there is at least one."""
    numbers = (given,) if finite(given) else given
    try:
        scales = tuple(float(scale) for scale in numbers)
    except (TypeError, ValueError) as error:
        raise InputError(f"scales must be numbers, such as (1.0, 0.8); got {given!r}") from error
    if not scales or not all(finite(scale) and 0.1 <= scale <= 10 for scale in scales):
        raise InputError(f"scales must be numbers between 0.1 and 10, at least one; got {given!r}")
    return scales


@frozen(kw_only=True)
class SearchSettings:
    """Parameters of a search for a start, as `itkstream.InitialSearch` documents them."""

    mirror: Mirror = attrs.field(default="refuse", validator=one_of(Mirror))
    scales: tuple[float, ...] = attrs.field(default=(1.0, 0.8, 1.25), converter=_scales)
    overlap: float = attrs.field(
        default=0.4, validator=check(lambda v: finite(v) and 0 < v <= 1, "be above 0, at most 1")
    )
    seed: int = attrs.field(default=0, validator=whole(0))

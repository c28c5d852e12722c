"""Parameters of steps that are those of a method's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import attrs
from attrs import evolve

from itkstream.numerics.parameters import Settings
from itkstream.registration.steps.step import Step, check_names

__all__ = ["TunedStep", "tuned"]

S = TypeVar("S", bound=Settings)


class TunedStep(Step):
    """A step with the settings of a method for voxels of edge 1, and which lengths were given.

    Lengths that were given are in µm and stay as they are; others are scaled to an image.
    """

    __slots__ = ()

    settings: Any
    given_lengths: frozenset[str]

    def __repr__(self) -> str:
        kept = self.given_lengths
        known = self.parameters().items()
        given = [f"{k}={v!r}" for k, v in known if k in kept or k not in self._lengths]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def _lengths(self) -> frozenset[str]:
        lengths: frozenset[str] = self.settings.lengths()
        return lengths

    def parameters(self) -> dict[str, Any]:
        own = super().parameters()
        settings: Settings = own.pop("settings")
        open_lengths = self._lengths - own.pop("given_lengths")
        values = attrs.asdict(settings, recurse=False)
        return own | values | dict.fromkeys(open_lengths)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        return cls(**parameters)

    def _scaled(self, scaled: Any) -> Any:
        """Settings scaled to an image, with the lengths that were given."""
        return evolve(scaled, **{n: getattr(self.settings, n) for n in self.given_lengths})


def tuned(
    defaults: S, parameters: Mapping[str, Any], what: str, own: Iterable[str] = ()
) -> tuple[S, frozenset[str]]:
    """Settings with some parameters given, and which of these are lengths; None is not given.

    Where other levels are given than the defaults have, defaults count from the finest level, and
    the first is repeated.
    """
    known = [field.name for field in attrs.fields(type(defaults))]
    check_names(f"parameter of {what}", parameters, [*own, *known])
    lengths = defaults.lengths()
    given = {k: v for k, v in parameters.items() if not (v is None and k in lengths)}
    settings = evolve(defaults, **{**_for_levels(defaults, given), **given})
    return settings, frozenset(lengths & given.keys())


def _for_levels(defaults: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults for as many levels as are given."""
    shrinks = given.get("shrink_factors", defaults.shrink_factors)
    if not isinstance(shrinks, Sequence) or isinstance(shrinks, str):
        return {}
    values = {name: getattr(defaults, name) for name in defaults.names_per_level()}
    missing = len(shrinks) - len(defaults.shrink_factors)
    return {name: v[:1] * missing + v[-len(shrinks) :] for name, v in values.items()}

"""The wanted part of a file, by level, channel and time, and what is stated by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, NoSuchPartError, UnknownSpacingError
from itkstream.geometry import ArraySource, ArrayView, Grid, Image
from itkstream.geometry.grid import MICROMETERS_PER_UNIT
from itkstream.io.images.channels import choose_channel
from itkstream.io.units import parse_unit

__all__ = ["Opened", "Selection"]


@dataclass(frozen=True)
class Opened:
    """An image of a file, and how many levels, channels and time points its metadata state.

    `selection` gives it again: the channel by its number, where there are several.
    """

    image: Image
    level: int
    channel: int
    time: int
    selection: Selection


@dataclass(frozen=True)
class Selection:
    """The part of a file to open, and what to believe instead of its metadata.

    The fields are arguments of `itkstream.open_image`; `spacing` is in µm. `channel_name` is what
    the file calls the channel of a `settled` selection.
    """

    level: int | None = None
    spacing: float | Sequence[float] | None = None
    channel: int | str | None = None
    time: int = 0
    unit: str | None = None
    voxel_spacing: float | Sequence[float] | None = None
    axes: str | Sequence[str] | None = None
    crop: str | None = None
    channel_name: str = ""

    def __post_init__(self) -> None:
        if self.level is not None and self.spacing is not None:
            raise InputError("level and spacing both choose the level; give one of them")
        for name in ("spacing", "voxel_spacing"):
            given = getattr(self, name)
            if given is not None and not _positive(given):
                raise InputError(f"{name} must be positive numbers; got {given}")
        if self.unit is not None:
            object.__setattr__(self, "unit", parse_unit(self.unit))
        if self.axes is not None:
            object.__setattr__(self, "axes", _axes(self.axes))

    def stated(self) -> dict[str, Any]:
        """Return what is not left at its default, as plain values."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "channel_name"}
        for name in ("spacing", "voxel_spacing"):
            if said[name] is not None:
                said[name] = np.asarray(said[name], float).tolist()
        said["level"] = said["level"] or None  # the finest
        known = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in said.items() if value != known[name]}

    def settled(self, count: int, names: Sequence[str], place: str) -> Selection:
        """Say by number which of so many channels is meant; of one, none.

        `names` are those of the file, `place` is what messages call the image. What is settled
        stays as it is.
        """
        known = names if len(names) == count else [""] * count
        number = choose_channel(self.channel, known, place)
        name = known[number] or self.channel_name
        return replace(self, channel=number if count > 1 else None, channel_name=name)

    def axes_of(self, claimed: Sequence[str], name: str) -> tuple[str, ...]:
        """Return the stated names of the stored axes, else the claimed ones."""
        if self.axes is None:
            return tuple(claimed)
        if len(self.axes) != len(claimed):
            raise InputError(
                f"{name} has {len(claimed)} axes {tuple(claimed)}; got axes {tuple(self.axes)}: "
                "name each stored axis, slowest first as numpy has them"
            )
        return tuple(self.axes)

    def planar(self, names: Sequence[str], shape: Sequence[int]) -> tuple[str, ...]:
        """Name a z of one voxel (of the finest level's shape) "plane", which `image` drops.

        Images of one plane come with a z of one voxel from many tools; they are 2-D unless their
        axes are stated.
        """
        flat = self.axes is None and len(names) == len(shape)
        return tuple(
            "plane" if flat and name == "z" and shape[k] == 1 else name
            for k, name in enumerate(names)
        )

    def stated_spacing(self, ndim: int, name: str) -> tuple[float, ...] | None:
        """Return the voxel spacing stated by hand, one per spatial axis, or None."""
        if self.voxel_spacing is None:
            return None
        return tuple(map(float, _per_axis("voxel_spacing", self.voxel_spacing, ndim, name)))

    def unit_of(self, claimed: str | None) -> str:
        """Return the stated unit of the file's numbers, else the claimed one, else micrometer."""
        return self.unit or parse_unit(claimed or "micrometer")

    def choose_level(self, spacings: Sequence[Sequence[float] | None], unit: str, name: str) -> int:
        """Choose a level by number, or by the spacings of all levels (None: unknown) in `unit`."""
        if self.spacing is not None:
            return _nearest(self.spacing, spacings, unit, name)
        level = self.level or 0
        if not 0 <= level < len(spacings):
            there = "; ".join(f"{k}: {s or 'unknown'}" for k, s in enumerate(spacings))
            raise NoSuchPartError(
                f"{name} has no level {level}; its levels and their spacing ({unit}): {there}"
            )
        return level

    def image(
        self,
        source: ArraySource,
        names: Sequence[str],
        grid: Grid | None,
        name: str,
        unit: str | None = None,
        levels: int = 1,
    ) -> Opened:
        """Cut the wanted channel and time point out of a stored array with these axes.

        ``x, y, z`` are kept, ``c`` and ``t`` are picked, axes of one element with any other name
        are dropped. `grid` is the file's, None where it has no spacing; then `unit` is what it
        says. `name` is what messages call the image.
        """
        lengths = dict(zip(names, source.shape, strict=False))
        chosen = self.settled(lengths.get("c", 1), (), name)
        view = chosen._view(source, names, name)
        axes = tuple(a for a in names if a in ("x", "y", "z"))
        stated = self.stated_spacing(len(axes), name)
        if stated is not None:
            base = grid or Grid(view.shape, stated, axes=axes, unit=self.unit_of(unit))
            grid = replace(base, spacing=stated)
        if grid is None:
            raise UnknownSpacingError(
                f"{name} does not say how far its voxels lie apart; pass voxel_spacing= "
                f"(--spacing), one number per axis in the order {', '.join(axes)}"
            )
        image = Image(view, grid.named(axes), name, channel=chosen.channel_name)
        return Opened(image, levels, lengths.get("c", 1), lengths.get("t", 1), chosen)

    def _view(self, source: ArraySource, names: Sequence[str], name: str) -> ArrayView:
        picks: list[int | slice] = []
        wanted = {"c": ("channel", int(self.channel or 0)), "t": ("time", self.time)}
        for axis, length in zip(names, source.shape, strict=True):
            if axis in ("x", "y", "z"):
                picks.append(slice(0, length))
                continue
            word, index = wanted.pop(axis, (f"index on axis {axis!r}", 0))
            if axis not in ("c", "t") and length != 1:
                raise InputError(
                    f"{name} has an axis {axis!r} of {length} elements; only x, y, z, c and t "
                    "are understood: pass axes= (--axes), the names of all stored axes"
                )
            _check_index(word, index, length, name)
            picks.append(index)
        for word, index in wanted.values():
            _check_index(word, index, 1, name)
        kept = sum(isinstance(p, slice) for p in picks)
        return ArrayView(source, tuple(picks), tuple(range(kept)))


def _axes(given: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(name).strip().lower() for name in given)
    space = tuple(sorted(name for name in names if name in ("x", "y", "z")))
    known = all(name in ("x", "y", "z", "c", "t") for name in names)
    if not known or len(set(names)) < len(names) or space not in (("x", "y"), ("x", "y", "z")):
        raise InputError(
            f"axes must name every stored axis once, of x, y, z, c and t, x and y among them, such "
            f"as 'zyx' or 'tczyx'; got {given!r}"
        )
    return names


def _check_index(word: str, index: int, length: int, name: str) -> None:
    if not 0 <= index < length:
        raise NoSuchPartError(f"{name} has no {word} {index}; it has {length}, counted from 0")


def _positive(values: float | Sequence[float]) -> bool:
    numbers = np.asarray(values, float)
    return bool(numbers.size and np.isfinite(numbers).all() and (numbers > 0).all())


def _per_axis(
    what: str, values: float | Sequence[float], ndim: int, name: str
) -> NDArray[np.float64]:
    if np.size(values) not in (1, ndim):
        said = ", ".join(f"{value:g}" for value in np.ravel(values))
        raise InputError(f"{what} needs one number or {ndim}, one per axis of {name}; got {said}")
    return np.broadcast_to(np.asarray(values, np.float64), (ndim,))


def _nearest(
    wanted: float | Sequence[float],
    spacings: Sequence[Sequence[float] | None],
    unit: str,
    name: str,
) -> int:
    stated = [s for s in spacings if s is not None]
    if len(stated) < len(spacings):
        raise InputError(f"{name} states no spacing to choose a level by; pass level= instead")
    target = _per_axis("spacing", wanted, len(stated[0]), name) / MICROMETERS_PER_UNIT[unit]
    distance = np.abs(np.log(np.asarray(stated) / target)).sum(axis=1)
    return int(np.argmin(distance))

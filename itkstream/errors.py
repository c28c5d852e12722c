"""The exceptions itkstream raises, in one tree.

Every message says what was expected, what came, and what to do. Each exception also descends
from the builtin that fits, so callers may catch either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

__all__ = [
    "AccessError",
    "BlockErrors",
    "BlockFailure",
    "BusyOutputError",
    "DeviceError",
    "ExistingOutputError",
    "InputError",
    "InterruptedRunError",
    "ItkstreamError",
    "MissingDataError",
    "NoSuchPartError",
    "OutputError",
    "PlanError",
    "RefusedInputError",
    "RegistrationError",
    "UnreadableDataError",
    "UnstatedChannelError",
    "WorkersError",
    "describe_region",
    "unknown_name",
]


def __dir__() -> list[str]:
    return __all__


_LISTED_BLOCKS = 10


class ItkstreamError(Exception):
    """Base of everything itkstream raises on purpose.

    Examples
    --------
    >>> try:
    ...     itkstream.open_image("nothing.n5")
    ... except itkstream.errors.ItkstreamError as error:
    ...     print(type(error).__name__)
    MissingDataError
    """


class InputError(ItkstreamError, ValueError):
    """An argument, an image or a file is not what the function can take.

    Examples
    --------
    >>> itkstream.Grid((4, 4), (1, -1))
    Traceback (most recent call last):
        ...
    itkstream.errors.InputError: ...
    """


class UnknownSpacingError(InputError):
    """A file does not state how far the voxels of an image lie apart, or in which unit."""


class NoSuchPartError(InputError):
    """An image has no level, channel or time point of that number or name.

    Examples
    --------
    >>> itkstream.open_image("examples/round1.ome.zarr", channel=7)
    Traceback (most recent call last):
        ...
    itkstream.errors.NoSuchPartError: ...
    """


class UnstatedChannelError(InputError):
    """An image has several channels, and neither its file nor the caller says which is meant.

    Examples
    --------
    >>> itkstream.open_image("examples/atlas/brain.ome.zarr")
    Traceback (most recent call last):
        ...
    itkstream.errors.UnstatedChannelError: ...
    """


class RefusedInputError(InputError):
    """The voxels show that an input is not what was said of it; no block of it is computed.

    Examples
    --------
    >>> issubclass(itkstream.errors.RefusedInputError, itkstream.errors.InputError)
    True
    """


class MissingDataError(ItkstreamError, FileNotFoundError):
    """A path or a dataset inside a container does not exist.

    Examples
    --------
    >>> itkstream.open_image("nothing.n5")
    Traceback (most recent call last):
        ...
    itkstream.errors.MissingDataError: ...
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AccessError(ItkstreamError, OSError):
    """A store cannot be reached or does not let us in.

    Examples
    --------
    >>> issubclass(itkstream.errors.AccessError, OSError)
    True
    """


class ExistingOutputError(ItkstreamError, FileExistsError):
    """An output is already there and overwriting it was not asked for.

    Examples
    --------
    >>> itkstream.register(moving, fixed, "registered")
    Traceback (most recent call last):
        ...
    itkstream.errors.ExistingOutputError: ...
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class PlanError(InputError, MemoryError):
    """A computation needs more memory than there is.

    Examples
    --------
    >>> itkstream.plan(fixed, moving, resources=itkstream.Resources(memory="10MB"))
    Traceback (most recent call last):
        ...
    itkstream.errors.PlanError: ...
    """


class RegistrationError(ItkstreamError, RuntimeError):
    """The images are valid but no trustworthy transform was found between them.

    Examples
    --------
    >>> issubclass(itkstream.errors.RegistrationError, RuntimeError)
    True
    """


class UnreadableDataError(ItkstreamError, OSError):
    """Stored voxels are there and cannot be read: cut short, corrupt, or of a broken disk.

    Examples
    --------
    >>> issubclass(itkstream.errors.UnreadableDataError, OSError)
    True
    """


class OutputError(ItkstreamError, OSError):
    """A result cannot be written, as where a disk is full.

    Examples
    --------
    >>> issubclass(itkstream.errors.OutputError, OSError)
    True
    """


class BusyOutputError(ExistingOutputError):
    """Another run is writing to the same place.

    Examples
    --------
    >>> issubclass(itkstream.errors.BusyOutputError, itkstream.errors.ExistingOutputError)
    True
    """


@dataclass(frozen=True)
class BlockFailure:
    """A block that could not be computed.

    Parameters
    ----------
    index : tuple of int
        Position in the block grid.
    region : tuple of (int, int)
        First voxel, and one past the last, per axis of the result.
    reason : str
        What went wrong.
    axes : tuple of str, optional
        Names of the axes, where they are known.

    Examples
    --------
    >>> print(itkstream.errors.BlockFailure((0, 1), ((0, 64), (64, 128)), "the disk is full"))
    the block at voxels 0-63 x 64-127: the disk is full
    """

    index: tuple[int, ...]
    region: tuple[tuple[int, int], ...]
    reason: str
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        region = [slice(*span) for span in self.region]
        return f"the block at {describe_region(region, self.axes)}: {self.reason}"


class BlockErrors(ItkstreamError, RuntimeError):
    """Some blocks of a computation failed; all others are done.

    Parameters
    ----------
    failures : sequence of BlockFailure
        Every block that failed.
    total : int
        Blocks in all.
    advice : str
        What to do.

    Examples
    --------
    >>> failure = itkstream.errors.BlockFailure((0, 1), ((0, 64), (64, 128)), "the disk is full")
    >>> print(itkstream.errors.BlockErrors([failure], 4))
    1 of 4 blocks failed, all others are done
      the block at voxels 0-63 x 64-127: the disk is full
    """

    def __init__(self, failures: Sequence[BlockFailure], total: int, advice: str = "") -> None:
        super().__init__(tuple(failures), total, advice)
        self.failures = tuple(failures)
        self.total = total
        self.advice = advice

    def placed(
        self, region: Callable[[tuple[int, ...]], Sequence[slice]], axes: tuple[str, ...]
    ) -> BlockErrors:
        """Say the places of blocks in an image of which the array computed has one element each.

        Parameters
        ----------
        region : callable
            Gives the voxels of the block with an index.
        axes : tuple of str
            Names of the image's axes.

        Returns
        -------
        BlockErrors
            The same failures, at these places.

        Examples
        --------
        >>> failure = itkstream.errors.BlockFailure((1,), ((1, 2),), "the disk is full")
        >>> errors = itkstream.errors.BlockErrors([failure], 4)
        >>> print(errors.placed(lambda index: [slice(64, 128)], ("x",)))
        1 of 4 blocks failed, all others are done
          the block at x 64-127: the disk is full
        """
        failures = [
            replace(f, region=tuple((s.start, s.stop) for s in region(f.index)), axes=axes)
            for f in self.failures
        ]
        return BlockErrors(failures, self.total, self.advice)

    def __str__(self) -> str:
        others = ", all others are done" if len(self.failures) < self.total else ""
        lines = [f"{len(self.failures)} of {self.total} blocks failed{others}"]
        lines += [f"  {failure}" for failure in self.failures[:_LISTED_BLOCKS]]
        further = len(self.failures) - _LISTED_BLOCKS
        if further > 0:
            lines.append(f"  and {further} more")
        return "\n".join([*lines, *filter(None, [self.advice])])


class DeviceError(ItkstreamError, RuntimeError):
    """A GPU stopped working: it was lost, or does not go with the software.

    Examples
    --------
    >>> issubclass(itkstream.errors.DeviceError, itkstream.errors.ItkstreamError)
    True
    """


class InterruptedRunError(KeyboardInterrupt):
    """A run was stopped from outside; it says how far it was. Not caught as an `Exception`.

    Examples
    --------
    >>> issubclass(itkstream.errors.InterruptedRunError, KeyboardInterrupt)
    True
    """


class WorkersError(ItkstreamError, RuntimeError):
    """Workers that should compute do not come, or are lost for good.

    Examples
    --------
    >>> issubclass(itkstream.errors.WorkersError, RuntimeError)
    True
    """


def describe_region(region: Sequence[slice], axes: Sequence[str] = ()) -> str:
    """Say which voxels a region holds, the last one included.

    Parameters
    ----------
    region : sequence of slice
        The voxels, per axis.
    axes : sequence of str, optional
        Names of the axes, where they are known.

    Returns
    -------
    str
        Such as ``x 0-63, y 64-127``.

    Examples
    --------
    >>> itkstream.errors.describe_region((slice(0, 64), slice(64, 128)), "xy")
    'x 0-63, y 64-127'
    >>> itkstream.errors.describe_region((slice(0, 64), slice(64, 128)))
    'voxels 0-63 x 64-127'
    """
    spans = [f"{span.start}-{span.stop - 1}" for span in region]
    if len(axes) == len(spans):
        return ", ".join(f"{axis} {span}" for axis, span in zip(axes, spans, strict=True))
    return f"voxels {' x '.join(spans)}"


def unknown_name(what: str, name: Any, known: Iterable[str]) -> InputError:
    """Make the error for a name that is not known, with the nearest one that is.

    Parameters
    ----------
    what : str
        The kind of thing that is named.
    name : object
        The unknown name.
    known : iterable of str
        All names that are known.

    Returns
    -------
    InputError
        To be raised.

    Examples
    --------
    >>> print(itkstream.errors.unknown_name("metric", "corelation", ["correlation", "mattes"]))
    unknown metric 'corelation'; did you mean 'correlation'? Known: correlation, mattes
    """
    names = list(known)
    near = get_close_matches(str(name), names, 1, 0.5)
    hint = f"did you mean {near[0]!r}? Known: " if near else "known: "
    return InputError(f"unknown {what} {name!r}; {hint}{', '.join(names)}")

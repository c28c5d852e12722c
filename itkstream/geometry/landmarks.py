"""Pairs of landmarks: the same places in two images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.errors import InputError
from itkstream.geometry.grid import axis_order, default_axes

__all__ = ["Landmarks"]


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Pairs of points: where the same places lie in the fixed and in the moving image.

    Parameters
    ----------
    fixed, moving : array_like, (m, n)
        Positions in µm, 2-D or 3-D, their coordinates in the order of `axes`.
    names : sequence of str, optional
        What each is called in reports; default ``"1"``, ``"2"`` and so on.
    sigma_um : float or sequence of float, optional
        Standard deviation of how exactly each was placed, in µm: a deformation trades it for
        what the images say. Default the largest voxel spacing of the two images.
    trust : sequence of float, optional
        Share, 0 to 1, of its weight that each is given; default 1.
    axes : sequence of str, optional
        Names of the coordinates, first to last, such as ``("x", "y", "z")``; default those of the
        fixed image's array, first to last.
    source : sequence of str, optional
        Files they were read from, for reports.

    Raises
    ------
    InputError
        Where shapes do not fit, or a number is not finite or out of range; the message names it.

    Examples
    --------
    >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
    >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
    >>> kept, held_out = marks.hold_out(0.25)
    >>> len(kept), len(held_out)
    (3, 1)
    """

    fixed: NDArray[np.float64]
    moving: NDArray[np.float64]
    names: tuple[str, ...] = ()
    sigma_um: NDArray[np.float64] | None = None
    trust: NDArray[np.float64] | None = None
    axes: tuple[str, ...] | None = None
    source: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fixed, moving = _points("fixed", self.fixed), _points("moving", self.moving)
        if fixed.shape != moving.shape:
            raise InputError(
                "landmarks are pairs, as many fixed as moving points of one dimension; got "
                f"shapes {fixed.shape} and {moving.shape}"
            )
        m, n = fixed.shape
        names = tuple(map(str, self.names)) or tuple(str(k + 1) for k in range(m))
        if len(names) != m:
            raise InputError(f"{m} landmarks need as many names; got {len(names)}")
        axes = None if self.axes is None else tuple(self.axes)
        if axes is not None and sorted(axes) != list(default_axes(n)):
            raise InputError(f"axes must be a permutation of {default_axes(n)}; got {axes}")
        sigma = None if self.sigma_um is None else _per_landmark("sigma_um", self.sigma_um, m)
        if sigma is not None and (sigma <= 0).any():
            raise InputError(f"sigma_um must be above 0 µm; got {sigma.min():g}")
        trust = None if self.trust is None else _per_landmark("trust", self.trust, m)
        if trust is not None and not ((trust >= 0) & (trust <= 1)).all():
            raise InputError(
                f"trust must lie between 0 and 1; got {trust.min():g}, {trust.max():g}"
            )
        known = {"fixed": fixed, "moving": moving, "names": names, "axes": axes}
        known |= {"sigma_um": sigma, "trust": trust, "source": tuple(map(str, self.source))}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.fixed)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        numbers = (self.fixed, self.moving, self.sigma_um, self.trust)
        lists = (None if values is None else values.tolist() for values in numbers)
        return (type(self).__name__, *lists, self.names, self.axes)

    @property
    def ndim(self) -> int:
        """Number of coordinates."""
        return self.fixed.shape[1]

    def select(self, which: ArrayLike) -> Landmarks:
        """Take some of the landmarks.

        Parameters
        ----------
        which : array_like
            Their numbers, or one truth value each.

        Returns
        -------
        Landmarks
            Those, in that order.

        Examples
        --------
        >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
        >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
        >>> len(marks.select([0, 2]))
        2
        """
        chosen = np.asarray(which)
        # An empty list has no type of its own.
        numbers = np.arange(len(self))[chosen if chosen.size else chosen.astype(np.intp)]
        return replace(
            self,
            fixed=self.fixed[numbers],
            moving=self.moving[numbers],
            names=tuple(self.names[k] for k in numbers),
            sigma_um=None if self.sigma_um is None else self.sigma_um[numbers],
            trust=None if self.trust is None else self.trust[numbers],
        )

    def reorder(self, axes: Sequence[str]) -> Landmarks:
        """The same landmarks with their coordinates in another order.

        Parameters
        ----------
        axes : sequence of str
            The wanted order; where the own one is not known, it is taken to be this.

        Returns
        -------
        Landmarks
            Landmarks whose `axes` are those given.

        Raises
        ------
        InputError
            Where these are other axes.

        Examples
        --------
        >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
        >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
        >>> marks.reorder("xyz").fixed[1]
        array([ 0., 10.,  0.])
        """
        wanted = tuple(axes)
        if len(wanted) != self.ndim:
            raise InputError(
                f"the landmarks are {self.ndim}-D and the images {len(wanted)}-D: give points of "
                f"{len(wanted)} coordinates"
            )
        order = list(axis_order(self.axes or wanted, wanted))
        return replace(self, fixed=self.fixed[:, order], moving=self.moving[:, order], axes=wanted)

    def placed_within(self, sigma_um: float) -> Landmarks:
        """State how exactly they were placed, where that is not known.

        Parameters
        ----------
        sigma_um : float
            Standard deviation, in µm.

        Returns
        -------
        Landmarks
            Itself where it is known.

        Examples
        --------
        >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
        >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
        >>> marks.placed_within(2.0).sigma_um
        array([2., 2., 2., 2.])
        """
        if self.sigma_um is not None:
            return self
        return replace(self, sigma_um=np.full(len(self), float(sigma_um)))

    def hold_out(self, fraction: float, seed: int = 0) -> tuple[Landmarks, Landmarks]:
        """Divide them by chance: some to fit by, the others to judge by.

        Parameters
        ----------
        fraction : float
            Share that is held out, at least 0 and below 1.
        seed : int
            Same landmarks, fraction and seed: same division.

        Returns
        -------
        (Landmarks, Landmarks)
            Those kept and those held out, in their order.

        Raises
        ------
        InputError
            Where the fraction is out of range.

        Examples
        --------
        >>> placed = np.array([[0, 0, 0], [0, 10, 0], [10, 0, 0], [0, 0, 10.0]])
        >>> marks = itkstream.Landmarks(placed, placed + 1, axes=("z", "y", "x"))
        >>> kept, held_out = marks.hold_out(0.5)
        >>> len(kept), len(held_out)
        (2, 2)
        """
        if not 0 <= fraction < 1:
            raise InputError(
                f"the share of landmarks held out must be at least 0 and below 1; got {fraction}"
            )
        count = round(fraction * len(self))
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        held = np.zeros(len(self), bool)
        held[chosen] = True
        return self.select(~held), self.select(held)


def _points(which: str, given: ArrayLike) -> NDArray[np.float64]:
    points = np.array(given, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise InputError(
            f"{which} landmarks are an array (m, 2) or (m, 3) of positions; got shape "
            f"{points.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise InputError(
            f"landmarks must be finite; {bad.size} {which} ones are not, the first is number "
            f"{bad[0] + 1}"
        )
    points.flags.writeable = False
    return points


def _per_landmark(name: str, given: ArrayLike, count: int) -> NDArray[np.float64]:
    values = np.array(given, np.float64)
    values = np.full(count, values) if values.ndim == 0 else values
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(f"{name} must be one finite number, or one per landmark, {count}")
    values.flags.writeable = False
    return values

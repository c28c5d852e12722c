"""Contract of a kind of step (parameters, a way to find, a price), and what kinds share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import attrs
import dask
import dask.array as da
import numpy as np
from attrs import evolve
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.blocks.graph import Result, map_blocks
from itkstream.blocks.inputs import block_grid
from itkstream.errors import InputError, unknown_name
from itkstream.estimate.affines import AffineTask, Search, prepare_affines, split_local_affines
from itkstream.geometry import (
    AffineTransform,
    Block,
    BlockGrid,
    CompositeTransform,
    Grid,
    Image,
    PiecewiseAffine,
    Transform,
    steps_of,
)
from itkstream.geometry.shown.html import card
from itkstream.io.storage.locations import Location
from itkstream.numerics.parameters import Settings, finite
from itkstream.numerics.sampling.fields import to_positions
from itkstream.numerics.sampling.mapping import map_on
from itkstream.registration.scene import BlockScene, Finding, Nothing, Scene, Start, State
from itkstream.registration.steps.prices import Pair, StepPrice

__all__ = ["Step", "TunedStep", "check_blocks", "check_names", "prepare_refined", "tuned"]


class Step(ABC):
    """A step of a registration: a frozen value that knows how to find, and what that costs.

    A kind that has a name and a title and finds runs everywhere: all else has a default. Kinds are
    listed in `itkstream.registration.steps.registry`.
    """

    __slots__ = ()

    name: ClassVar[str]
    """In files and plans, such as ``ransac-affine``."""

    title: ClassVar[str]
    """In reports and on the screen."""

    finds_field: ClassVar[bool] = False
    """A displacement field results, on disk: of the last step, it may be the run's own."""

    starts_anywhere: ClassVar[bool] = False
    """Images are brought together wherever they lie."""

    def __repr__(self) -> str:
        changed = (f"{name}={value!r}" for name, value in self._changed().items())
        return f"{type(self).__name__}({', '.join(changed)})"

    def _repr_html_(self) -> str:
        """All parameters, those that were changed first, as Jupyter shows them."""
        changed = self._changed()
        rest = {name: value for name, value in self.parameters().items() if name not in changed}
        rows = [(name, repr(value)) for name, value in {**changed, **rest}.items()]
        title = f"{type(self).__name__}: {len(changed)} of {len(rows)} parameters changed"
        return card(title, (), [("parameter", "value"), *rows])

    def _changed(self) -> dict[str, Any]:
        """The parameters that are not the default ones."""
        kind: Any = type(self)
        usual = {field.name: field.default for field in attrs.fields(kind)}
        return {k: v for k, v in self.parameters().items() if v != usual[k]}

    @property
    def takes_channels(self) -> bool:
        """Whether several channels may drive it, or the one that leads drives it alone."""
        return True

    @abstractmethod
    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        """Do the step on whole images.

        Parameters
        ----------
        scene : Scene
            Images and resources.
        state : State
            What the steps before have found.
        place : callable
            Names the store that a field may be written to; called before it is.

        Returns
        -------
        Finding or Nothing
            Nothing, with the reason, where a step that refines found nothing better.

        Raises
        ------
        RegistrationError
            Where nothing is known and nothing was found.
        """

    def restore(  # noqa: B027  most steps store nothing
        self,
        scene: Scene,
        state: State,
        place: Callable[[], Location],
        facts: Mapping[str, Any],
    ) -> None:
        """Complete what an earlier run stored, where files of it are missing or damaged.

        Parameters
        ----------
        scene, state, place
            As for `find`.
        facts : mapping
            Those of the earlier finding.
        """

    def price(self, pair: Pair) -> StepPrice:
        """Count blocks, tasks, memory, disk and work.

        Parameters
        ----------
        pair : Pair
            The images, without their voxels, and the settings of the run.

        Returns
        -------
        StepPrice
            Here, of comparing the coarse levels.
        """
        return StepPrice(self.name, once=pair.judged)

    def field_grid(self, pair: Pair) -> Grid:
        """Find the lattice of the field of a run whose last step it is.

        Parameters
        ----------
        pair : Pair
            The images, without their voxels, and the settings of the run.

        Returns
        -------
        Grid
            Here, half the resolution.
        """
        return pair.half

    @property
    def planned_block(self) -> int | None:
        """Voxels per axis of blocks that a plan may make smaller; None where there are none."""
        return None

    def limited(self, block: int) -> Self:
        """Make its blocks no larger.

        Parameters
        ----------
        block : int
            Voxels per axis.

        Returns
        -------
        Step
            Itself where they are not.
        """
        return self

    def works(self, moving: Image, start: Transform) -> Mapping[str, Callable[[Image], Any]]:
        """List what is done to a block in memory, to be timed.

        Parameters
        ----------
        moving : Image
            The moving image.
        start : Transform
            From fixed to moving points, roughly.

        Returns
        -------
        mapping of callable
            By the kind that `StepPrice` has; each takes a block of the fixed image.
        """
        return {}

    def prepare_transform(self, scene: BlockScene, start: Start) -> Delayed:
        """Prepare to do the step in every block.

        Parameters
        ----------
        scene : BlockScene
            Images and blocks.
        start : Transform, Delayed or None
            From fixed to moving points.

        Returns
        -------
        Delayed
            The transform after it.

        Raises
        ------
        InputError
            Where the step cannot be done so.
        """
        raise InputError(f"a {type(self).__name__} cannot be done block by block: use register")

    def prepare_positions(self, scene: BlockScene, start: Start) -> da.Array:
        """Prepare to do the step in every block, as the last one.

        Parameters
        ----------
        scene : BlockScene
            Images and blocks.
        start : Transform, Delayed or None
            From fixed to moving points.

        Returns
        -------
        dask.array.Array, fixed shape + (n,), float64
            Lazy. The moving position of every fixed voxel, in µm.
        """
        grid = scene.fixed.grid
        shared = {"grid": grid, "initial": self.prepare_transform(scene, start)}
        cores = block_grid(grid.shape, scene.blocks.blocksize, 0)
        return map_blocks(_positions, cores, None, shared, Result(np.float64, (grid.ndim,)))

    def parameters(self) -> dict[str, Any]:
        """List all parameters, as the step takes them.

        Returns
        -------
        dict
            By name; lengths that suit the image are None.
        """
        kind: Any = type(self)
        return {field.name: getattr(self, field.name) for field in attrs.fields(kind)}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Make a step from what a file says.

        Parameters
        ----------
        parameters : mapping
            Those that differ from the defaults, by name.

        Returns
        -------
        Step
            Checked.

        Raises
        ------
        InputError
            For an unknown name, with the nearest known one, or a value out of range.
        """
        kind: Any = cls
        check_names(f"parameter of {cls.name}", parameters, [f.name for f in attrs.fields(kind)])
        return cls(**parameters)

    def evolve(self, **changes: Any) -> Self:
        """Change some parameters.

        Parameters
        ----------
        **changes : object
            As the step takes them.

        Returns
        -------
        Step
            Of the same kind, checked.
        """
        return type(self)(**{**self.parameters(), **changes})


def check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known, and say the nearest one that is."""
    for name in given:
        if name not in known:
            raise unknown_name(what, name, known)


def _positions(_part: None, block: Block, *, grid: Grid, initial: Transform) -> NDArray[np.float64]:
    here = grid.crop(block.core)
    mapping = map_on(initial, here)
    moves = mapping.displacement
    if moves is None:
        return AffineTransform(mapping.affine).apply(here.positions())
    return to_positions(moves, here, mapping.affine)


S = TypeVar("S", bound=Settings)


class TunedStep(Step):
    """A step with the settings of a method for voxels of edge 1, and which lengths were given.

    Lengths that were given are in µm and stay as they are; others are scaled to an image.
    """

    __slots__ = ()

    settings: Any
    given_lengths: frozenset[str]

    def _changed(self) -> dict[str, Any]:
        return self._differing_from(type(self)())

    def _differing_from(self, other: Self) -> dict[str, Any]:
        """The parameters that another step of the same method has not, or not so."""
        usual = other.parameters()
        return {k: v for k, v in self.parameters().items() if k not in usual or v != usual[k]}

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


def check_blocks(blocksize: Any, overlap: Any, least: int, even: bool = False) -> None:
    """Refuse blocks that are too small, and overlaps of more than a quarter of them."""
    if not finite(blocksize) or blocksize % (2 if even else 1) or blocksize < least:
        kind = "an even" if even else "a whole"
        raise InputError(f"blocksize must be {kind} number >= {least}; got {blocksize!r}")
    if overlap is None:
        return
    if not finite(overlap) or overlap != int(overlap) or not 0 <= overlap <= blocksize // 4:
        raise InputError(
            f"overlap must be a whole number up to a quarter of the blocksize, or None; "
            f"got {overlap!r}"
        )


def prepare_refined(
    scene: BlockScene, start: Start, search: Search, blocks: BlockGrid | None = None
) -> Delayed:
    """Prepare the transform after an affine of every block; by default, of the scene's blocks."""
    blocks = blocks or scene.blocks
    packed = prepare_affines(AffineTask(scene.fixed, scene.moving, start, blocks, search))
    known = start if isinstance(start, Delayed) else dask.delayed(start, traverse=False)
    return dask.delayed(_before)(packed, blocks, scene.fixed.grid, known)


def _before(
    packed: NDArray[np.float64], blocks: BlockGrid, grid: Grid, known: Transform | None
) -> Transform:
    """The blocks' affines, and then what was known before."""
    local = PiecewiseAffine(split_local_affines(packed, grid.ndim)[0], blocks, grid)
    if known is None:
        return local
    return CompositeTransform((local, *steps_of(known)))

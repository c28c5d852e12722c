"""A search for a start between images that lie anyhow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from attrs import frozen

from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.errors import RegistrationError
from itkstream.geometry import AffineTransform, Image, Transform
from itkstream.io.storage.locations import Location
from itkstream.numerics.search.initial import Candidate, Found, SearchResult, find_start
from itkstream.numerics.search.settings import SearchSettings
from itkstream.numerics.search.witnesses import Witnesses
from itkstream.registration.scene import Finding, Nothing, Scene, State
from itkstream.registration.steps.matching import find_timed_points
from itkstream.registration.steps.prices import Pair, StepPrice
from itkstream.registration.steps.step import Step

__all__ = ["InitialSearch", "choose", "mirrors", "search_facts", "tell_rival", "witnesses_of"]

# Voxels of the level that is searched: nuclei of real pairs of 16 million voxels are told apart.
_VOXELS = 2e6
# Bytes of both levels blurred, of contexts, and of a matrix of scores.
_BYTES_PER_VOXEL, _SCORES_BYTES = 40.0, 150e6
# A search that finds nothing takes as long as key points in so many voxels: 17 s of a core for two
# stains of 1.2 million voxels; one that finds its start at once, 2 to 3 s.
_WORK = 1.5e8
# Runners-up that a report names.
_RUNNERS_UP = 3


@frozen(kw_only=True, repr=False)
class InitialSearch(SearchSettings, Step):
    """A search for a start between images that lie anyhow: turned, shifted, partly overlapping.

    On a level of at most 2 million voxels, starts are taken from key points whose contexts turn
    with them; where these do not convince, from centres of mass and axes of inertia, and from all
    turns on a coarse level with the best shift of each by masked correlation [1]_. Each is judged
    by the key points that match again where it puts them, against those that do by chance.

    Parameters
    ----------
    mirror : {'refuse', 'allow'}
        Whether the moving image may be a mirror image of the fixed one; where it is refused and
        fits better, the error says so.
    scales : sequence of float
        Sizes of the moving tissue relative to the fixed one, tried in turn until one convinces;
        each finds what is up to some 15 % larger or smaller.
    overlap : float
        Least share of the smaller image that lies in the other one, above 0 and at most 1, where
        all turns are tried on a coarse level.
    seed : int
        Of the robust fits.

    Raises
    ------
    InputError
        For a value out of range; the message names it.

    References
    ----------
    .. [1] D. Padfield, "Masked object registration in the Fourier domain", IEEE Transactions on
       Image Processing 21 (2012) 2706-2718, :doi:`10.1109/TIP.2011.2181402`.

    Examples
    --------
    >>> steps = [itkstream.InitialSearch(mirror="allow"), *itkstream.pipelines.DEFAULT_STEPS]
    >>> steps[0]
    InitialSearch(mirror='allow')
    """

    name: ClassVar[str] = "initial-search"
    title: ClassVar[str] = "initial search"
    starts_anywhere: ClassVar[bool] = True

    __repr__ = Step.__repr__

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        fixed, moving = scene.coarse
        required = state.transform is None
        if state.transform is not None:
            moving = scene.aligned(state.transform)
        known = [Candidate("as they lie", np.eye(fixed.ndim + 1))]
        result = self.search(witnesses_of(fixed, moving), known)
        facts = search_facts(result)
        try:
            best = choose(result, self)
        except RegistrationError as error:
            if required:
                raise
            return Nothing(str(error), facts)
        scene.reporter.note(f"{best.origin}: {best.evidence.said()}")
        tell_rival(scene, result)
        return Finding(AffineTransform(best.matrix), facts, required=required)

    def search(self, witnesses: Witnesses, known: Sequence[Candidate] = ()) -> SearchResult:
        """Look for a start.

        Parameters
        ----------
        witnesses : Witnesses
            Of the images.
        known : sequence of Candidate
            Those looked at first.

        Returns
        -------
        SearchResult
            All that were judged.
        """
        return find_start(witnesses, self, known)

    def price(self, pair: Pair) -> StepPrice:
        size = sum(min(grid.size, _VOXELS) for grid in pair.coarse)
        once = pair.held + size * _BYTES_PER_VOXEL + _SCORES_BYTES
        return StepPrice(self.name, once=max(once, pair.judged), work=_WORK, kind="points")

    def works(self, moving: Image, start: Transform) -> Mapping[str, Callable[[Image], Any]]:
        return {"points": find_timed_points}


def witnesses_of(fixed: Image, moving: Image) -> Witnesses:
    """The witnesses of a pair, on levels that are searched quickly."""
    levels = [read_coarse(i, factors_to_fit(i.grid, _VOXELS)) for i in (fixed, moving)]
    return Witnesses(levels[0], levels[1])


def choose(result: SearchResult, settings: SearchSettings) -> Found:
    """The start with most evidence, or a `RegistrationError` where there is none to speak of."""
    best, mirrored = result.best, result.mirror_ahead
    if mirrored is not None:
        if settings.mirror == "allow" and mirrored.evidence.outcome != "chance":
            return mirrored
        if mirrors(result):
            raise RegistrationError(
                "a mirrored copy of the moving image fits better than the image itself: "
                f"{mirrored.evidence.said()}. Check the order of its axes and slices; if one of "
                "the images is a mirror image, make InitialSearch(mirror='allow') the first step"
            )
    if best is None or best.evidence.outcome == "chance":
        said = f"; of the best, {best.evidence.said()}" if best else ""
        raise RegistrationError(
            f"none of {result.looked_at} starts in all directions aligns the images better than "
            f"chance{said}. Check the spacings and that both images show the same tissue; start "
            "from landmarks or an affine (initial_transform)"
        )
    return best


def mirrors(result: SearchResult) -> bool:
    """Whether a mirrored copy of the moving image fits, and clearly better than the image."""
    best, mirrored = result.best, result.mirror_ahead
    if mirrored is None:
        return False
    lost = best is None or best.evidence.outcome == "chance"
    outcome = mirrored.evidence.outcome
    return outcome == "convincing" or (outcome == "doubtful" and lost)


def tell_rival(scene: Scene, result: SearchResult) -> None:
    """Say that another start is nearly as good, where one is."""
    if result.rival is not None:
        scene.reporter.note(
            f"another start, from {result.rival.origin}, is turned otherwise and nearly as good: "
            f"{result.rival.evidence.said()}. Look at the aligned image before you use it"
        )


def search_facts(result: SearchResult) -> dict[str, Any]:
    """Facts of a search for a report."""
    best = result.best
    facts: dict[str, Any] = {"looked_at": result.looked_at, "mirrored": mirrors(result)}
    if best is None:
        return facts
    facts |= best.facts()
    others = [found for found in result.found if found is not best][:_RUNNERS_UP]
    facts["runners_up"] = [found.facts() for found in others]
    facts["tie"] = result.rival is not None
    return facts

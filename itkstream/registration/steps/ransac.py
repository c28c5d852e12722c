"""An affine of the whole images from their key points."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, Literal

import attrs
import numpy as np
from attrs import frozen
from dask.delayed import Delayed
from numpy.typing import NDArray

from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.affines import KeyPointSearch
from itkstream.estimate.misfits import (
    FAULTS,
    MIRRORED,
    Lost,
    Misfit,
    find_loss,
    find_misfits,
    usual_remedies,
)
from itkstream.geometry import AffineTransform, ChannelPair, Grid, Image, Transform
from itkstream.io.storage.locations import Location
from itkstream.numerics.evidence.one_sided import ImageContent, find_one_sided, find_shown
from itkstream.numerics.evidence.quality import local_correlation_in_tissue
from itkstream.numerics.matching.affine import (
    MAJORITY,
    MINORITY,
    PLENTY_OF_INLIERS,
    AffineSettings,
    Stages,
    find_elsewhere,
)
from itkstream.numerics.matching.keypoints import KnownPoints, sought_once
from itkstream.numerics.matching.ransac import Model, fit_affine
from itkstream.numerics.parameters import one_of
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.search.evidence import Evidence, Outcome
from itkstream.numerics.search.initial import SearchResult
from itkstream.numerics.search.outside import find_outside
from itkstream.numerics.search.witnesses import Settled, Witnesses
from itkstream.registration.scene import BlockScene, Finding, Nothing, Radii, Scene, Start, State
from itkstream.registration.steps.initial import (
    InitialSearch,
    choose,
    search_facts,
    tell_rival,
    witnesses_of,
)
from itkstream.registration.steps.matched import align_channel, choose_matching
from itkstream.registration.steps.matching import (
    COMMON_RADII,
    KEY_POINT_BYTES,
    MatchingStep,
    checked_radii,
    choose_radii,
)
from itkstream.registration.steps.prices import Pair, StepPrice, share_of
from itkstream.registration.steps.step import prepare_refined

__all__ = ["Attempt", "RansacAffine"]

Search = Literal["auto", "never"]


# Seconds beside those of its voxels, and the images above which it takes them, if no direction is
# searched for: that takes 5 to 25 s more, and is not known before.
_SECONDS, _SMALL_VOXELS = 3.0, 2.5e5

_LOOK = "Look at the aligned image before you use it"

# Where voxels agree so much better, other key points match than before, which it is fitted to too:
# an affine that was 4.5 voxels off, and then 3.2, ends 0.5 off.
_FAR_BETTER = 1.5

# Faults of a pair are tried with this threshold: half mended, contexts are less alike.
_TRIED_THRESHOLD = 0.5

# Why parameters of matching were chosen from the data, or not.
_TAKEN = "{} matches agreed by the usual, which is few; {} by these, as a sample told"
_LEFT = "{} matches agree by them; others, as a sample told, bring {} and do not agree better"

# Points of either kind that the report draws at most: as many as can be told apart.
_DRAWN = 300


@frozen
class _Pair:
    """The channels in which key points are matched, and the witnesses of what each finds.

    `contents` are what the images of the leading channel show.
    """

    channels: tuple[ChannelPair, ...]
    witnesses: tuple[Witnesses, ...]
    contents: tuple[ImageContent, ImageContent]

    @classmethod
    def of(cls, channels: tuple[ChannelPair, ...], scene: Scene) -> _Pair:
        """With the witnesses of each channel, in a scene."""
        witnesses = tuple(witnesses_of(pair.fixed, pair.moving) for pair in channels)
        lead = channels[0]
        return cls(
            channels, witnesses, (scene.content_of(lead.fixed), scene.content_of(lead.moving))
        )

    @property
    def fixed(self) -> Image:
        """The fixed image of the leading channel."""
        return self.channels[0].fixed

    @cached_property
    def fixed_points(self) -> KnownPoints:
        """Gives the key points of that image."""
        return sought_once(self.fixed, self.channels[0].sought[0])

    def off_ground(self) -> _Pair:
        """The pair in which no key points are sought on ground that is certainly empty."""
        channels = tuple(
            replace(pair, sought=(find_shown(pair.fixed), find_shown(pair.moving)))
            for pair in self.channels
        )
        return attrs.evolve(self, channels=channels)

    @property
    def empty_ground(self) -> dict[str, float]:
        """Shares of the leading channel's images in which no key points are sought, if any."""
        masks = zip(("fixed", "moving"), self.channels[0].sought, strict=True)
        return {
            which: round(1 - float(mask.read().mean()), 4)
            for which, mask in masks
            if mask is not None
        }

    def evidence(
        self, matrix: NDArray[np.float64], spent: NDArray[np.float64] | None = None
    ) -> Evidence:
        """Judge an affine by the channel that says most for it."""
        found = (witnesses.evidence(matrix, spent) for witnesses in self.witnesses)
        return max(found, key=lambda evidence: evidence.rank)

    def settled(self, matrix: NDArray[np.float64], model: Model) -> Iterator[Settled]:
        """Fit to all matches that support one another, channel by channel."""
        return chain.from_iterable(each.settled(matrix, model) for each in self.witnesses)

    def margin(self, matrix: NDArray[np.float64] | None) -> float:
        """Evidence for an affine, as a share of what convinces, all key points counted."""
        return 0.0 if matrix is None else self.evidence(matrix).margin

    def correlations(self, scene: Scene, *matrices: NDArray[np.float64] | None) -> list[float]:
        """Mean squared local correlation through each of several affines; 0 for none.

        In the tissue of the leading channel, off what only one image shows by any of them: where
        the outline of tissue lies on that of mounting medium, all voxels agree no less.
        """
        known = [None if m is None else AffineTransform(m) for m in matrices]
        tissue, voxels = scene.tissue, self.fixed.read()
        if scene.content == "common":
            masks = [find_one_sided(*self.contents, affine) for affine in known if affine]
            left_out = np.logical_or.reduce(masks)
            if left_out.any():
                tissue, voxels = tissue & ~left_out, np.where(left_out, np.nan, voxels)
        return [
            local_correlation_in_tissue(
                voxels, align_channel(self.channels[0], affine).moving.read(), tissue
            )
            if affine
            else 0.0
            for affine in known
        ]


@frozen
class _Affine:
    """An affine and the evidence for it, or why there is none."""

    matrix: NDArray[np.float64] | None = None
    evidence: Evidence | None = None
    facts: dict[str, Any] = attrs.field(factory=dict)
    radii: Radii | None = None
    reason: str = ""
    stages: Stages | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """Order of evidence: the greater is the better."""
        return self.evidence.rank if self.evidence else (0, -1.0)

    @property
    def outcome(self) -> Outcome:
        """Meaning of the evidence; where most matches agree, there is some."""
        if self.evidence is None:
            return "chance"
        found = self.evidence.outcome
        return "doubtful" if found == "chance" and self.share > MAJORITY else found

    @property
    def is_rough(self) -> bool:
        """Whether it convinces, but so few of its matches agree that it may be off still."""
        return self.share < MAJORITY and self.outcome == "convincing"

    @property
    def settled(self) -> int:
        """Number of matches that support one another, where it was fitted to these."""
        return int(self.facts.get("settled", {}).get("matches", 0))

    @property
    def share(self) -> float:
        """Share of the matches that agree; 0 where none were made."""
        matches = self.facts.get("matches", 0)
        return self.facts["inliers"] / matches if matches else 0.0

    def after(self, earlier: _Affine) -> _Affine:
        """With what an earlier matching found elsewhere, where that lies farther.

        Of aligned images only what overlaps is matched: parts in another order are not seen there.
        """
        return self.beside(earlier.facts.get("elsewhere"))

    def beside(self, place: dict[str, Any] | None) -> _Affine:
        """With another place at which parts fit, if it is farther than the one that is known."""
        known = self.facts.get("elsewhere")
        if place is None or (known is not None and known["apart_um"] >= place["apart_um"]):
            return self
        return attrs.evolve(self, facts=self.facts | {"elsewhere": place})

    def said(self) -> str:
        """Put into words what was found."""
        if self.matrix is None:
            return "key points as they lie give no affine"
        found = "an affine from the search"
        if "matches" in self.facts:
            found = (
                f"{self.facts['inliers']} of {self.facts['matches']} matches agree, median "
                f"residual {self.facts['median_residual']:.2f} µm"
            )
        if not self.settled:
            return found
        return f"{found}; fitted to {self.settled} that support one another"


@frozen(eq=False)
class Attempt:
    """The affine that key points and, where it was needed, a search found, or why there is none.

    `loss` is the stage at which too few key points were left of the images as they lie, and
    `misfits` are what may be changed, where no affine is borne out.
    """

    affine: _Affine
    facts: dict[str, Any]
    stages: dict[str, Any]
    loss: Lost | None = None
    misfits: tuple[Misfit, ...] = ()

    @property
    def has_fault(self) -> bool:
        """Whether a fault of the pair was found that bears out why it does not match."""
        return any(misfit.kind in FAULTS for misfit in self.misfits)

    @property
    def advice(self) -> str:
        """The loss and what to change, in sentences; empty where an affine is borne out."""
        lost = [] if self.loss is None else [f"Key points were lost: {self.loss}"]
        return ". ".join([*lost, *map(str, self.misfits)])


def _of_model(matrix: NDArray[np.float64], grid: Grid, model: Model) -> NDArray[np.float64]:
    """The transform of a model that is nearest to an affine in an image."""
    if model == "affine":
        return matrix
    corners = grid.corners()
    return fit_affine(corners, AffineTransform(matrix).apply(corners), model)


def _search_channels(search: InitialSearch, pair: _Pair) -> SearchResult:
    """Look for a start in the leading channel, then in each that follows until one convinces."""
    for witnesses in pair.witnesses:
        result = search.search(witnesses)
        if result.best is not None and result.best.evidence.outcome == "convincing":
            break
    return result


def _with_outside(pair: _Pair, found: _Affine) -> _Affine:
    """With what of the leading channel's images lies outside and fits elsewhere, if anything."""
    if found.matrix is None or found.evidence is None or found.outcome != "convincing":
        return found
    place = find_outside(pair.witnesses[0], found.matrix, found.evidence)
    return found.beside(attrs.asdict(place) if place else None)


def _drawn(points: NDArray[np.float64], agree: NDArray[np.bool_]) -> dict[str, Any]:
    """Some of the fixed image's matched points, for the report's picture; in µm."""
    kinds = {"agree": points[agree], "differ": points[~agree]}
    return {
        name: found[:: -(-len(found) // _DRAWN) or 1].round(2).tolist()
        for name, found in kinds.items()
    }


def _judge_start(scene: Scene, pair: _Pair) -> dict[str, Any]:
    """Judge the transform that is known, and say so where nothing bears it out."""
    evidence = pair.evidence(np.eye(pair.fixed.ndim + 1))
    if evidence.outcome == "chance":
        scene.reporter.note(
            f"what is known so far aligns the images no better than chance: {evidence.said()}. "
            "Check the initial transform, its direction (fixed to moving) and its unit"
        )
    return evidence.facts()


@frozen(kw_only=True, repr=False)
class RansacAffine(MatchingStep):
    """An affine from key points: blobs, matched by their contexts, fitted robustly.

    It is judged by evidence that it did not maximise: key points are matched again where it puts
    them, without those it was fitted to, and those that agree with their neighbours are counted,
    also under wrong alignments of the same images. The report holds the numbers and what they say,
    ``convincing``, ``doubtful`` (which is said) or ``chance`` (which is refused). Where less than a
    fifth of the matches agree, as of two individuals, it is then fitted to all that support one
    another, if voxels agree better so.

    Parameters
    ----------
    match_threshold : float, optional
        Least correlation of two contexts that match, up to 1; default 0.7. Where fewer than 200
        matches agree, what is left open of this, of `cc_radius` and of `radii` is chosen from the
        data, as `itkstream.advise` does; it is kept if more agree, and voxels too.
    cc_radius : int, optional
        Half width of the contexts, the windows around key points, in voxels; default 12.
    nspots : int
        Most key points per image.
    num_sigma_max : int
        Most blob widths searched.
    align_threshold : float, optional
        Greatest distance of a match from the affine, in µm; default 1.5 voxels.
    max_distance : float, optional
        Greatest distance of two points that match, in µm; default any.
    max_ambiguity : float, optional
        Greatest ratio of the second best correlation to the best; default any.
    model : {'affine', 'similarity', 'rigid', 'translation'}
        Which transforms are considered.
    seed : int
        Of the robust fit.
    contrast : {'same', 'inverted'}
        Contrast of the moving image: 'inverted' where it is dark where the fixed one is bright.
    radii : sequence of (float, float)
        Least and greatest radius of the blobs, in voxels; one pair after the other is tried until
        matches abound.
    search : {'auto', 'never'}
        Whether an `InitialSearch` looks for a start where whole images are matched, no transform is
        known yet, and the affine of their key points does not convince.

    Raises
    ------
    InputError
        For a value out of range; the message names it.

    Examples
    --------
    >>> itkstream.RansacAffine(radii=[(2, 6)], model="rigid")
    RansacAffine(model='rigid', radii=((2.0, 6.0),))
    """

    name: ClassVar[str] = "ransac-affine"
    title: ClassVar[str] = "affine"
    starts_anywhere: ClassVar[bool] = True

    radii: tuple[Radii, ...] = attrs.field(default=COMMON_RADII, converter=checked_radii)
    search: Search = attrs.field(default="auto", validator=one_of(Search))

    def find(self, scene: Scene, state: State, place: Callable[[], Location]) -> Finding | Nothing:
        required = state.transform is None
        attempt = self.attempt(scene, state.transform)
        found, facts = attempt.affine, attempt.facts
        if found.matrix is not None and found.outcome != "chance":
            return self._finding(scene, state, attempt)
        reason = found.reason or f"{found.said()}, no more than by chance"
        if required:
            raise RegistrationError(f"no affine found: {reason}. {attempt.advice}")
        return Nothing(reason, facts)

    def attempt(
        self, scene: Scene, start: Transform | None, earlier: Attempt | None = None
    ) -> Attempt:
        """Look for an affine, from a start that is known or anywhere.

        Parameters
        ----------
        scene : Scene
            The images.
        start : Transform or None
            From fixed to moving points.
        earlier : Attempt, optional
            At the same images, without a search, that did not convince: nothing of it is repeated.

        Returns
        -------
        Attempt
            What was found, or what was lost and what to change.
        """
        pair = _Pair.of(self.compared_channels(scene.coarse_channels(start)), scene)
        facts: dict[str, Any] = {}
        if start is not None:
            facts["start"] = _judge_start(scene, pair)
        still = np.eye(pair.fixed.ndim + 1)
        as_they_lie = earlier.affine if earlier else self._matched(pair, still)
        found = as_they_lie
        searched = start is None and self.search == "auto" and self.model != "translation"
        if searched and found.outcome != "convincing":
            found = self._searched(pair, found, scene, facts)
        if found.is_rough and found.facts and found.matrix is not None:
            again = self._matched(pair, found.matrix).after(found)
            found = max(again, found, key=lambda affine: affine.rank)
        found = self._settled(scene, pair, found, MINORITY)
        if found.is_rough and found.settled < PLENTY_OF_INLIERS and scene.content == "common":
            pair, found = self._off_ground(scene, pair, found, facts)
        found = self._chosen_anew(scene, pair, found)
        if start is None:
            found = _with_outside(pair, found)
        facts |= found.facts
        if found.evidence is not None:
            facts["evidence"] = found.evidence.facts()
        stages = attrs.asdict(as_they_lie.stages) if as_they_lie.stages else {}
        if found.outcome == "convincing" or start is not None:
            return Attempt(found, facts, stages)
        facts = as_they_lie.facts | facts
        loss = find_loss(as_they_lie.stages)
        if facts.get("search", {}).get("mirrored"):
            return Attempt(found, facts, stages, loss, (MIRRORED,))
        misfits = earlier.misfits if earlier else self._misfits(pair, loss)
        return Attempt(found, facts, stages, loss, misfits)

    def _misfits(self, pair: _Pair, loss: Lost) -> tuple[Misfit, ...]:
        """Changes to a pair of which no affine is borne out."""
        fixed, moving = pair.witnesses[0].fixed, pair.witnesses[0].moving
        choices = self.trial_settings(fixed.spacing)
        return find_misfits(fixed, moving, choices) or usual_remedies(loss)

    def trial_settings(self, spacing: Sequence[float]) -> list[AffineSettings]:
        """Settings with which faults of a pair are tried.

        Parameters
        ----------
        spacing : sequence of float
            Of the fixed image, in µm.

        Returns
        -------
        list of AffineSettings
            For blobs of all usual radii.

        Examples
        --------
        >>> len(itkstream.RansacAffine(radii=[(2, 6)]).trial_settings(fixed.spacing)) > 0
        True
        """
        step = self.evolve(match_threshold=min(self.threshold, _TRIED_THRESHOLD))
        return [step.settings_for(spacing, radii) for radii in COMMON_RADII]

    def _matched(self, pair: _Pair, start: NDArray[np.float64]) -> _Affine:
        """Match key points as a start puts them, and judge what is found."""
        channels = pair.channels
        if not np.array_equal(start, np.eye(len(start))):
            channels = tuple(align_channel(channel, AffineTransform(start)) for channel in channels)
        try:
            chosen = choose_radii(channels, self, self.radii, fixed_points=pair.fixed_points)
        except (InputError, RegistrationError) as error:
            return _Affine(reason=str(error))
        best = chosen.found.best
        estimate, pairs, stages = best.estimate, best.pairs, chosen.found.furthest
        facts: dict[str, Any] = {"chosen": chosen.facts}
        if estimate.matrix is None:
            return _Affine(facts=facts, reason=estimate.reason, stages=stages)
        matrix = start @ estimate.matrix
        facts |= {
            "matches": len(estimate.inliers),
            "inliers": int(estimate.inliers.sum()),
            "median_residual": float(np.median(estimate.residuals[estimate.inliers])),
            "drawn_points": _drawn(pairs.fixed_points, estimate.inliers),
        }
        if len(channels) > 1:
            facts["matches_per_channel"] = list(best.matches_per_channel)
            facts["inliers_per_channel"] = list(best.inliers_per_channel)
        elsewhere = find_elsewhere(pairs, estimate, best.settings.ransac)
        if elsewhere is not None:
            facts["elsewhere"] = attrs.asdict(elsewhere)
        evidence = pair.evidence(matrix, pairs.fixed_points[estimate.inliers])
        return _Affine(matrix, evidence, facts, chosen.radii, stages=stages)

    def _settled(self, scene: Scene, pair: _Pair, found: _Affine, most: float) -> _Affine:
        """Fit to all matches that support one another, where at most a share of all agrees closely.

        The first by which voxels agree better is kept: neither followed these. Of a head and a
        template, turned and shifted four times, affines are 1.2 instead of 3.3 voxels off. Of
        nuclei in medium, 20 to 58 matches laid their outline on that of the medium, 4 to 6 voxels
        off: 0.4 to 0.5 after it.
        """
        if not found.is_rough or found.share > most:
            return found
        assert found.matrix is not None
        for settled in pair.settled(found.matrix, self.model):
            reached = pair.correlations(scene, found.matrix, settled.matrix)
            if reached[1] > reached[0]:
                told = {"matches": settled.matches, "local_correlation": reached}
                facts = found.facts | {"settled": told}
                change = attrs.evolve(found, matrix=settled.matrix, facts=facts)
                is_far = reached[1] > _FAR_BETTER * reached[0]
                return self._settled(scene, pair, change, most) if is_far else change
        return found

    def _off_ground(
        self, scene: Scene, pair: _Pair, found: _Affine, facts: dict[str, Any]
    ) -> tuple[_Pair, _Affine]:
        """Seek key points off empty ground, where few of the matches agree; keep the better.

        That is the one by which voxels agree better, which neither followed. The pair is the one
        that is searched so, or as it was. Of a head and a template, turned and shifted four times,
        affines are 1.16 instead of 1.25 voxels off; labels of two people's lungs overlap by 0.865
        instead of 0.847 (`tests/benchmarks/off_ground.py`).
        """
        part = pair.off_ground()
        shares = part.empty_ground
        if not shares:
            return pair, found
        assert found.matrix is not None
        again = self._matched(part, found.matrix).after(found)
        if found.settled:
            again = self._settled(scene, part, again, MAJORITY)
        reached = pair.correlations(scene, found.matrix, again.matrix)
        better = again.outcome == "convincing" and reached[1] > reached[0]
        facts["empty_ground"] = {
            "share": shares,
            "inliers": [one.facts.get("inliers", 0) for one in (found, again)],
            "local_correlation": reached,
            "left_out": better,
        }
        return (part, again) if better else (pair, found)

    def _chosen_anew(self, scene: Scene, pair: _Pair, found: _Affine) -> _Affine:
        """Choose what is left open from the data, where few matches agree by the usual.

        That is kept by which more agree, of voxels too, and no fewer of key points matched again:
        neither was followed. Of two individuals these fall where others rise, and results are as
        often worse as better: labels of lungs at half resolution overlap by 0.797, not 0.816.
        """
        before = found.facts.get("inliers", 0)
        given = len(self.radii) == 1 and None not in (self.match_threshold, self.cc_radius)
        enough = before >= PLENTY_OF_INLIERS or found.settled
        if given or enough or found.outcome == "chance":
            return found
        assert found.matrix is not None
        try:
            choice = choose_matching(pair.channels, self, self.radii, found.matrix, False)
        except (InputError, RegistrationError):
            return found
        chosen = self.evolve(
            radii=(choice.radii,), cc_radius=choice.context, match_threshold=choice.threshold
        )
        again = chosen._matched(pair, found.matrix).after(found)
        after = again.facts.get("inliers", 0)
        reached = pair.correlations(scene, found.matrix, again.matrix)
        more = again.outcome == "convincing" and after > before and reached[1] > reached[0]
        better = more and pair.margin(again.matrix) >= pair.margin(found.matrix)
        told = {"sample": choice.facts, "inliers": [before, after], "local_correlation": reached}
        if not better and "inliers" not in found.facts:
            return found
        kept = again if better else found
        usual = found.facts.get("chosen", self.matching_facts(self.radii[0]))
        parameters = chosen.matching_facts(choice.radii) if better else usual
        why = _TAKEN if better else _LEFT
        record = usual | parameters | {"why": why.format(before, after), "anew": told}
        return attrs.evolve(kept, facts=kept.facts | {"chosen": record})

    def _searched(
        self, pair: _Pair, found: _Affine, scene: Scene, facts: dict[str, Any]
    ) -> _Affine:
        """Look for a start, and match key points from there, where that leads to more evidence."""
        scene.reporter.note(
            f"{found.said()}: searching all directions for a start, which may take half a minute"
        )
        search = InitialSearch(seed=self.seed)
        result = _search_channels(search, pair)
        facts["search"] = search_facts(result)
        try:
            start = choose(result, search)
        except RegistrationError as error:
            mirrored = result.mirrored and result.mirrored.evidence.outcome == "convincing"
            if found.outcome == "doubtful" and not mirrored:
                return found
            return _Affine(reason=f"{found.reason}; {error}" if found.reason else str(error))
        tell_rival(scene, result)
        matrix = _of_model(start.matrix, pair.fixed.grid, self.model)
        settled = _Affine(matrix, start.evidence)
        return max(self._matched(pair, matrix), settled, found, key=lambda affine: affine.rank)

    def _finding(self, scene: Scene, state: State, attempt: Attempt) -> Finding:
        """Make a finding of an affine that evidence bears out."""
        found, facts = attempt.affine, attempt.facts
        assert found.matrix is not None
        assert found.evidence is not None
        required = state.transform is None
        change = Finding(AffineTransform(found.matrix), facts, found.radii, required=required)
        facts["matrix"] = affine_part(change.transform(state)).matrix.tolist()
        scene.reporter.note(found.said())
        if found.outcome == "doubtful":
            doubt = ". ".join(filter(None, [found.evidence.said(), attempt.advice, _LOOK]))
            scene.reporter.note(f"this affine is doubtful: {doubt}")
        return change

    def prepare_transform(self, scene: BlockScene, start: Start) -> Delayed:
        settings = [self.settings_for(scene.fixed.spacing, radii) for radii in self.radii]
        scene = replace(scene, moving=self.compared(scene.moving))
        return prepare_refined(scene, start, KeyPointSearch(tuple(settings)))

    def price(self, pair: Pair) -> StepPrice:
        size = float(sum(grid.size for grid in pair.coarse))
        seconds = _SECONDS * share_of(pair.fixed, _SMALL_VOXELS)
        once = pair.held + size * KEY_POINT_BYTES + self.context_bytes(size, pair.fixed.ndim)
        once = max(once, InitialSearch().price(pair).once)
        once = max(once, pair.judged)
        return StepPrice(self.name, once=once, work=size, kind="points", seconds=seconds)

"""Verdict on a registration: good, to be looked at, or failed, with reasons and places.

It rests on evidence that no step maximised: the predicted error, correlation against its level by
chance, key points matched again, and how plausible the affine is. What a step made as large as it
could (its own correlation, the residuals of its own matches) proves nothing: T. Rohlfing, "Image
similarity and tissue overlaps as surrogates for image registration accuracy", IEEE Transactions on
Medical Imaging 31 (2012) 153-163, doi:10.1109/TMI.2011.2163944.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itkstream.geometry import Grid
from itkstream.numerics.evidence.contrast import SURE

__all__ = ["Evidence", "Outcome", "Region", "Verdict", "judge"]

Outcome: TypeAlias = Literal["good", "look", "failed"]

Span: TypeAlias = tuple[float, float]

# Shares of the tissue that both images show of which more than 5 voxels of error is predicted, or
# nothing: above the first a look is due; above the second it has failed.
_LOOK_SHARE, _FAILED_SHARE = 0.15, 0.7
# Tissue of which it is only foretold where it lies, as a share of all.
_MISSING_SHARE = 0.2
# So many times farther from the mean of wrong places than the best of these is clear of chance.
_CLEARLY = 2.0
# Of the tissue of the fixed image, at least so much must lie in the moving one. Where less than the
# second share of either lies in the other, other parts may be those that belong together.
_LEAST_OVERLAP, _LITTLE_OVERLAP = 0.05, 0.4
# No tissue shrinks or swells so much, nor shears, but in error of a spacing.
_STRETCH, _SHEAR_DEG = 1.3, 15.0
# Matches that agree on another affine, as a share of those of the first, and how far away it is, as
# a share of the image's longest side: more than tissue bends. Shuffled slabs had 0.097 to 0.15 at
# 0.31 to 0.97; of 125 pairs no good one had another affine farther away than 0.1.
_ELSEWHERE, _FAR_PART = 0.05, 0.15
_SHOWN_REGIONS = 10
# A share of a region of which nothing is known is said from here on.
_MENTIONED = 0.05


@dataclass(frozen=True)
class Region:
    """A place to look at.

    Parameters
    ----------
    box_voxels, box_um : tuple of (float, float)
        First and last place per axis of the fixed image, in voxels and in µm.
    share_of_tissue : float
        Of all tissue of the fixed image.
    what : str
        What was seen there.
    """

    box_voxels: tuple[Span, ...]
    box_um: tuple[Span, ...]
    share_of_tissue: float
    what: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """Grounds of a verdict.

    `fixed` is the lattice of the fixed image, `matrix` the affine part, `overlap` the shares of the
    tissue of both images that the other one shows, `steps` the facts of all steps, `error` those of
    the predicted error and of chance, or nothing.
    """

    fixed: Grid
    matrix: NDArray[np.float64]
    overlap: Mapping[str, float]
    steps: Sequence[Mapping[str, Any]]
    certificate: Mapping[str, Any]
    error: Mapping[str, Any]

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the tissue that both images show, by its predicted error; {} for none."""
        if not self.error:
            return {}
        seen = max(self.overlap["fixed"], 1e-6)
        doubtful = min(self.error["share_over_5_vox"] / seen, 1.0)
        beyond = self.error["share_unknown"] - (1 - self.overlap["fixed"])
        unknown = min(max(beyond, 0.0) / seen, 1 - doubtful)
        shares = {"sound": 1 - unknown - doubtful, "doubtful": doubtful, "unknown": unknown}
        return {name: round(share, 4) for name, share in shares.items()}

    @property
    def missing(self) -> list[Mapping[str, Any]]:
        """Regions of tissue without counterpart, which were left out."""
        found = [s["without_counterpart"] for s in self.steps if "without_counterpart" in s]
        return [region for facts in found if facts["left_out"] for region in facts["regions"]]

    @property
    def pulls(self) -> list[Mapping[str, Any]]:
        """Evidence for the pull of landmarks on the fields that were kept."""
        key = "landmark_evidence"
        return [s[key] for s in self.steps if key in s and "dropped" not in s]

    @property
    def affine_outcome(self) -> str:
        """Outcome of the evidence for the last affine that was kept; empty where there is none."""
        kept = [s["evidence"] for s in self.steps if "evidence" in s and "dropped" not in s]
        return kept[-1]["outcome"] if kept else ""

    @property
    def is_known_to_be_small(self) -> bool:
        """Nearly all error that is predicted is small, which decides whatever noise hides."""
        return bool(self.error) and 1 - self.shares["sound"] <= _LOOK_SHARE

    @property
    def reached(self) -> tuple[float, float, float] | None:
        """Local correlation as registered, and mean and most of wrong places; None if unknown."""
        chance = self.error.get("chance") or {}
        names = ("reached", "mean", "most")
        reached, mean, most = (chance.get(f"local_correlation_{name}") for name in names)
        if reached is None or mean is None or most is None:
            return None
        return reached, mean, most

    @property
    def is_told_by_descriptors(self) -> bool:
        """Whether what was kept last follows descriptors, and images surely tell more by it."""
        kept = [s for s in self.steps if "similarity" in s and "dropped" not in s]
        deviations: float = kept[-1].get("information_gain_deviations", 0.0) if kept else 0.0
        return deviations >= SURE

    @property
    def if_unknown(self) -> Outcome:
        """Outcome where little is known of the error.

        Wide bounds, and tissue that is much like itself elsewhere, do not prove a result wrong for
        whose affine key points speak; nor one for which less speaks, but the correlation too. That
        tells nothing of images in other stains: there the information does that they share.
        """
        if self.affine_outcome == "doubtful" and self.is_told_by_descriptors:
            return "look"
        if self.affine_outcome == "doubtful" and self.reached is not None:
            reached, mean, most = self.reached
            return "look" if reached - mean > _CLEARLY * (most - mean) else "failed"
        return "look" if self.affine_outcome == "convincing" else "failed"


@dataclass(frozen=True)
class Verdict:
    """Outcome of a registration, and why.

    Parameters
    ----------
    outcome : {'good', 'look', 'failed'}
        'good': nothing speaks against it; 'look': see the regions and reasons before you use it;
        'failed': do not use it.
    reasons : tuple of str
        Why, the gravest first; what it rests on, where it is good.
    regions : tuple of Region
        Where to look, the largest first.
    share_of_tissue : dict
        Shares of the tissue that both images show: 'sound', 'doubtful' (more than 5 voxels of
        error are predicted) and 'unknown'; empty where no error was predicted.
    overlap : dict
        Shares of the tissue of the 'fixed' and the 'moving' image that the other one shows.
    affine : dict
        'stretch' per principal axis, and whether it is 'mirrored'.

    Examples
    --------
    >>> registration.verdict.outcome
    'good'
    >>> registration.verdict.reasons
    ('predicted error: ... µm in the median of the tissue, ... µm at its 95th percentile',)
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    regions: tuple[Region, ...]
    share_of_tissue: dict[str, float]
    overlap: dict[str, float]
    affine: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """As registration.json holds it."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Verdict:
        """Read what registration.json holds.

        Parameters
        ----------
        facts : mapping
            As from `facts`, also after JSON.

        Returns
        -------
        Verdict
            The same.

        Examples
        --------
        >>> itkstream.Verdict.from_facts(registration.facts["verdict"]).outcome
        'good'
        """
        regions = tuple(
            Region(_spans(r["box_voxels"]), _spans(r["box_um"]), r["share_of_tissue"], r["what"])
            for r in facts["regions"]
        )
        known = {**facts, "regions": regions, "reasons": tuple(facts["reasons"])}
        return cls(**known)

    def describe(self) -> list[str]:
        """Say it in words.

        Returns
        -------
        list of str
            Lines: the outcome, the reasons, the regions.

        Examples
        --------
        >>> registration.verdict.describe()[0]
        'verdict: good'
        """
        lines = [f"verdict: {_MEANS[self.outcome]}"]
        lines += [f"  {reason}" for reason in self.reasons]
        for region in () if self.outcome == "good" else self.regions[:_SHOWN_REGIONS]:
            spans = ", ".join(f"{a:.0f}:{b:.0f}" for a, b in region.box_voxels)
            share = f"{_percent(region.share_of_tissue)} of the tissue"
            lines.append(f"  voxels {spans} ({share}): {region.what}")
        return lines


_MEANS: dict[Outcome, str] = {
    "good": "good",
    "look": "look at it before you use it",
    "failed": "failed, do not use it",
}


@dataclass(frozen=True)
class _Doubt:
    outcome: Outcome
    text: str


def judge(evidence: Evidence) -> Verdict:
    """Judge a registration by its evidence."""
    doubts = [
        *_doubts_of_images(evidence),
        *_doubts_of_error(evidence),
        *_doubts_of_content(evidence),
        *_doubts_of_starts(evidence),
        *_doubts_of_parts(evidence),
        *_doubts_of_landmarks(evidence),
        *_doubts_of_affine(evidence.matrix),
        *(_Doubt("look", text) for text in evidence.certificate["failures"]),
    ]
    failed = [d.text for d in doubts if d.outcome == "failed"]
    others = [d.text for d in doubts if d.outcome == "look"]
    outcome: Outcome = "failed" if failed else "look" if others else "good"
    linear = np.asarray(evidence.matrix)[:-1, :-1]
    return Verdict(
        outcome,
        (*((*failed, *others) or _praise(evidence)), *_weaknesses(evidence)),
        tuple(sorted(_regions(evidence), key=lambda region: -region.share_of_tissue)),
        evidence.shares,
        dict(evidence.overlap),
        {
            "stretch": np.linalg.svd(linear, compute_uv=False).tolist(),
            "mirrored": bool(np.linalg.det(linear) < 0),
        },
    )


def _praise(evidence: Evidence) -> tuple[str, ...]:
    """Grounds of a good verdict, in words."""
    error = evidence.error
    if not error:
        return ("nothing speaks against it; no error map was asked for",)
    return (
        f"predicted error: {error['median_um']:.2g} µm in the median of the tissue, "
        f"{error['p95_um']:.2g} µm at its 95th percentile",
    )


def _weaknesses(evidence: Evidence) -> Iterator[str]:
    """Landmarks that tell nothing, and a part that is known far less well than the rest, in words.

    Neither is a doubt of all.
    """
    yield from (told["left_out"] for told in evidence.pulls if told["outcome"] == "chance")
    part = evidence.error.get("weak_part")
    if part is None:
        return
    box = [slice(first, last) for first, last in part["box"]]
    where, share = "a part that hangs together", _percent(part["share"])
    if part["axis"] is not None:
        axis, third = part["axis"], part["third"]
        n, name = evidence.fixed.shape[axis], evidence.fixed.axes[axis]
        box = [slice(0, m) for m in evidence.fixed.shape]
        box[axis] = slice(round(third * n / 3), round((third + 1) * n / 3))
        where = f"the {('first', 'middle', 'last')[third]} third along {name}"
        share = f"{_percent(part['share_of_third'])} of its tissue ({share} of all)"
    else:
        share = f"it, {share} of all tissue"
    spans = ", ".join(f"{some.start}:{some.stop}" for some in box)
    yield (
        f"{where} (voxels {spans}) is less sure: error up to {part['median_um']:.2g} µm predicted "
        f"in {share}, {part['median_um'] / part['rest_um']:.1f} times that of the rest"
        f"{_key_points_in(evidence, box)}"
    )


def _key_points_in(evidence: Evidence, box: Sequence[slice]) -> str:
    """Share of the key points that agree in a box, in words; empty where it is not known."""
    drawn = [s["drawn_points"] for s in evidence.steps if "drawn_points" in s]
    points = np.array(drawn[-1]["agree"] if drawn else [], float)
    if not len(points):
        return ""
    index = evidence.fixed.to_index(points)
    first, last = (np.array([getattr(s, end) for s in box]) - 0.5 for end in ("start", "stop"))
    share = float(((index >= first) & (index < last)).all(axis=1).mean())
    return f"; {_percent(share)} of the key points that agree lie there"


def _percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _doubts_of_images(evidence: Evidence) -> Iterator[_Doubt]:
    """Images that have nothing in common, or are no more alike than unrelated ones."""
    seen = evidence.overlap["fixed"]
    if seen < _LEAST_OVERLAP:
        yield _Doubt(
            "failed", f"the moving image shows {_percent(seen)} of the fixed image's tissue"
        )
    elif max(evidence.overlap.values()) < _LITTLE_OVERLAP:
        yield _Doubt(
            "look",
            f"{_percent(seen)} of the fixed and {_percent(evidence.overlap['moving'])} of the "
            "moving image's tissue lie in the other: do these parts belong together?",
        )
    if evidence.reached is None or evidence.is_known_to_be_small:
        return
    reached, mean, most = evidence.reached
    if reached <= most:
        yield _Doubt(
            evidence.if_unknown,
            f"the images are no more alike than unrelated parts of them: local correlation "
            f"{reached:.2g}, at wrong places {mean:.2g}, {most:.2g} at most",
        )


def _doubts_of_error(evidence: Evidence) -> Iterator[_Doubt]:
    """Too much tissue that lies far off, or of which nothing is known."""
    shares = evidence.shares
    bad = 1 - shares["sound"] if shares else 0.0
    if bad > _LOOK_SHARE:
        yield _Doubt(
            evidence.if_unknown if bad > _FAILED_SHARE else "look",
            f"{_percent(shares['doubtful'])} of the tissue may be more than 5 voxels off, and of "
            f"{_percent(shares['unknown'])} nothing can be said",
        )


def _doubts_of_content(evidence: Evidence) -> Iterator[_Doubt]:
    """Much tissue that the moving image does not show, so that its place is a guess."""
    share = sum(region["share_of_tissue"] for region in evidence.missing)
    if share > _MISSING_SHARE:
        yield _Doubt(
            "look",
            f"{_percent(share)} of the tissue has no counterpart in the moving image: it moves "
            "with what surrounds it",
        )


def _doubts_of_starts(evidence: Evidence) -> Iterator[_Doubt]:
    """Affines of the run that little speaks for; the last one counts, unless the error decides."""
    if evidence.affine_outcome == "doubtful" and not evidence.is_known_to_be_small:
        yield _Doubt("look", "little more than chance speaks for the affine that was found")


def _doubts_of_parts(evidence: Evidence) -> Iterator[_Doubt]:
    """Parts of the images that fit each other elsewhere: what the affine puts outside, perhaps."""
    longest = float(np.multiply(evidence.fixed.shape, evidence.fixed.spacing).max())
    for step in evidence.steps:
        other = step.get("elsewhere")
        if not other or "dropped" in step:
            continue
        count, far = other["agree"], other["apart_um"] > _FAR_PART * longest
        if other["inliers"] > _ELSEWHERE * count and far:
            yield _Doubt(
                "look",
                f"parts of the images fit elsewhere: {other['inliers']} matches of key points "
                f"agree on another place, {other['apart_um']:.3g} µm from that of {count} others",
            )


def _doubts_of_landmarks(evidence: Evidence) -> Iterator[_Doubt]:
    """Landmarks that the images contradict, or that alone tell of a field."""
    for told in evidence.pulls:
        if told["left_out"] and told["outcome"] != "chance":
            yield _Doubt("look", told["left_out"])
        elif told["outcome"] == "unknown" and not told["images_tell"]:
            yield _Doubt(
                "look",
                "the deformation follows landmarks where the images show nothing, and too little "
                "tells whether they are right",
            )


def _doubts_of_affine(matrix: NDArray[np.float64]) -> Iterator[_Doubt]:
    """Mirrored, stretched and sheared as no tissue is."""
    linear = np.asarray(matrix)[:-1, :-1]
    if np.linalg.det(linear) < 0:
        yield _Doubt("look", "the affine mirrors the image")
    lengths = np.linalg.norm(linear, axis=0)
    for axis, length in enumerate(lengths):
        if not 1 / _STRETCH <= length <= _STRETCH:
            yield _Doubt(
                "look",
                f"axis {axis} is stretched {length:.2f} times: check the voxel spacing of both "
                "images along it",
            )
    cosines = (linear / lengths).T @ (linear / lengths)
    most = float(np.abs(np.triu(cosines, 1)).max())
    sheared = np.rad2deg(np.arcsin(min(most, 1.0)))
    if sheared > _SHEAR_DEG:
        yield _Doubt("look", f"the affine shears by {sheared:.0f} degrees")


def _regions(evidence: Evidence) -> Iterator[Region]:
    """Places of large or unknown error, and of tissue that the moving image does not show."""
    for region in evidence.error.get("regions", ()):
        yield _region(_spans(region["box"]), region["share"], _foretold(region), evidence.fixed)
    for region in evidence.missing:
        first, last = region["voxels"]
        box = _spans([(a, b + 1) for a, b in zip(first, last, strict=True)])
        yield _region(box, region["share_of_tissue"], "no counterpart", evidence.fixed)


def _foretold(region: Mapping[str, Any]) -> str:
    """Name what was foretold of a region; its known part alone would make it look better."""
    radius, unknown = region["median_um"], region.get("unknown", 0.0)
    if radius is None:
        return "nothing can be said"
    known = f"error up to {radius:.2g} µm predicted"
    if unknown < _MENTIONED:
        return known
    return f"nothing can be said of {_percent(unknown)} of it, in the rest {known}"


def _region(box: tuple[Span, ...], share: float, what: str, fixed: Grid) -> Region:
    """A region of some voxels, each from its first to its last edge."""
    ends = fixed.crop(tuple(slice(int(a), int(b)) for a, b in box)).outer_corners()
    spans = zip(ends.min(axis=0).tolist(), ends.max(axis=0).tolist(), strict=True)
    return Region(box, tuple(spans), share, what)


def _spans(box: Sequence[Sequence[float]]) -> tuple[Span, ...]:
    return tuple((start, stop) for start, stop in box)

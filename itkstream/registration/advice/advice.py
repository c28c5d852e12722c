"""Advice on a pair of images: found on coarse levels, and nothing is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.errors import InputError, RegistrationError
from itkstream.estimate.misfits import FAULTS, Lost, Misfit, name_stretches
from itkstream.geometry import AffineTransform, ChannelPair, Image, Transform, compose, default_axes
from itkstream.io.images.orientation import nearest_code
from itkstream.numerics.matching.affine import MAJORITY
from itkstream.numerics.sampling.mapping import affine_part
from itkstream.numerics.search.evidence import Outcome
from itkstream.numerics.search.lattice import angle_between
from itkstream.progress.reporters import Reporter
from itkstream.registration.advice.choices import (
    Setting,
    choose_blocks,
    choose_deformation,
    matching_settings,
)
from itkstream.registration.plan import Plan
from itkstream.registration.scene import Scene, make_level
from itkstream.registration.steps import Deformable, RansacAffine
from itkstream.registration.steps.initial import witnesses_of
from itkstream.registration.steps.matched import choose_matching
from itkstream.registration.steps.matching import COMMON_RADII
from itkstream.registration.steps.ransac import Attempt
from itkstream.workers import Resources

__all__ = ["Advice", "advise_briefly", "advise_pair"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Voxels of the level on which an affine is sought: that of the search.
_VOXELS = 2e6
# A start that is turned by so much is found by a search, which takes time.
_TURNED_DEG = 20.0

_WRONG_START = Misfit(
    "settings",
    "nothing bears out the transform to start from",
    "leave --initial out, or check its direction (fixed to moving) and its unit",
)

_SAYS: dict[Outcome, str] = {
    "convincing": "the images match",
    "doubtful": "little more than chance speaks for the affine that was found",
    "chance": "the images do not match",
}


@frozen(eq=False, repr=False)
class Advice:
    """Result of `itkstream.advise`; shown, it is the advice in words.

    Parameters
    ----------
    outcome : {'convincing', 'doubtful', 'chance'}
        Evidence for the affine that was found.
    evidence : str
        The same, in words; empty where there is no affine.
    stages : dict
        Key points that are left stage by stage, of the images as they lie, by the radii that led
        furthest: ``found`` and ``contexts`` of both images, ``matches``, ``inliers``.
    loss : Lost or None
        The stage that left too few of them.
    misfits : tuple of Misfit
        What to change about the pair, with the option of the command line.
    settings : tuple of Setting
        Parameters chosen from the data, with options and reasons; none where images do not match.

    Examples
    --------
    >>> advice.outcome, advice.misfits
    ('convincing', ())
    """

    outcome: Outcome
    evidence: str
    stages: dict[str, Any]
    loss: Lost | None
    misfits: tuple[Misfit, ...]
    settings: tuple[Setting, ...]

    @property
    def matches(self) -> bool:
        """Whether an affine is borne out, or at least not chance, and no fault was found."""
        return self.outcome != "chance" and not any(m.kind in FAULTS for m in self.misfits)

    @property
    def options(self) -> str:
        """Options for `itkstream register`."""
        return " ".join(setting.option for setting in self.settings if setting.option)

    def after(self, settings: tuple[Setting, ...]) -> Advice:
        """The same after settings by which the images were chosen.

        Parameters
        ----------
        settings : tuple of Setting
            Such as the channels.

        Returns
        -------
        Advice
            With these first.

        Examples
        --------
        >>> advice.after(()).settings == advice.settings
        True
        """
        return attrs.evolve(self, settings=(*settings, *self.settings))

    @property
    def facts(self) -> dict[str, Any]:
        """Everything in numbers, strings and lists."""
        return {
            "outcome": self.outcome,
            "evidence": self.evidence,
            "stages": self.stages,
            "loss": None if self.loss is None else attrs.asdict(self.loss),
            "misfits": [attrs.asdict(misfit) for misfit in self.misfits],
            "settings": [attrs.asdict(setting) for setting in self.settings],
            "options": self.options,
        }

    def describe(self) -> list[str]:
        """Put the advice into words.

        Returns
        -------
        list of str
            One line each.

        Examples
        --------
        >>> advice.describe()[0].startswith("the images match")
        True
        """
        lines = [f"{_SAYS[self.outcome]}{f': {self.evidence}' if self.evidence else ''}"]
        if self.loss is not None:
            lines.append(f"key points were lost: {self.loss}")
        lines += [f"change: {misfit}" for misfit in self.misfits]
        lines += [f"{s.name}: {_shown(s.value)} ({s.why})" for s in self.settings]
        return [*lines, f"options: {self.options}"] if self.options else lines

    def __repr__(self) -> str:
        return "\n".join(self.describe())


@frozen(eq=False)
class _Look:
    """An attempt at a scene, and the transform that it began with, if one was given."""

    attempt: Attempt
    start: Transform | None

    @property
    def matrix(self) -> Floats | None:
        """The affine from fixed to moving points, that of the start included."""
        found = self.attempt.affine.matrix
        if found is None or self.start is None:
            return found
        return affine_part(compose(AffineTransform(found), self.start)).matrix

    @property
    def as_they_lie(self) -> bool:
        """Whether most matches agree without a start; else `register` matches again from one."""
        stages = self.attempt.stages
        few = stages.get("inliers", 0) < MAJORITY * stages.get("matches", 1)
        return self.start is None and "search" not in self.attempt.facts and not few


def advise_pair(
    pair: tuple[Image, Image], plan: Plan, reporter: Reporter, initial: Transform | None = None
) -> Advice:
    """Look for an affine on coarse levels; choose parameters by it, or what to change.

    Where a transform to start from is given, key points are matched as it puts them.
    """
    resources = Resources()
    reporter.step("levels")
    voxels = plan.settings.coarse_voxels
    levels = [make_level(image, voxels, resources, reporter.blocks) for image in pair]
    scene = _small_scene((levels[0], levels[1]), resources, reporter)
    reporter.step("matching")
    look, misfits = _look(scene, initial)
    found = look.attempt.affine
    settings: tuple[Setting, ...] = ()
    if found.matrix is not None and found.outcome != "chance" and not look.attempt.has_fault:
        reporter.step("parameters")
        settings = _settings((levels[0], levels[1]), scene, look, plan)
    return _advice(look.attempt, misfits, settings)


def advise_briefly(levels: tuple[Image, Image], reporter: Reporter) -> Advice:
    """Look for what to change about two levels in memory, without a search and parameters."""
    scene = _small_scene(levels, Resources(), reporter)
    attempt = RansacAffine(search="never").attempt(scene, None)
    return _advice(attempt, attempt.misfits or _misfits(_Look(attempt, None), scene), ())


def _advice(attempt: Attempt, misfits: tuple[Misfit, ...], settings: tuple[Setting, ...]) -> Advice:
    found = attempt.affine
    said = "" if found.evidence is None else found.evidence.said()
    return Advice(found.outcome, said, attempt.stages, attempt.loss, misfits, settings)


def _small_scene(levels: tuple[Image, Image], resources: Resources, reporter: Reporter) -> Scene:
    """The images on the level on which an affine is sought."""
    small = [read_coarse(level, factors_to_fit(level.grid, _VOXELS)) for level in levels]
    fixed, moving = (Image(level.read(), level.grid, level.name) for level in small)
    makers = (lambda: fixed), (lambda: moving)
    return Scene(fixed, moving, _VOXELS, resources, reporter, makers)


def _look(scene: Scene, initial: Transform | None) -> tuple[_Look, tuple[Misfit, ...]]:
    """Look from a start that was given; where nothing bears it out, from none."""
    if initial is None:
        return _look_anywhere(scene)
    look = _Look(RansacAffine().attempt(scene, initial), initial)
    if look.matrix is not None and look.attempt.affine.outcome != "chance":
        return look, _misfits(look, scene)
    elsewhere, misfits = _look_anywhere(scene)
    return elsewhere, (_WRONG_START, *misfits)


def _look_anywhere(scene: Scene) -> tuple[_Look, tuple[Misfit, ...]]:
    """Make the attempt that leads to an affine, or to what is wrong; a search comes last."""
    attempt = RansacAffine(search="never").attempt(scene, None)
    if attempt.affine.outcome != "convincing" and not attempt.has_fault:
        searched = RansacAffine().attempt(scene, None, attempt)
        if searched.affine.outcome != "chance" or searched.has_fault:
            attempt = searched
    look = _Look(attempt, None)
    return look, (*attempt.misfits, *_misfits(look, scene))


def _misfits(look: _Look, scene: Scene) -> tuple[Misfit, ...]:
    """Faults of the pair, and turns, that the affine shows which was found."""
    matrix, (fixed, moving) = look.matrix, scene.coarse
    if matrix is None or look.attempt.affine.outcome == "chance" or look.attempt.has_fault:
        return ()
    choices = RansacAffine().trial_settings(fixed.spacing)
    stretched = name_stretches(fixed, moving, matrix[:-1, :-1], choices)
    return (*stretched, *(_turns(matrix, moving) if look.start is None else ()))


def _settings(
    levels: tuple[Image, Image], scene: Scene, look: _Look, plan: Plan
) -> tuple[Setting, ...]:
    """All parameters that are chosen from the data, of the affine first."""
    fixed, matrix = plan.pair.fixed, look.matrix
    assert matrix is not None
    shrink = tuple(round(a / b) for a, b in zip(levels[0].spacing, fixed.spacing, strict=True))
    shape = " x ".join(map(str, levels[0].shape))
    level = Setting(
        "level",
        shrink,
        "",
        f"the affine is found on {shape} voxels, at most {plan.settings.coarse_voxels:g}",
    )
    chosen: list[Setting] = [level]
    try:
        usual, pairs = RansacAffine(), [ChannelPair(*levels)]
        matching = choose_matching(pairs, usual, COMMON_RADII, matrix, look.as_they_lie)
    except (InputError, RegistrationError) as error:
        logger.info("no parameters of matching are chosen: %s", error)
    else:
        rest = _rest_um(scene, matrix) / float(np.median(fixed.spacing))
        deformable = next((s for s in plan.steps if isinstance(s, Deformable)), Deformable())
        blocks = choose_blocks(matching, rest, deformable, fixed.ndim)
        chosen += [*matching_settings(matching), *blocks]
    return (*chosen, *choose_deformation(*scene.coarse, matrix))


def _rest_um(scene: Scene, matrix: Floats) -> float:
    """The distance, of 95 % of the key points, from where the affine puts them."""
    for witness in witnesses_of(*scene.coarse):
        again = witness.rematch(witness.aligned(matrix))
        apart = np.linalg.norm(again.aligned_points - again.fixed_points, axis=1)[again.supported]
        if len(apart):
            return float(np.percentile(apart, 95))
    return 0.0


def _turns(matrix: Floats, moving: Image) -> Iterator[Misfit]:
    """A turn that a search finds, and the option that saves the search."""
    angle = angle_between(matrix, np.eye(len(matrix)))
    if angle < _TURNED_DEG:
        return
    code = _code(matrix, moving)
    saved = f"; --orient LPS {code} saves the search" if code not in ("", "LPS") else ""
    yield Misfit(
        "turned",
        f"the moving image is turned by {angle:.0f} degrees",
        f"register searches for the turn by itself{saved}",
    )


def _code(matrix: Floats, moving: Image) -> str:
    """Orientation of the moving image where the fixed one lies LPS, to quarter turns."""
    if moving.ndim != 3 or not np.array_equal(moving.grid.direction, np.eye(3)):
        return ""
    xyz = default_axes(3)
    linear = AffineTransform(matrix, moving.grid.axes).reorder(moving.grid.axes, xyz).matrix[:3, :3]
    return nearest_code(linear.T)


def _shown(value: Any) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)

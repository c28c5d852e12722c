"""Channels that nobody chose: singled out by the matches of an image's channels with the other's.

Every channel of the one image is matched with every channel of the other, on small levels. A pair
of them whose affine is borne out is what `register` can go by; of several, the one with most
matches that agree.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from typing import Any

from attrs import frozen

from itkstream.errors import InputError, RegistrationError, UnstatedChannelError
from itkstream.geometry import Image
from itkstream.io import ImageOptions, open_series
from itkstream.progress.reporters import Reporter
from itkstream.registration.advice.choices import Setting
from itkstream.registration.request import open_given
from itkstream.registration.scene import Scene, make_level
from itkstream.registration.steps import RansacAffine
from itkstream.workers import Resources

__all__ = ["ChosenPair", "choose_pair"]

# Voxels of the levels on which channels are matched, and pairs that are tried: a second each.
_VOXELS, _MOST = 1e6, 16


@frozen(eq=False)
class ChosenPair:
    """Two images, and the channels that were singled out of several."""

    images: tuple[Image, Image]
    settings: tuple[Setting, ...] = ()


@frozen
class _Match:
    """A channel of each image: key points of both, and matches that agree."""

    numbers: tuple[int, int]
    spots: tuple[int, int] = (0, 0)
    matches: int = 0
    inliers: int = 0
    convincing: bool = False

    @property
    def rank(self) -> tuple[bool, int]:
        """Greater is better."""
        return self.convincing, self.inliers


def choose_pair(
    fixed: Any,
    moving: Any,
    reporter: Reporter,
    options: tuple[ImageOptions, ImageOptions] = (ImageOptions(), ImageOptions()),
) -> ChosenPair:
    """Open two images; of channels that nobody chose, take those that match best.

    Parameters
    ----------
    fixed, moving : path, Image, array, or image of another library
        As `itkstream.register` takes them.
    reporter : Reporter
        Told which channels are taken, and why.
    options : (ImageOptions, ImageOptions)
        How paths are opened.

    Returns
    -------
    ChosenPair
        Both images; with a setting for each channel that was singled out.

    Raises
    ------
    UnstatedChannelError
        Where no pair of channels is borne out; it lists them with what was seen.
    """
    sides = [_candidates(given, said) for given, said in zip((fixed, moving), options, strict=True)]
    if all(len(side) == 1 for side in sides):
        return ChosenPair((sides[0][0], sides[1][0]))
    reporter.step("channels")
    found = _match_all(sides[0], sides[1], reporter)
    best = max(found, key=lambda match: match.rank, default=_Match((0, 0)))
    if not best.convincing:
        raise UnstatedChannelError(_refusal(sides, found))
    settings = tuple(
        _setting(which, sides[side], side, best, found)
        for side, which in enumerate(("fixed", "moving"))
        if len(sides[side]) > 1
    )
    for setting in settings:
        reporter.note(f"{setting.name} {setting.value}: {setting.why}")
    return ChosenPair((sides[0][best.numbers[0]], sides[1][best.numbers[1]]), settings)


def _candidates(given: Any, options: ImageOptions) -> list[Image]:
    """The image that is meant, or all its channels where nothing says which."""
    if not isinstance(given, (str, os.PathLike)):
        return [open_given(given)]
    try:
        return [options.open(given)]
    except UnstatedChannelError:
        said = {name: value for name, value in options.arguments.items() if name != "channel"}
        return open_series(given, "channel", **said)


def _match_all(fixed: Sequence[Image], moving: Sequence[Image], reporter: Reporter) -> list[_Match]:
    """Match each channel with each; only those of one number where that would take long."""
    numbers = list(product(range(len(fixed)), range(len(moving))))
    if len(numbers) > _MOST:
        numbers = [(k, k) for k in range(min(len(fixed), len(moving)))][:_MOST]
    levels = [
        {k: make_level(side[k], _VOXELS, Resources(), reporter.blocks) for k in {*wanted}}
        for side, wanted in zip((fixed, moving), zip(*numbers, strict=True), strict=True)
    ]
    return [_match(levels[0][a], levels[1][b], (a, b), reporter) for a, b in numbers]


def _match(fixed: Image, moving: Image, numbers: tuple[int, int], reporter: Reporter) -> _Match:
    makers = (lambda: fixed), (lambda: moving)
    scene = Scene(fixed, moving, _VOXELS, Resources(), reporter, makers)
    try:
        attempt = RansacAffine(search="never").attempt(scene, None)
    except (InputError, RegistrationError):
        return _Match(numbers)
    stages = attempt.stages
    return _Match(
        numbers,
        tuple(stages.get("found", (0, 0))),
        stages.get("matches", 0),
        stages.get("inliers", 0),
        attempt.affine.outcome == "convincing" and not attempt.has_fault,
    )


def _setting(
    which: str, channels: Sequence[Image], side: int, best: _Match, found: Sequence[_Match]
) -> Setting:
    """The channel of an image that was singled out, and what was seen of all."""
    number = best.numbers[side]
    why = "matches that agree, at best: " + _listed(channels, side, found)
    return Setting(f"{which} channel", number, f"--{which}-channel {number}", why)


def _listed(channels: Sequence[Image], side: int, found: Sequence[_Match]) -> str:
    """The channels of an image, each with its key points and its best match."""
    said = []
    for number, image in enumerate(channels):
        own = [match for match in found if match.numbers[side] == number]
        best = max(own, key=lambda match: match.rank, default=None)
        name = f"{number} {image.channel!r}" if image.channel else str(number)
        seen = (
            f"{best.inliers} of {best.matches}, {best.spots[side]} key points"
            if best
            else "not tried"
        )
        said.append(f"{name} ({seen})")
    return ", ".join(said)


def _refusal(sides: Sequence[Sequence[Image]], found: Sequence[_Match]) -> str:
    """The channels of both images, and that none is borne out by its matches."""
    listed = "; ".join(
        f"of the {which} image {_listed(channels, side, found)}"
        for side, (which, channels) in enumerate(zip(("fixed", "moving"), sides, strict=True))
        if len(channels) > 1
    )
    return (
        "nothing says which channel is meant, and matches single none out: "
        f"{listed}. Pass channel=, a number or a name"
    )

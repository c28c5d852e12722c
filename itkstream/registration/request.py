"""The request for a registration: images, masks and start opened, steps planned, all checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from itkstream.blocks.cropping import cropped_pair
from itkstream.blocks.inputs import as_pair, check_start
from itkstream.errors import InputError, UnknownSpacingError, UnstatedChannelError
from itkstream.estimate.landmarks import start_from, weigh_landmarks
from itkstream.geometry import (
    AffineTransform,
    ChannelPair,
    Image,
    Landmarks,
    Transform,
    array_axes,
    default_axes,
    joined_channels,
    with_axes,
)
from itkstream.io import open_image
from itkstream.io.images.locate import locate
from itkstream.io.images.plain.in_memory import as_image
from itkstream.io.images.units import itk_unit
from itkstream.io.landmarks.check import check_landmarks
from itkstream.io.landmarks.files import read_landmarks
from itkstream.io.storage.inputs import check_apart
from itkstream.io.transforms.files import read_transform
from itkstream.registration.channels import pair_channels
from itkstream.registration.plan import Plan, plan_steps
from itkstream.registration.scene import Marks
from itkstream.registration.steps import RegisterSettings, Step
from itkstream.workers import Resources

__all__ = [
    "Given",
    "Request",
    "open_given",
    "open_mask",
    "plan_request",
    "read_initial",
    "read_request",
]

# Trust below which a landmark is named, and how many are.
_DOUBTED = 0.5
_NAMED_DOUBTS = 10

# Arguments of `itkstream.open_image` that tell one image of a file from another.
_PARTS = ("channel", "time", "level", "crop")


@dataclass(frozen=True, eq=False)
class Given:
    """The inputs of a registration as a caller gives them: paths or values."""

    fixed: Any
    moving: Any
    initial_transform: Any = None
    fixed_mask: Any = None
    moving_mask: Any = None
    landmarks: Any = None
    hold_out: float = 0.0
    crop: Any = None

    @property
    def landmark_files(self) -> tuple[Any, ...]:
        """Paths of the files of landmarks: of pairs, or of the points of each image."""
        if self.landmarks is None or isinstance(self.landmarks, Landmarks):
            return ()
        one = isinstance(self.landmarks, (str, os.PathLike))
        return (self.landmarks,) if one else tuple(self.landmarks)

    def check_apart(self, out: str | os.PathLike[str]) -> None:
        """Refuse an `out` that is, holds or lies in one of them; nothing is opened."""
        check_apart(
            out,
            self.fixed,
            self.moving,
            self.initial_transform,
            self.fixed_mask,
            self.moving_mask,
            *self.landmark_files,
        )

    def described(self) -> dict[str, Any]:
        """Start, masks and files of landmarks as a report names them."""
        masks = {"fixed_mask": self.fixed_mask, "moving_mask": self.moving_mask}
        known = {name: _described(value) for name, value in masks.items() if value is not None}
        if self.initial_transform is not None:
            known["initial_transform"] = _described_start(self.initial_transform)
        if self.landmarks is None:
            return known
        files = self.landmark_files or getattr(self.landmarks, "source", ())
        return {**known, "landmark_files": [*map(str, files)], "hold_out": self.hold_out}


@dataclass(frozen=True, eq=False)
class Request:
    """A registration that can be run.

    `channels` are the images without their masks, in µm and with the same axes, channel by
    channel, the one the result is judged by first; `units` are those in which ITK reads each of
    them; `plan` holds the steps and settings; `notes` are for who runs it.
    """

    given: Given
    channels: tuple[ChannelPair, ...]
    units: tuple[str, str]
    masks: tuple[Any, Any]
    initial: Transform | None
    plan: Plan
    resources: Resources
    marks: Marks | None = None
    notes: tuple[str, ...] = ()

    @property
    def pair(self) -> tuple[Image, Image]:
        """The first channel of both images."""
        return self.channels[0].fixed, self.channels[0].moving

    @property
    def names(self) -> tuple[str, str]:
        """Names of both images; another channel of a file is another image."""
        return _name_of(self.pair[0]), _name_of(self.pair[1])


def read_request(
    given: Given,
    steps: tuple[Step, ...],
    settings: RegisterSettings,
    resources: Resources,
    out: str | os.PathLike[str],
) -> Request:
    """Open and check all that a registration into `out` needs, before anything is computed."""
    given.check_apart(out)
    resources.resolved().require_commands()
    opened = open_given(given.fixed), open_given(given.moving)
    _check_axes(opened)
    pair = as_pair(*opened, None, None)
    check_apart(out, pair)
    units = itk_unit(opened[0].grid), itk_unit(opened[1].grid)
    initial = read_initial(given.initial_transform, pair[0], units[0])
    if given.crop is not None:
        opened = cropped_pair(opened, given.crop, initial)
        pair = as_pair(*opened, None, None)
    marks = _read_marks(given, opened, pair)
    notes = _chosen_parts(opened)
    if marks is not None:
        notes = (*notes, *_doubts(marks))
        if initial is None:
            start = start_from(marks.fitted)
            initial, notes = start.transform, (*notes, str(start))
    matched = bool(steps) and steps[0].starts_anywhere
    # Key points bring images together wherever they lie.
    check_start(*pair, initial, anywhere=initial is None and matched)
    channels = pair_channels(pair)
    _check_steps(steps, len(channels))
    planned = plan_request(pair, steps, settings, resources).require_fit()
    if resources.cluster == "local" or resources.resolved().batch_system:
        resources = replace(resources, threads_per_worker=planned.threads)
    pair = channels[0].fixed, channels[0].moving
    masks = open_mask(given.fixed_mask, pair[0]), open_mask(given.moving_mask, pair[1])
    if given.crop is not None:
        _check_masks_of_crop(masks)
    return Request(given, channels, units, masks, initial, planned, resources, marks, notes)


def plan_request(
    pair: tuple[Image, Image],
    steps: tuple[Step, ...],
    settings: RegisterSettings,
    resources: Resources,
) -> Plan:
    """Plan the run: as large as is asked for, unless a memory says otherwise."""
    made = plan_steps(*pair, steps, settings, resources.resolved())
    if resources.memory is not None:
        return made.fitted()
    return made if resources.threads_per_worker else made.fewer_threads()


def open_given(image: Any) -> Image:
    """Take an image as a path, an array, the image of another library, or a list of channels."""
    if isinstance(image, (list, tuple)):
        return joined_channels([open_given(channel) for channel in image])
    return as_image(image)


def _check_steps(steps: Sequence[Step], channels: int) -> None:
    """Refuse steps that several channels cannot drive."""
    for step in steps:
        if channels > 1 and not step.takes_channels:
            raise InputError(
                f"{step} compares one channel, and {channels} were given: give one, or leave its "
                "method at 'lcc'"
            )


def open_mask(mask: Any, image: Image) -> Any:
    """Open a mask that is given by its path, on the axes of its image."""
    if not isinstance(mask, (str, os.PathLike)):
        return mask
    axes = image.recipe.get("axes")
    if axes and locate(mask).format == locate(image.recipe["path"]).format:
        # Who writes images without the names of their axes writes masks so; these have no channels.
        axes = [axis for axis in axes if axis in image.grid.axes]
    else:
        axes = None
    try:
        return open_image(mask, axes=axes)
    except UnstatedChannelError as error:
        raise UnstatedChannelError(
            f"the mask {mask} has several channels and a mask has one: save that as an image of "
            f"its own or, in Python, give open_image({str(mask)!r}, channel=0)"
        ) from error
    except UnknownSpacingError:
        # Where a file says nothing of its voxels, they cover the image, as those of an array do.
        voxels = open_image(mask, axes=axes, voxel_spacing=1.0, unit="micrometer")
        return voxels.reorder(image.grid.axes).data if voxels.ndim == image.ndim else voxels.data


def _check_masks_of_crop(masks: Sequence[Any]) -> None:
    """Refuse masks that say nothing of where they lie: they cover a whole image, not its part."""
    for which, mask in zip(("fixed", "moving"), masks, strict=True):
        array = mask[0] if isinstance(mask, tuple) and mask else mask
        if not isinstance(array, Image) and len(getattr(array, "shape", ())) > 1:
            raise InputError(
                f"the {which} mask covers the whole image, of which a part is registered: give it "
                "as an Image with its spacing, or crop it and the image before"
            )


def _check_axes(pair: tuple[Image, Image]) -> None:
    """All that is written names axes: a guess could turn every file over."""
    for which, image in zip(("fixed", "moving"), pair, strict=True):
        if not image.grid.axes_stated:
            raise InputError(
                f"nothing says which axis of the {which} image is x, so that what is written could "
                f"be transposed: give its grid axes={array_axes(image.ndim)} if its array is "
                f"indexed so, or axes={default_axes(image.ndim)}"
            )


def read_initial(given: Any, fixed: Image, unit: str) -> Transform | None:
    """Read the transform to start from, and check it against the fixed image; `unit` is ITK's."""
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        given = read_transform(given, fixed.grid.axes, unit=unit)
    axes = fixed.grid.axes
    transform = given if isinstance(given, Transform) else AffineTransform(np.asarray(given))
    if transform.ndim != fixed.ndim:
        raise InputError(
            f"the initial transform is {transform.ndim}-D and the images are {fixed.ndim}-D: give "
            f"a matrix of shape {(fixed.ndim + 1,) * 2}, or a transform of the same images"
        )
    if transform.axes not in (None, axes):
        raise InputError(
            f"the initial transform has points with the axes {transform.axes}, and the "
            f"fixed image has {axes}: read it with axes={axes}, or give its path"
        )
    return with_axes(transform, axes)


def _read_marks(
    given: Given, opened: tuple[Image, Image], pair: tuple[Image, Image]
) -> Marks | None:
    """Read landmarks, see whether they lie in the images, and hold some of them out."""
    if given.landmarks is None:
        return None
    landmarks, files = given.landmarks, given.landmark_files
    if files:
        if len(files) > 2 or not all(isinstance(f, (str, os.PathLike)) for f in files):
            raise InputError(
                "landmarks are Landmarks, or in one file of pairs or one per image; got "
                f"{len(files)} of {type(files[0]).__name__}"
            )
        landmarks = read_landmarks(*files, fixed=opened[0], moving=opened[1])
    if not len(landmarks):
        raise InputError("there are no landmarks: give at least one pair, or none of them at all")
    known = landmarks.reorder(pair[0].grid.axes)
    check_landmarks(known, pair[0].grid, pair[1].grid)
    known = known.placed_within(max(*pair[0].spacing, *pair[1].spacing))
    kept, held = known.hold_out(given.hold_out)
    if not len(kept):
        raise InputError(
            f"with {given.hold_out:g} of {len(known)} landmarks held out, none is left to go by"
        )
    return Marks(weigh_landmarks(kept), held)


def _chosen_parts(pair: tuple[Image, Image]) -> tuple[str, ...]:
    """Name channels and time points of images that have several: they may not have been said."""
    times = tuple(
        f"time point {image.recipe['time']} of the {which} image"
        for which, image in zip(("fixed", "moving"), pair, strict=True)
        if "time" in image.recipe
    )
    return times + tuple(
        f"channel {channel.recipe['channel']} of the {which} image"
        + (f", {channel.channel!r}" if channel.channel else "")
        for which, image in zip(("fixed", "moving"), pair, strict=True)
        for channel in image.channels
        if "channel" in channel.recipe
    )


def _doubts(marks: Marks) -> tuple[str, ...]:
    """Name the landmarks that contradict those around them."""
    trust = marks.fitted.trust
    if trust is None or trust.min() >= _DOUBTED:
        return ()
    doubted = [n for n, t in zip(marks.fitted.names, trust, strict=True) if t < _DOUBTED]
    shown = ", ".join(doubted[:_NAMED_DOUBTS])
    return (
        f"{len(doubted)} of {len(trust)} landmarks lie far from where those around them put them "
        f"and count for little: {shown}",
    )


def _described(given: Any) -> Any:
    """Paths and numbers as they are, other arguments by their kind."""
    if isinstance(given, (str, os.PathLike)):
        return str(given)
    if isinstance(given, (list, tuple)) and all(isinstance(v, (int, float)) for v in given):
        return list(given)
    return type(given).__name__


def _described_start(given: Any) -> Any:
    """A path, or the rows of a matrix; another transform by its kind."""
    if isinstance(given, AffineTransform):
        return given.matrix.tolist()
    if isinstance(given, (str, os.PathLike, Transform)):
        return _described(given)
    return np.asarray(given, float).tolist()


def _name_of(image: Image) -> str:
    said = (f"{k} {v}" for k, v in image.recipe.items() if k in _PARTS)
    return " ".join((image.name, *said))

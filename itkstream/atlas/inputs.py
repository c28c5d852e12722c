"""Inputs of a registration to an atlas, opened and checked together before anything is computed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from attrs import frozen

from itkstream.atlas.annotation import open_annotation
from itkstream.atlas.orientation import check_lie, start_from_lies, template_lie
from itkstream.atlas.regions import Names, read_names
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image
from itkstream.io import open_image, open_series

__all__ = ["Atlas", "open_atlas"]

Given = str | os.PathLike[str] | Image

# A level this little coarser than the template is as fine: spacings are rounded.
_AS_FINE = 1.05
# A brain so much finer than its template is said to take long for nothing.
_TOO_FINE = 2.0


@frozen(eq=False)
class Atlas:
    """A brain and an atlas: images, names of regions, and the start that follows from how both lie.

    `brain` is the channel that is registered, `channels` are all of them, on its voxels.
    """

    brain: Image
    channels: tuple[Image, ...]
    template: Image
    annotation: Image
    names: Names
    start: AffineTransform | None
    lies: tuple[str | None, str | None]

    @property
    def pair(self) -> tuple[Image, Image]:
        """The fixed and the moving image."""
        return self.brain, self.template

    @property
    def images(self) -> tuple[Image, ...]:
        """All that is read."""
        return (self.brain, *self.channels, self.template, self.annotation)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels, by number where they have none, or share one."""
        named = [channel.channel for channel in self.channels]
        if len(named) == 1:
            return (named[0] or "brain",)
        known = all(named) and len(set(named)) == len(named)
        return tuple(named) if known else tuple(f"channel_{k}" for k in range(len(named)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for whoever runs it."""
        pair = (self.brain.grid.in_unit("micrometer"), self.template.grid.in_unit("micrometer"))
        fine = min(pair[1].spacing) / max(pair[0].spacing)
        level = self.brain.recipe.get("level")
        said = [f"level {level} of the brain, which is as fine as the template"] if level else []
        if fine >= _TOO_FINE:
            said.append(
                f"the brain's voxels are {fine:.2g} times as fine as the template's, which shows "
                "nothing so small: a coarser level takes less time, and is taken where its file "
                "has one"
            )
        if self.start is not None and np.linalg.det(self.start.matrix[:3, :3]) < 0:
            said.append(
                f"by their orientations, {self.lies[0]} and {self.lies[1]}, the brain is a mirror "
                "image of the template, left and right exchanged: check the letters"
            )
        return tuple(said)

    def described(self) -> dict[str, Any]:
        """The inputs, as a note names them."""
        images = {"brain": self.brain, "template": self.template, "annotation": self.annotation}
        known: dict[str, Any] = {name: image.name for name, image in images.items()}
        return {
            **known,
            "orientation": self.lies[0],
            "template_orientation": self.lies[1],
            "channels": list(self.channel_names),
        }


def open_atlas(
    given: tuple[Given, Given, Given],
    lies: tuple[str | None, str | None],
    names: str | os.PathLike[str] | None,
) -> Atlas:
    """Open brain, template and annotation; raise an `InputError` for what does not fit together."""
    if lies[0] is None and lies[1] is not None:
        raise InputError(
            "an orientation of the template starts nothing without one of the brain: give both"
        )
    codes: tuple[str | None, str | None] = (None, None)
    if lies[0] is not None:
        codes = check_lie(lies[0], "brain"), template_lie(lies[1], lies[0])
    template = _open_volume(given[1], "template")
    brain = _as_fine_as(_open_volume(given[0], "brain"), template)
    start = None
    if codes[0] is not None and codes[1] is not None:
        start = start_from_lies(brain, template, codes[0], codes[1])
    annotation = open_annotation(given[2], template)
    known = {} if names is None else read_names(names)
    return Atlas(brain, _channels(brain), template, annotation, known, start, codes)


def _open_volume(given: Given, which: str) -> Image:
    image = given if isinstance(given, Image) else open_image(given)
    if image.ndim != 3:
        raise InputError(
            f"{image.name or which} has {image.ndim} axes, and a {which} has 3: a single section "
            "cannot be placed in an atlas here"
        )
    return image


def _as_fine_as(brain: Image, template: Image) -> Image:
    """The coarsest level of the file as fine as the template, if none was chosen."""
    recipe = dict(brain.recipe)
    if not recipe or {"level", "spacing", "voxel_spacing", "crop"} & recipe.keys():
        return brain
    path = recipe.pop("path")
    finest = _AS_FINE * min(template.grid.in_unit("micrometer").spacing)
    fitting = 0
    for number, level in enumerate(open_series(path, "level", **recipe)):
        if max(level.grid.in_unit("micrometer").spacing) <= finest:
            fitting = number
    return open_image(path, level=fitting, **recipe) if fitting else brain


def _channels(brain: Image) -> tuple[Image, ...]:
    """All channels of the brain's file, on its voxels."""
    recipe = dict(brain.recipe)
    if not recipe:
        return (brain,)
    path = recipe.pop("path")
    recipe.pop("channel", None)
    found = [c.reorder(brain.grid.axes) for c in open_series(path, "channel", **recipe)]
    alike = all(np.array_equal(c.shape, brain.shape) and c.dtype == brain.dtype for c in found)
    # What was done to the image after it was opened is not in its recipe.
    whole = tuple(replace(c, grid=brain.grid) for c in found) if alike else ()
    return whole or (brain,)

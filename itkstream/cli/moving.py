"""The image that a transform is applied to: one, or all its channels and time points."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, Literal

import click

from itkstream.cli.options import ALL, collect_image_options
from itkstream.cli.verb import wants_json

__all__ = ["open_moving"]


def open_moving(transform: str, path: str, options: dict[str, Any]) -> Any:
    """Open an image of a command on a transform: one, or all channels, all time points, or both."""
    from itkstream.apply.products import Series
    from itkstream.errors import UnstatedChannelError
    from itkstream.io import open_series
    from itkstream.registration.folder import registered_options

    axes: tuple[Literal["time", "channel"], ...] = ("time", "channel")
    every = [name for name in axes if options.get(name) == ALL]
    given = {name: None if value == ALL else value for name, value in options.items()}
    said = collect_image_options(given, start=registered_options(transform, path))
    try:
        if not every:
            return _told(said.open(path), options.get("channel"))
        said = replace(said, **dict.fromkeys(every, 0))
        numbers = [range(len(open_series(path, name, **said.arguments))) for name in every]
    except UnstatedChannelError as error:
        raise UnstatedChannelError(f"{error}, or all") from error
    images = tuple(
        replace(said, **dict(zip(every, place, strict=True))).open(path)
        for place in product(*numbers)
    )
    return Series(images, tuple((n[0], len(all_)) for n, all_ in zip(every, numbers, strict=True)))


def _told(image: Any, said: Any) -> Any:
    """An image, after its channel was told where it was not said."""
    if said is None and "channel" in image.recipe:
        named = f" ({image.channel})" if image.channel else ""
        click.echo(f"channel {image.recipe['channel']}{named} of {image.name}", err=wants_json())
    return image

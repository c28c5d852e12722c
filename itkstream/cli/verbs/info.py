"""The command that says how an image or a transform is understood."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import click

from itkstream.cli.options import (
    collect_image_options,
    name_options,
    with_image_options,
)
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell
from itkstream.errors import InputError, ItkstreamError

__all__ = ["info"]

_TRANSFORMS_ALONE = (".tfm", ".txt", ".mat", ".h5", ".toml")


@click.command(
    cls=Verb,
    examples=(
        "itkstream info round1.ome.zarr",
        "itkstream info registered",
        "itkstream info stack.tif --spacing 2,0.5,0.5 --png middle.png",
    ),
)
@click.argument("file")
@click.option("--png", metavar="FILE", help="Write the middle plane as a picture.")
@click.option("--overwrite", is_flag=True, help="Replace the picture.")
@with_image_options()
def info(file: str, png: str | None, overwrite: bool, **options: Any) -> None:
    """Say how an image, a transform or a registration folder is understood.

    Of an image: its axes, spacing, unit, origin and direction, levels, channels with their names,
    type and chunks. Voxels are read for the picture alone.
    """
    with importing():
        from itkstream.registration.folder import registered_verdict

    said = collect_image_options(options)
    verdict = registered_verdict(file) if _is_folder(file) else None
    if verdict is not None:
        told = _describe_transform(file)
        tell({"registration": told, "verdict": verdict.facts}, *_lines(told), *verdict.describe())
    elif PurePath(file).suffix in _TRANSFORMS_ALONE:
        told = _describe_transform(file)
        tell({"transform": told}, *_lines(told))
    else:
        _tell_of_image(file, said, png, overwrite)


def _is_folder(file: str) -> bool:
    from itkstream.io.storage.locations import Location
    from itkstream.registration.folder import REPORT

    return (Location.parse(file) / REPORT).exists()


def _tell_of_image(file: str, said: Any, png: str | None, overwrite: bool) -> None:
    """Print what is understood of an image; of a transform where it is none."""
    with importing():
        from itkstream.io.storage.inputs import check_apart
        from itkstream.io.storage.outputs import check_file
        from itkstream.overlay import save_plane

    if png is not None:
        check_apart(png, file)
        check_file(png, overwrite)
    try:
        levels, facts = _describe_image(file, said)
    except ItkstreamError as error:
        try:
            told = _describe_transform(file)
        except ItkstreamError:
            raise InputError(name_options(str(error))) from error
        tell({"transform": told}, *_lines(told))
        return
    if png is not None:
        facts["picture"] = str(save_plane(png, levels[-1]))
    tell({"image": facts}, *_lines(facts))


def _describe_image(file: str, said: Any) -> tuple[list[Any], dict[str, Any]]:
    """All levels of an image, and what is known of it."""
    import numpy as np
    from dask.utils import format_bytes

    from itkstream.io import open_series

    def every(axis: Any, **chosen: Any) -> list[Any]:
        known = {name: value for name, value in said.arguments.items() if name != axis}
        return open_series(file, axis, **known | chosen)

    channels = every("channel")
    number = channels[0].recipe.get("channel") if said.channel is None else said.channel
    chosen = {} if number is None else {"channel": number}
    levels, times = every("level", **chosen), every("time", **chosen)
    image = levels[said.level or 0]
    facts = {"file": image.name} | _describe_grid(image.grid)
    facts["type"] = str(image.dtype)
    facts["size"] = format_bytes(int(image.dtype.itemsize * np.prod(image.shape, dtype=float)))
    facts["chunks"] = "whole" if image.chunk_shape is None else [*image.chunk_shape]
    facts["levels"] = [[*level.shape] for level in levels]
    facts["channels"] = [channel.channel or str(n) for n, channel in enumerate(channels)]
    facts["time points"] = len(times)
    return levels, facts


def _describe_grid(grid: Any) -> dict[str, Any]:
    import numpy as np

    facts: dict[str, Any] = {
        "axes": "".join(grid.axes),
        "shape": [*grid.shape],
        "spacing": [*map(_short, grid.spacing)],
        "unit": grid.unit,
        "origin": [*map(_short, grid.origin)],
        "extent": [*map(_short, np.multiply(grid.shape, grid.spacing))],
    }
    direction = np.asarray(grid.direction)
    if not np.allclose(direction, np.eye(grid.ndim)):
        facts["direction"] = direction.round(6).tolist()
    return facts


def _describe_transform(file: str) -> dict[str, Any]:
    """The steps of a transform, from fixed to moving points."""
    import numpy as np

    from itkstream.geometry import AffineTransform, CompositeTransform
    from itkstream.io.transforms.files import read_transform

    found = read_transform(file)
    steps = found.transforms if isinstance(found, CompositeTransform) else (found,)
    told = []
    for step in steps:
        facts: dict[str, Any] = {"kind": type(step).__name__, "dimensions": step.ndim}
        if isinstance(step, AffineTransform):
            facts["matrix"] = np.asarray(step.matrix).round(6).tolist()
        elif hasattr(step, "grid"):
            facts |= _describe_grid(step.grid)
        told.append(facts)
    axes = "not stated" if found.axes is None else "".join(found.axes)
    return {
        "file": file,
        "maps": "fixed points to moving points, in µm",
        "axes": axes,
        "steps": told,
    }


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _lines(facts: dict[str, Any]) -> list[str]:
    """Facts as lines of words; what is nested is indented."""
    width = max(map(len, facts)) + 2
    lines = []
    for name, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for part in value:
                lines += ["", *(f"  {line}" for line in _lines(part))]
        else:
            lines.append(f"{name:{width}}{_in_words(value)}")
    return lines


def _in_words(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "; ".join(map(_in_words, value))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

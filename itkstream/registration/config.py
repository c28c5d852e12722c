"""Runs of `itkstream register` as YAML files: read, checked, and written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from attrs import Factory, field, frozen

from itkstream.errors import InputError, MissingDataError, unknown_name
from itkstream.io.images.options import ImageOptions
from itkstream.numerics.parameters import check
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import (
    DEFAULT_STEPS,
    Step,
    checked_steps,
    step_from,
    step_parameters,
)

__all__ = ["Config", "read_config", "to_yaml"]

_HEAD = """\
# What `itkstream register --config FILE` does; what is left out stays at its default.
# Lengths are in micrometers, areas (a and b of the smoothings) in their square; null suits the
# voxels. Radii of blobs and windows are in voxels. Files are named relative to this one. Below
# fixed and moving stands what is said of an image file: spacing (a number, or one per axis) and
# unit, axes (such as zyx), channel, time, level; what is null there is taken from the file.
"""


def _mask(name: str) -> Any:
    """A field for the name of an image, or intensities that do not count."""

    def convert(given: Any) -> str | tuple[float, ...] | None:
        if given is None or isinstance(given, str):
            return given
        numbers = given if isinstance(given, (list, tuple)) else [given]
        if not all(isinstance(v, (int, float)) for v in numbers):
            raise InputError(f"{name} must be the name of an image, or intensities; got {given!r}")
        return tuple(numbers)

    return field(default=None, converter=convert)


_file = check(lambda v: v is None or isinstance(v, str), "be the name of a file")


@frozen
class Config:
    """All that `itkstream.register` takes beside images and folder.

    A mask is the path of an image that is not 0 where voxels count, or intensities that do not
    count. `fixed` and `moving` say what the image files do not.
    """

    steps: tuple[Step, ...] = field(default=DEFAULT_STEPS, converter=checked_steps)
    settings: RegisterSettings = Factory(RegisterSettings)
    initial_transform: str | None = field(default=None, validator=_file)
    fixed_mask: str | tuple[float, ...] | None = _mask("fixed_mask")
    moving_mask: str | tuple[float, ...] | None = _mask("moving_mask")
    fixed: ImageOptions = Factory(ImageOptions)
    moving: ImageOptions = Factory(ImageOptions)


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a YAML file as `to_yaml` writes it, or with less in it.

    Names of files are made relative to where the process runs. A key or value that is not known is
    an `InputError` with the nearest key.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingDataError(f"there is no file {path}: itkstream config --defaults prints one")
    try:
        found = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    try:
        return _config({} if found is None else found, file.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def to_yaml(config: Config) -> str:
    """Write a run as text, with every parameter."""
    known = {
        **asdict(config.settings),
        **{name: _as_lists(getattr(config, name)) for name in _FILES},
        **{name: _as_lists(asdict(getattr(config, name))) for name in _IMAGES},
        "steps": [{step.name: step_parameters(step)} for step in config.steps],
    }
    return _HEAD + yaml.dump(known, Dumper=_Dumper, default_flow_style=None, width=100)


class _Dumper(yaml.SafeDumper):
    """Names below each other, in the order they came; lists of numbers on a line."""


_Dumper.add_representer(
    dict, lambda dumper, given: dumper.represent_mapping(_MAP, given.items(), flow_style=False)
)


class _Loader(yaml.SafeLoader):
    """Takes 2e7 for a number, as JSON and people do."""


_MAP = "tag:yaml.org,2002:map"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_FILES = ("initial_transform", "fixed_mask", "moving_mask")
_IMAGES = ("fixed", "moving")
_SAID = [f.name for f in fields(ImageOptions)]
_SETTINGS = [f.name for f in fields(RegisterSettings)]


def _config(found: Any, folder: Path) -> Config:
    known = _known("the file", "key", found, (*_SETTINGS, *_FILES, *_IMAGES, "steps"))
    settings = {name: known.pop(name) for name in _SETTINGS if name in known}
    parse = {
        **dict.fromkeys(_FILES, lambda name, given: _near(folder, given)),
        **dict.fromkeys(_IMAGES, _image),
        "steps": lambda name, given: _steps(given),
    }
    given = {name: parse[name](name, value) for name, value in known.items()}
    return Config(settings=RegisterSettings(**settings), **given)


def _image(which: str, given: Any) -> ImageOptions:
    """Read the options of an image; those left empty are not given."""
    said = _known(which, f"key of {which}", {} if given is None else given, _SAID)
    try:
        return ImageOptions(**{name: value for name, value in said.items() if value is not None})
    except InputError as error:
        raise InputError(f"{which}: {error}") from error


def _steps(given: Any) -> tuple[Step, ...]:
    if given is None:
        return DEFAULT_STEPS
    if not isinstance(given, list):
        raise InputError(f"steps must be a list; got {given!r}: begin each line with a dash")
    return tuple(_step(number, step) for number, step in enumerate(given, 1))


def _step(number: int, given: Any) -> Step:
    """A step from its name, or from its name and its parameters."""
    entry = {given: None} if isinstance(given, str) else _mapping(f"step {number}", given)
    if len(entry) != 1:
        raise InputError(
            f"step {number} must have one name, with its parameters indented below it; got "
            f"{', '.join(map(str, entry))}"
        )
    ((name, parameters),) = entry.items()
    try:
        return step_from(name, _mapping(f"{name}", parameters or {}))
    except InputError as error:
        raise InputError(f"step {number}: {error}") from error


def _known(where: str, what: str, given: Any, known: Iterable[str]) -> dict[str, Any]:
    """A mapping with known keys only."""
    for name in _mapping(where, given):
        if name not in known:
            raise unknown_name(what, name, known)
    return dict(given)


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"{what} must hold names and values (name: value); got {given!r}")
    return given


def _near(folder: Path, given: Any) -> Any:
    local = isinstance(given, str) and "://" not in given
    return str(folder / given) if local else given


def _as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_lists(v) for name, v in value.items()}
    return list(value) if isinstance(value, tuple) else value

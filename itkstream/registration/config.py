"""Runs of `itkstream register` as YAML files: read, checked, and written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from itkstream.errors import InputError, MissingDataError, unknown_name
from itkstream.io.images.options import ImageOptions
from itkstream.registration.steps import (
    DEFAULT_STEPS,
    RegisterSettings,
    Step,
    checked_steps,
    step_from,
    step_name,
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


@dataclass(frozen=True)
class Config:
    """All that `itkstream.register` takes beside images and folder.

    Parameters
    ----------
    steps : tuple of Step
        What is done.
    settings : RegisterSettings
        What holds for the whole run.
    initial_transform : path, optional
        A transform file to start from.
    fixed_mask, moving_mask : path or tuple of float, optional
        An image that is not 0 where voxels count, or intensities that do not count.
    fixed, moving : ImageOptions
        What is said of each image file.

    Raises
    ------
    InputError
        For a value of another kind.
    """

    steps: tuple[Step, ...] = DEFAULT_STEPS
    settings: RegisterSettings = field(default_factory=RegisterSettings)
    initial_transform: str | None = None
    fixed_mask: str | tuple[float, ...] | None = None
    moving_mask: str | tuple[float, ...] | None = None
    fixed: ImageOptions = field(default_factory=ImageOptions)
    moving: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checked_steps(self.steps))
        if not isinstance(self.initial_transform, (str, type(None))):
            raise InputError(
                f"initial_transform must be the name of a file; got {self.initial_transform!r}"
            )
        for name in ("fixed_mask", "moving_mask"):
            object.__setattr__(self, name, _mask(name, getattr(self, name)))


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a YAML file.

    Parameters
    ----------
    path : path
        As `to_yaml` writes it, or with less in it.

    Returns
    -------
    Config
        Checked; names of files made relative to where the process runs.

    Raises
    ------
    MissingDataError
        Where there is no such file.
    InputError
        For a key or value that is not known; the message names the nearest key.
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
    """A run as text, with every parameter.

    Parameters
    ----------
    config : Config
        The run; ``Config()`` for the defaults.

    Returns
    -------
    str
        YAML that `read_config` turns into an equal value.
    """
    known = {
        **asdict(config.settings),
        **{name: _plain(getattr(config, name)) for name in _FILES},
        **{name: _said(getattr(config, name)) for name in _IMAGES},
        "steps": [{step_name(step): step_parameters(step)} for step in config.steps],
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
_SAID = tuple(f.name for f in fields(ImageOptions))
_SETTINGS = tuple(f.name for f in fields(RegisterSettings))


def _config(found: Any, folder: Path) -> Config:
    known = (*_SETTINGS, *_FILES, *_IMAGES, "steps")
    for name in _mapping("the file", found):
        if name not in known:
            raise unknown_name("key", name, known)
    given: dict[str, Any] = {
        **{name: _near(folder, found[name]) for name in _FILES if name in found},
        **{name: _image(name, found[name]) for name in _IMAGES if name in found},
    }
    settings = {name: found[name] for name in _SETTINGS if name in found}
    steps = found.get("steps", None)
    if steps is None:
        return Config(settings=RegisterSettings(**settings), **given)
    if not isinstance(steps, list):
        raise InputError(f"steps must be a list; got {steps!r}: begin each line with a dash")
    return Config(
        tuple(_step(number, step) for number, step in enumerate(steps, 1)),
        RegisterSettings(**settings),
        **given,
    )


def _image(which: str, given: Any) -> ImageOptions:
    """What is said of an image; what is left empty was not said."""
    said = _mapping(which, {} if given is None else given)
    for name in said:
        if name not in _SAID:
            raise unknown_name(f"key of {which}", name, _SAID)
    try:
        return ImageOptions(**{name: value for name, value in said.items() if value is not None})
    except InputError as error:
        raise InputError(f"{which}: {error}") from error


def _said(options: ImageOptions) -> dict[str, Any]:
    return {name: _plain(getattr(options, name)) for name in _SAID}


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


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"{what} must hold names and values (name: value); got {given!r}")
    return given


def _near(folder: Path, given: Any) -> Any:
    local = isinstance(given, str) and "://" not in given
    return str(folder / given) if local else given


def _mask(name: str, given: Any) -> str | tuple[float, ...] | None:
    if given is None or isinstance(given, str):
        return given
    numbers = given if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(v, (int, float)) for v in numbers):
        raise InputError(f"{name} must be the name of an image, or intensities; got {given!r}")
    return tuple(numbers)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

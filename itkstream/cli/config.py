"""Runs of `itkstream register` as YAML files: read, checked, and written."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from attrs import Converter, Factory, field, frozen

from itkstream.errors import InputError, MissingDataError
from itkstream.geometry import AffineTransform, Image
from itkstream.io.images.options import ImageOptions
from itkstream.io.images.orientation import (
    check_orientation,
    orientation_transform,
    stated_orientation,
)
from itkstream.io.landmarks.options import LandmarkOptions
from itkstream.numerics.gpu.engine import Engine, check_engine
from itkstream.registration.settings import RegisterSettings
from itkstream.registration.steps import (
    DEFAULT_STEPS,
    Step,
    checked_steps,
    step_from,
    step_parameters,
)
from itkstream.registration.steps.step import check_names

__all__ = ["Config", "read_config", "read_steps", "to_yaml"]

_HEAD = """\
# What `itkstream register --config FILE` does; what is left out stays at its default.
# Lengths are in micrometers, areas (a and b of the smoothings) in their square; null suits the
# voxels. Radii of blobs and windows are in voxels. Files are named relative to this one. Below
# fixed and moving stands what is said of an image file: spacing (a number, or one per axis) and
# unit, axes (such as zyx), channel, time, level; what is null there is taken from the file. Files
# of landmarks are one of pairs, or one per image; sigma_um says how exactly they were placed.
# initial_transform is a file, or the rows of a matrix in the order of the fixed image's axes.
# orient: [LIP, RAS] says how the fixed and the moving image lie: where x, y and z lead.
# engine (cpu, gpu or auto) computes blocks where --engine does not say otherwise.
"""
_FILES = ("initial_transform", "fixed_mask", "moving_mask")
_IMAGES = ("fixed", "moving")
_REST = ("orient", "engine", "steps")
_OPTIONS = [f.name for f in dataclasses.fields(ImageOptions)]
_LANDMARKS = [f.name for f in dataclasses.fields(LandmarkOptions)]
_SETTINGS = [f.name for f in dataclasses.fields(RegisterSettings)]

_FILE_SAYS = "file"


def _start(given: Any) -> str | AffineTransform | None:
    """The name of a file, or an affine from the rows of its matrix."""
    if isinstance(given, str | AffineTransform | None):
        return given
    try:
        return AffineTransform(np.array(given, float))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"initial_transform must be the name of a file, or the rows of a matrix; got {given!r}"
        ) from error


def _mask(given: Any, mask: Any) -> str | tuple[float, ...] | None:
    """The name of an image, or intensities that do not count."""
    if isinstance(given, str | None):
        return given
    numbers = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"{mask.name} must be the name of an image, or intensities; got {given!r}")
    return numbers


def _orient(given: Any) -> tuple[str, str] | None:
    """Two codes of how images lie; a file may say it."""
    if given is None:
        return None
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise InputError(
            f"orient must be two codes, of the fixed and the moving image, such as LIP RAS; got "
            f"{given!r}"
        )
    fixed, moving = (
        code if code == _FILE_SAYS else check_orientation(code, f"the orientation of the {which}")
        for code, which in zip(given, ("fixed image", "moving image"), strict=True)
    )
    return fixed, moving


def _engine(given: Any) -> Engine | None:
    """The name of an engine; whether it is there is asked where the blocks are computed."""
    check_engine(given, here=False)
    known: Engine | None = given
    return known


def _mask_field() -> Any:
    return field(default=None, converter=Converter(_mask, takes_field=True))


@frozen
class Config:
    """All that `itkstream.register` takes beside images and folder.

    A mask is the path of an image that is not 0 where voxels count, or intensities that do not
    count. The initial transform is the path of a file, or an affine in the order of the fixed
    image's axes. `fixed` and `moving` say what the image files do not; `orient` says how both
    images lie, where that is the start; `engine` what computes blocks.
    """

    steps: tuple[Step, ...] = field(default=DEFAULT_STEPS, converter=checked_steps)
    settings: RegisterSettings = Factory(RegisterSettings)
    initial_transform: str | AffineTransform | None = field(default=None, converter=_start)
    fixed_mask: str | tuple[float, ...] | None = _mask_field()
    moving_mask: str | tuple[float, ...] | None = _mask_field()
    fixed: ImageOptions = Factory(ImageOptions)
    moving: ImageOptions = Factory(ImageOptions)
    landmarks: LandmarkOptions = Factory(LandmarkOptions)
    orient: tuple[str, str] | None = field(default=None, converter=_orient)
    engine: Engine | None = field(default=None, converter=_engine)

    def __attrs_post_init__(self) -> None:
        if self.orient is not None and self.initial_transform is not None:
            raise InputError(
                "orient and an initial transform both say where to start: give one of them"
            )

    def start(self, fixed: Image, moving: Image) -> AffineTransform | str | None:
        """The transform to start from, or its file, if anything is known."""
        if self.orient is None:
            return self.initial_transform
        pair = (fixed, moving)
        codes = [_known(*of) for of in zip(self.orient, pair, _IMAGES, strict=True)]
        return orientation_transform(fixed, moving, codes[0], codes[1])


def read_config(path: str | os.PathLike[str]) -> Config:
    """Read a YAML file as `to_yaml` writes it, or with less in it, or a registration.json.

    Names of files are made relative to where the process runs. A key or value that is not known is
    an `InputError` with the nearest key.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingDataError(f"there is no file {path}: itkstream config --defaults prints one")
    try:
        return _config(yaml.load(file.read_text(), _Loader), file.parent)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_steps(path: str | os.PathLike[str] | None) -> Config:
    """Read the steps, settings and engine of a file, the defaults where there is none.

    What it says of a pair besides, its images, masks, landmarks or start, is an `InputError`.
    """
    config = Config() if path is None else read_config(path)
    if config != Config(config.steps, config.settings, engine=config.engine):
        raise InputError(
            f"{path} says more than steps, settings and engine: images, masks, landmarks and "
            "starts are not taken from a file here. Leave them out"
        )
    return config


def to_yaml(config: Config) -> str:
    """Write a run as text, with every parameter."""
    known = {
        **dataclasses.asdict(config.settings),
        **{name: _plain(getattr(config, name)) for name in _FILES},
        **{name: dataclasses.asdict(getattr(config, name)) for name in _IMAGES},
        "landmarks": _listed(config.landmarks),
        "orient": None if config.orient is None else list(config.orient),
        "engine": config.engine,
        "steps": [{step.name: step_parameters(step)} for step in config.steps],
    }
    return _HEAD + yaml.dump(
        known, Dumper=_Dumper, default_flow_style=None, sort_keys=False, width=100
    )


def _plain(given: Any) -> Any:
    """An affine as the rows of its matrix, all else as it is."""
    return given.matrix.tolist() if isinstance(given, AffineTransform) else given


def _known(code: str, image: Image, which: str) -> str:
    """The code of an image, from its direction where its file is to say it."""
    return stated_orientation(image, f"{which} image") if code == _FILE_SAYS else code


class _Dumper(yaml.SafeDumper):
    """Writes names below each other, and lists of numbers on a line."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        return super().represent_mapping(tag, mapping, flow_style=False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Takes 2e7 for a number, as JSON and people do."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _config(found: Any, folder: Path) -> Config:
    known = _mapping("the file", found)
    if isinstance(known.get("settings"), Mapping):
        known, folder = _of_a_run(known), Path()
    check_names("key", known, [*_SETTINGS, *_FILES, *_IMAGES, "landmarks", *_REST])
    settings = {name: known[name] for name in _SETTINGS if name in known}
    rest: dict[str, Any] = {
        **{name: _near(folder, known[name]) for name in _FILES if name in known},
        **{name: _image(name, known[name]) for name in _IMAGES if name in known},
        "orient": known.get("orient"),
        "engine": known.get("engine"),
    }
    if "landmarks" in known:
        rest["landmarks"] = _landmarks(folder, known["landmarks"])
    return Config(_steps(known.get("steps")), RegisterSettings(**settings), **rest)


def _of_a_run(found: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run from its registration.json as a file of steps says it.

    Its files are named as they were for that run.
    """
    known = {name: found[name] for name in _FILES if isinstance(found.get(name), str | list)}
    names = {option: option for option in _OPTIONS} | {"spacing": "voxel_spacing"}
    for side in _IMAGES:
        said = found.get(side, {}).get("opened", {})
        known[side] = {option: said[name] for option, name in names.items() if name in said}
    if "landmark_files" in found:
        raise InputError(
            "that run had landmarks, whose unit and deviation it does not hold: write its steps "
            "into a file, as `itkstream config --defaults` prints one, and give --landmarks"
        )
    return {**found["settings"], **known}


def _near(folder: Path, given: Any) -> Any:
    return str(folder / given) if isinstance(given, str) and "://" not in given else given


def _image(which: str, given: Any) -> ImageOptions:
    """Read the options of an image; those left empty are not given."""
    known = _mapping(which, given)
    check_names(f"key of {which}", known, _OPTIONS)
    try:
        return ImageOptions(**{name: value for name, value in known.items() if value is not None})
    except InputError as error:
        raise InputError(f"{which}: {error}") from error


def _landmarks(folder: Path, given: Any) -> LandmarkOptions:
    """Read the options of landmarks; their files lie relative to the folder."""
    known = _mapping("landmarks", given)
    check_names("key of landmarks", known, _LANDMARKS)
    said = {name: value for name, value in known.items() if value is not None}
    files = said.pop("files", ())
    files = (files,) if isinstance(files, str) else tuple(files)
    try:
        return LandmarkOptions(tuple(_near(folder, file) for file in files), **said)
    except InputError as error:
        raise InputError(f"landmarks: {error}") from error


def _listed(options: LandmarkOptions) -> dict[str, Any]:
    return {**dataclasses.asdict(options), "files": list(options.files)}


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
            f"{', '.join(map(str, entry)) or 'none'}"
        )
    ((name, parameters),) = entry.items()
    try:
        return step_from(name, _mapping(name, parameters))
    except InputError as error:
        raise InputError(f"step {number}: {error}") from error


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    """Names and values; empty where nothing is given."""
    if not isinstance(given, Mapping | None):
        raise InputError(f"{what} must hold names and values (name: value); got {given!r}")
    return given or {}

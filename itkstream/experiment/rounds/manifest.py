"""Rounds of an experiment: named by their files, or listed in a manifest, and opened."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from attrs import field, frozen

from itkstream.errors import InputError, ItkstreamError, MissingDataError, unknown_name
from itkstream.geometry import Image
from itkstream.io import ImageOptions, open_series
from itkstream.io.storage.locations import Location
from itkstream.registration.steps.step import check_names

__all__ = [
    "Manifest",
    "OpenedRound",
    "Round",
    "name_rounds",
    "open_rounds",
    "read_manifest",
    "refuse_together",
]

MANIFEST_ENDINGS = (".yaml", ".yml", ".csv", ".tsv")
"""Endings of files that list rounds."""

# Endings that say of what kind a file is, and nothing of the round.
_ENDING = re.compile(
    r"\.(ome|zarr|n5|tiff?|nii|gz|nrrd|nhdr|mha|mhd|npy|lsm|stk|h5)$", re.IGNORECASE
)
# A round's name is that of a folder, and stands before the colon in names of channels.
_NAME = re.compile(r"[^\W_]([\w .+-]*[\w+-])?")
_OPTIONS = [f.name for f in fields(ImageOptions) if f.name != "crop"]
_COLUMNS = ["name", "path", *_OPTIONS, "mask"]
_KEYS = ["rounds", "reference"]


def _checked_name(_round: Any, _attribute: Any, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            "a round is named by letters, digits, spaces, dots, dashes and underscores, the first "
            f"a letter or digit, as its folder is; got {name!r}"
        )


def _text(given: Any) -> str | None:
    return None if given is None else os.fspath(given)


@frozen
class Round:
    """A round of an experiment.

    Parameters
    ----------
    name : str
        How it is called: its folder and its channels are named after it.
    image : path
        What `itkstream.open_image` opens, with all channels of the round.
    options : ImageOptions
        What the file does not state, and the channel that is registered; without a crop.
    mask : path, optional
        An image that is not 0 where voxels count.

    Raises
    ------
    InputError
        For a name that no folder may have, and for a crop.

    Examples
    --------
    >>> options = itkstream.ImageOptions(channel="DAPI")
    >>> itkstream.Round("first", "examples/round1.ome.zarr", options).name
    'first'
    """

    name: str = field(validator=_checked_name)
    image: str = field(converter=os.fspath)
    options: ImageOptions = field(factory=ImageOptions)
    mask: str | None = field(default=None, converter=_text)

    def __attrs_post_init__(self) -> None:
        if self.options.crop is not None:
            raise InputError(
                f"round {self.name}: a crop is of one image; write the part as an image of its own"
            )


@frozen
class Manifest:
    """The rounds of an experiment, and the one that the others are brought onto.

    That one is named, or counted from 1.
    """

    rounds: tuple[Round, ...]
    reference: int | str = 1

    @property
    def place(self) -> int:
        """Place of the reference among the rounds, counted from 0."""
        names = [r.name for r in self.rounds]
        if isinstance(self.reference, str) and self.reference in names:
            return names.index(self.reference)
        try:
            number = int(self.reference)
        except ValueError:
            raise unknown_name("reference", self.reference, names) from None
        if not 1 <= number <= len(names):
            raise InputError(
                f"the reference is one of {len(names)} rounds, counted from 1, or its name; got "
                f"{self.reference}"
            )
        return number - 1

    def check(self) -> Manifest:
        """Refuse too few rounds, a name or an image that is there twice, and an odd reference."""
        if len(self.rounds) < 2:
            raise InputError(f"an experiment has at least two rounds; got {len(self.rounds)}")
        for what, found in (
            ("image", [(r.image, r.options) for r in self.rounds]),
            ("name", [r.name.casefold() for r in self.rounds]),
        ):
            twice = next((k for k, value in enumerate(found) if value in found[:k]), None)
            if twice is not None:
                again = self.rounds[twice]
                raise InputError(
                    f"two rounds have one {what}: {getattr(again, what)}; give each its own"
                )
        _ = self.place
        return self


def name_rounds(paths: Sequence[str | os.PathLike[str]], options: ImageOptions) -> list[Round]:
    """Name rounds after their files, with as many folders before as tell them apart."""
    parts = [_parts(os.fspath(path)) for path in paths]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return [
        Round("-".join(p[-depth:]), os.fspath(path), options)
        for p, path in zip(parts, paths, strict=True)
    ]


def _parts(path: str) -> tuple[str, ...]:
    """Names on the way to an image, as names of rounds may be."""
    names = []
    for part in path.rstrip("/").replace("\\", "/").split("/"):
        while _ENDING.search(part):
            part = _ENDING.sub("", part)
        kept = re.sub(r"[^\w .+-]", "-", part).strip("_ .+-")
        names += [kept] if kept else []
    return tuple(names) or ("round",)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a list of rounds: YAML, or a table as CSV; names of files are relative to it.

    A `MissingDataError` where there is none; an `InputError` names the round that is at fault.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingDataError(f"there is no manifest {path}: check the name")
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() in (".csv", ".tsv"):
            return Manifest(tuple(_rounds(_rows(text), file.parent)))
        return _of_yaml(yaml.safe_load(text), file.parent)
    except (yaml.YAMLError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _of_yaml(found: Any, folder: Path) -> Manifest:
    known: Any = {"rounds": found} if isinstance(found, list) else found
    if not isinstance(known, Mapping) or not isinstance(known.get("rounds"), list):
        raise InputError("expected `rounds:` and below it a list, each round with name and path")
    check_names("key", known, _KEYS)
    reference = known.get("reference", 1)
    if not isinstance(reference, int | str):
        raise InputError(f"the reference is a number or a name; got {reference!r}")
    return Manifest(tuple(_rounds(known["rounds"], folder)), reference)


def _rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a table, whose columns are set apart by what its head has most of."""
    head = text.partition("\n")[0]
    for row in csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count)):
        if None in row:
            raise InputError(f"a row has more cells than the head: {row}")
        yield {name.strip().lower(): (cell or "").strip() or None for name, cell in row.items()}


def _rounds(entries: Any, folder: Path) -> Iterator[Round]:
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise InputError(f"round {number} has name and path; got {entry!r}")
        try:
            yield _round(dict(entry), folder)
        except InputError as error:
            raise InputError(f"round {number}: {error}") from error


def _round(entry: dict[str, Any], folder: Path) -> Round:
    if "round" in entry:
        entry.setdefault("name", entry.pop("round"))
    check_names("key of a round", entry, _COLUMNS)
    known = {key: value for key, value in entry.items() if value is not None}
    if "path" not in known:
        raise InputError("a round needs a path, that of its image")
    image = _near(folder, known.pop("path"))
    mask = _near(folder, known.pop("mask")) if "mask" in known else None
    name = known.pop("name", None)
    said = {key: _value(key, value) for key, value in known.items()}
    named = name_rounds([image], ImageOptions(**said))[0]
    return Round(named.name if name is None else str(name), image, named.options, mask)


def _near(folder: Path, given: Any) -> str:
    if not isinstance(given, str):
        raise InputError(f"expected the name of a file; got {given!r}")
    return given if "://" in given else str(folder / given)


def _value(key: str, given: Any) -> Any:
    """An option as YAML gives it, or from the text of a cell."""
    if not isinstance(given, str):
        return given
    if key in ("channel", "time", "level") and re.fullmatch(r"\d+", given):
        return int(given)
    if key != "spacing":
        return given
    try:
        numbers = tuple(map(float, re.split(r"[\s,;x]+", given.strip("[]() "))))
    except ValueError:
        raise InputError(
            f"spacing is a number, or one per axis such as 2 0.5 0.5; got {given!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


@frozen(eq=False)
class OpenedRound:
    """A round, its image as it is registered, and all its channels with their names."""

    round: Round
    image: Image
    channels: tuple[Image, ...]
    names: tuple[str, ...]

    @property
    def registered(self) -> int:
        """Number of the channel that is registered."""
        return int(self.image.recipe.get("channel", 0))

    @property
    def path(self) -> str:
        """Place of the image, whatever the working directory."""
        return str(self.image.recipe["path"])


def open_rounds(manifest: Manifest, channel: int | str | None = None) -> list[OpenedRound]:
    """Open all rounds, or refuse all; `channel` is that of rounds of which none is said."""
    opened: list[OpenedRound] = []
    problems: dict[str, ItkstreamError] = {}
    for given in manifest.rounds:
        if given.options.channel is None and channel is not None:
            given = Round(
                given.name, given.image, replace(given.options, channel=channel), given.mask
            )
        try:
            opened.append(_open(given))
        except ItkstreamError as error:
            problems[given.name] = error
    refuse_together(problems, len(manifest.rounds))
    return opened


def _open(given: Round) -> OpenedRound:
    image = given.options.open(given.image)
    said = {k: v for k, v in given.options.arguments.items() if k not in ("channel", "crop")}
    channels = tuple(open_series(given.image, "channel", **said))
    if given.mask is not None and not Location.parse(given.mask).exists():
        raise MissingDataError(f"there is no mask {given.mask}: check the name")
    return OpenedRound(given, image, channels, _names([c.channel for c in channels]))


def _names(found: Sequence[str]) -> tuple[str, ...]:
    """Names of channels, each once; their numbers where the file has none."""
    return tuple(
        name if name and list(found).count(name) == 1 else f"{name} {k}".strip()
        for k, name in enumerate(found)
    )


def refuse_together(problems: Mapping[str, ItkstreamError], count: int) -> None:
    """Raise what is wrong with rounds: one error as it is, several in one message."""
    if not problems:
        return
    if len(problems) == 1:
        ((name, error),) = problems.items()
        raise type(error)(f"round {name}: {error}") from error
    lines = [f"{len(problems)} of {count} rounds cannot be registered; nothing was computed"]
    raise InputError("\n".join([*lines, *(f"  {name}: {e}" for name, e in problems.items())]))

"""Options that several commands share, and the values they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from attrs import evolve

if TYPE_CHECKING:
    from itkstream.progress.reporters import Reporter
    from itkstream.registration.advice.channels import ChosenPair

__all__ = [
    "ALL",
    "IMAGE_OPTIONS",
    "RESOURCE_OPTIONS",
    "Channel",
    "Number",
    "PerAxis",
    "Which",
    "choose_given_pair",
    "collect_config",
    "collect_image_options",
    "collect_resources",
    "name_options",
    "open_given_image",
    "open_own_image",
    "with_block",
    "with_image_options",
    "with_initial",
    "with_local_block",
    "with_masks",
    "with_overwrite",
    "with_resources",
    "with_steps",
]


_COUNT = click.IntRange(1)
RESOURCE_OPTIONS: dict[str, tuple[str, Any, str, str]] = {
    "n_workers": ("workers", _COUNT, "N", "Worker processes. [default: threads of this process]"),
    "threads_per_worker": ("threads", _COUNT, "N", "Blocks computed at a time by each worker."),
    "memory_limit": ("memory-limit", str, "SIZE", "Memory of each worker process, such as 8GB."),
    "cluster": (
        "cluster",
        str,
        "NAME",
        "slurm, lsf, pbs, sge, htcondor, oar or moab; a scheduler's address; or a cluster named in "
        "~/.config/itkstream/clusters.yaml. [default: this machine]",
    ),
    "cores": ("cores", _COUNT, "N", "Cores per job."),
    "processes": ("processes", _COUNT, "N", "Worker processes per job. [default: 1]"),
    "memory": ("memory", str, "SIZE", "Memory of this process, or per job, such as 16GB."),
    "walltime": ("walltime", str, "H:MM", "How long a job may run."),
    "queue": ("queue", str, "NAME", "Where jobs wait."),
    "project": ("project", str, "NAME", "Which project is charged for the jobs."),
    "min_workers": ("min-workers", _COUNT, "N", "Workers to hold. [default: 1 job]"),
    "max_workers": ("max-workers", _COUNT, "N", "Workers to ask for. [default: 4 jobs]"),
    "engine": (
        "engine",
        click.Choice(["cpu", "gpu", "auto"]),
        "cpu|gpu|auto",
        "What computes blocks; auto takes a GPU where there is one. [default: cpu]",
    ),
}
"""Fields of `Resources`: the option of each, its type, its placeholder, its help."""


def with_resources(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for its workers; `collect_resources` reads them."""
    # Decorators apply from the end.
    for name, (flag, kind, metavar, text) in reversed(RESOURCE_OPTIONS.items()):
        command = click.option(f"--{flag}", name, type=kind, metavar=metavar, help=text)(command)
    return command


with_block = click.option(
    "--block",
    type=int,
    metavar="N",
    help="Width of a block of the deformation, in voxels. [default: 256]",
)
"""The option for the blocks of a deformation."""

with_local_block = click.option(
    "--local-block",
    type=int,
    metavar="N",
    help="Width of a block of the piecewise affine, in voxels of the coarse level; 0 leaves it "
    "out. [default: 128]",
)
"""The option for the blocks of the piecewise affine."""

with_initial = click.option(
    "--initial",
    metavar="FILE",
    help="Transform file to start from, such as landmarks of Slicer or an affine of ANTs.",
)
"""The option for a start."""

with_steps = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="YAML file of steps and settings, as `itkstream config --defaults` prints one.",
)
"""The option for a file of steps and settings alone."""


def with_masks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for the masks of both images."""
    for which in ("moving", "fixed"):
        help_ = f"Image, not 0 where {which} voxels count."
        command = click.option(f"--{which}-mask", metavar="FILE", help=help_)(command)
    return command


def with_overwrite(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option to replace what it wrote before."""
    text = "Replace an earlier result, once the new one is complete."
    return click.option("--overwrite", is_flag=True, help=text)(command)


class PerAxis(click.ParamType):
    """A number, or one per axis with commas in between."""

    name = "number,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> float | tuple[float, ...]:
        """Read the text of an option; a number given by code stays."""
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(map(float, value.split(",")))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < n < float("inf") for n in numbers):
            self.fail(
                f"{value!r} is not a positive number, nor one per axis with commas in between, "
                "such as 2,0.5,0.5",
                param,
                ctx,
            )
        return numbers if len(numbers) > 1 else numbers[0]


ALL = "all"
"""All channels, or all time points."""


class Channel(click.ParamType):
    """A channel, counted from 0 where it is a number, else its name; or several, with commas."""

    name = "number|name"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Read the text of an option."""
        if isinstance(value, str) and "," in value:
            return tuple(self._weighted(part.strip(), param, ctx) for part in value.split(","))
        if isinstance(value, int) or value.lstrip("-").isdigit():
            return int(click.IntRange(0).convert(value, param, ctx))
        return str(value)

    def _weighted(self, text: str, param: Any, ctx: Any) -> Any:
        """Read one of several channels, with the weight behind a colon, if it is a number."""
        name, _, weight = text.rpartition(":")
        try:
            counts = float(weight) if name else None
        except ValueError:
            counts = None
        if counts is None:
            return self.convert(text, param, ctx)
        return self.convert(name, param, ctx), counts


_WHOLE = click.IntRange(0)
IMAGE_OPTIONS: dict[str, tuple[Any, str, str]] = {
    "spacing": (
        PerAxis(),
        "N[,N,N]",
        "Distance of voxels: a number, or one per axis of the image, such as 2,0.5,0.5 for z,y,x.",
    ),
    "unit": (str, "NAME", "Unit of these numbers and of the file's, such as micrometer."),
    "axes": (str, "LETTERS", "Stored axes, slowest first, such as zyx or tczyx."),
    "channel": (
        Channel(),
        "N|NAME",
        "Channel, counted from 0, or its name; several that drive one transform as DAPI,GFP, or "
        "with weights DAPI:2,GFP:1 (so of a name that ends like a weight, R1:488:1), the first of "
        "which is judged and aligned. [default: the only one, or the only one named after a stain "
        "of nuclei, such as DAPI; of a pair to register or advise on, else what matches best]",
    ),
    "time": (_WHOLE, "N", "Time point, counted from 0. [default: 0]"),
    "level": (_WHOLE, "N", "Resolution level, 0 the finest. [default: 0]"),
    "crop": (
        str,
        "A:B,A:B,A:B",
        "Part that is wanted, per axis of the image, in voxels or µm, such as 100:400,0:200um,:",
    ),
}


def with_image_options(
    *which: str, common: bool = True, own: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command options for what image files do not state; see `collect_image_options`.

    Each image of `which` has its own, as ``--fixed-spacing``; with `common` there are options for
    all images too, but for those that the command defines of its `own`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        command.image_prefixes = which  # type: ignore[attr-defined]
        for prefix in (*which[::-1], *([""] if common else [])):
            for name, (kind, metavar, text) in reversed(IMAGE_OPTIONS.items()):
                if prefix or name not in own:
                    command = click.option(
                        f"--{prefix}-{name}" if prefix else f"--{name}",
                        type=kind,
                        metavar=metavar,
                        help=text,
                        hidden=bool(prefix),
                    )(command)
        return command

    return decorate


def collect_image_options(
    options: dict[str, Any], which: str = "", start: Any = None, common: bool = True
) -> Any:
    """Collect the options for one image, those with its prefix `which` first, over `start`."""
    from itkstream.io import ImageOptions

    said: dict[str, Any] = {}
    for name in IMAGE_OPTIONS:
        value = options.get(f"{which}_{name}") if which else None
        if value is None and common:
            value = options.get(name)
        if value is not None:
            said[name] = value
    return replace(start or ImageOptions(), **said)


class Number(click.ParamType):
    """A number; whole ones keep every digit."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read the text of an option."""
        try:
            return int(value)
        except (ValueError, OverflowError):
            return float(click.FLOAT.convert(value, param, ctx))


class Which(click.ParamType):
    """A place counted from 0, or all of them."""

    name = "number|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Read the text of an option."""
        if value == ALL:
            return ALL
        return int(click.IntRange(0).convert(value, param, ctx))


def open_own_image(which: str, path: str, options: dict[str, Any]) -> Any:
    """Open an image of a command as the options with its own prefix say, and no others."""
    return open_given_image(which, collect_image_options(options, which, common=False), path)


def open_given_image(which: str, said: Any, path: str) -> Any:
    """Open an image of a command; errors name the options for it alone."""
    from itkstream.errors import ItkstreamError

    try:
        return said.open(path)
    except ItkstreamError as error:
        raise type(error)(name_options(str(error), f"{which}-")) from error


def choose_given_pair(
    said: tuple[Any, Any], paths: tuple[str, str], reporter: Reporter
) -> ChosenPair:
    """Open both images of a command; a channel that nobody chose is singled out by matches."""
    from itkstream.errors import UnstatedChannelError
    from itkstream.registration.advice.channels import choose_pair

    given: list[Any] = []
    for which, options, path in zip(("fixed", "moving"), said, paths, strict=True):
        try:
            given.append(open_given_image(which, options, path))
        except UnstatedChannelError:
            given.append(path)
    try:
        return choose_pair(given[0], given[1], reporter, said)
    except UnstatedChannelError as error:
        raise UnstatedChannelError(name_options(str(error))) from error


def name_options(message: str, prefix: str = "") -> str:
    """Name the options in place of a library message's arguments: --spacing, not voxel_spacing=."""
    names = "|".join(("voxel_spacing", *IMAGE_OPTIONS))
    said = re.sub(
        rf"(?<![\w-])({names})=(?: \(--[a-z]+\))?(?=[\s,;:.)]|$)",
        lambda found: f"--{prefix}{found[1].removeprefix('voxel_')}",
        message,
    )
    said = re.sub(
        rf"(?<![\w-])({'|'.join(RESOURCE_OPTIONS)})=('?)([^\s,;)']+)\2",
        lambda found: f"--{RESOURCE_OPTIONS[found[1]][0]} {found[3]}",
        said,
    )
    said = re.sub(
        rf"(?<![\w-])({'|'.join(name for name in RESOURCE_OPTIONS if '_' in name)})(?![\w=])",
        lambda found: f"--{RESOURCE_OPTIONS[found[1]][0]}",
        said,
    )
    for step, option in (("Deformable", "block"), ("LocalAffines", "local-block")):
        said = re.sub(rf"{step}\(blocksize=(\d+)\)", rf"--{option} \1", said)
    said = re.sub(
        r"RegisterSettings\(coarse_voxels=(\d+), blocksize=(\d+)\)",
        r"and in a file for --config, coarse_voxels: \1 and blocksize: \2",
        said,
    )
    for argument, option in (
        ("memory is for a job", "--memory is for a job"),
        ("background must be a number or None", "--background must be a number"),
        (", n_workers=)", ")"),
        ("a lower match_threshold", "a lower --match-threshold"),
        ("make InitialSearch(mirror='allow') the first step", "pass --mirror"),
        ("(initial_transform)", "(--initial)"),
        ("voxel_spacing", "--spacing"),
        ("overwrite=True", "--overwrite"),
        ("ask to overwrite it", "pass --overwrite"),
        (" or with dataset=", ""),
    ):
        said = said.replace(argument, option)
    return said


def collect_resources(options: dict[str, Any], engine: str | None = None) -> Any:
    """Make the resources that the options of a command state, with the engine of its file."""
    from itkstream.workers import Resources

    given = {name: options.get(name) for name in RESOURCE_OPTIONS}
    given["engine"] = given["engine"] or engine
    return Resources(**{name: value for name, value in given.items() if value is not None})


def collect_config(options: dict[str, Any]) -> Any:
    """Read the file of steps, or change the default steps; files given as options come first."""
    from itkstream.cli.config import Config, read_config

    changing = [name for name in _STEP_OPTIONS if options.get(name) is not None]
    if options["config_file"] is None:
        config = Config(tuple(_change_steps(options)))
    elif changing:
        raise click.UsageError(
            f"--{changing[0].replace('_', '-')} and --config exclude each other: say it in the file"
        )
    else:
        config = read_config(options["config_file"])
    files = {
        "initial_transform": options.get("initial"),
        "fixed_mask": options.get("fixed_mask"),
        "moving_mask": options.get("moving_mask"),
    }
    given = {name: file for name, file in files.items() if file is not None}
    for which in ("fixed", "moving"):
        given[which] = collect_image_options(options, which, getattr(config, which))
    settings = _given(background=options.get("background"), report=options.get("report"))
    if options.get("no_error_map"):
        settings["error_map"] = False
    given["settings"] = replace(config.settings, **settings)
    given |= _given(orient=options.get("orient"))
    given["landmarks"] = _landmarks(config.landmarks, options)
    return evolve(config, **given)


def _landmarks(known: Any, options: dict[str, Any]) -> Any:
    """Landmarks of a file of steps, changed as the options ask."""
    said = {
        "files": options.get("landmarks") or None,
        "unit": options.get("landmark_unit"),
        "sigma_um": options.get("landmark_sigma"),
        "hold_out": options.get("hold_out"),
    }
    changed = replace(known, **{name: value for name, value in said.items() if value is not None})
    if not changed.files and changed != known:
        raise click.UsageError("--landmark-unit, --landmark-sigma and --hold-out need --landmarks")
    return changed


_STEP_OPTIONS = (
    "radii",
    "match_threshold",
    "context_radius",
    "contrast",
    "mirror",
    "block",
    "overlap",
    "local_block",
    "seed",
    "near_landmarks",
)


_STEP_WORDS = {
    "radii": "--radii",
    "match_threshold": "--match-threshold",
    "cc_radius": "--context-radius",
    "overlap": "--overlap",
    "seed": "--seed",
}
"""Parameters of steps with which a message begins, and their options."""


def _change_steps(options: dict[str, Any]) -> list[Any]:
    """Change the default steps as the options ask."""
    from itkstream.registration.steps import DEFAULT_STEPS, InitialSearch

    affine, intensity, local, deformation = DEFAULT_STEPS
    # `plan` has only those that change what a run costs.
    matching = {name: options.get(name) for name in ("match_threshold", "seed", "contrast")}
    matching["cc_radius"] = options.get("context_radius")
    blocks = {"blocksize": options["block"], "overlap": options.get("overlap")}
    if options.get("near_landmarks"):
        return [deformation.evolve(where="landmarks", **_given(**blocks))]
    radii = options.get("radii")
    steps = [
        _evolved(affine, "", radii=None if radii is None else (radii,), **matching),
        intensity,
        _evolved(deformation, "--block", **blocks),
    ]
    if options["local_block"] != 0:
        local = _evolved(local, "--local-block", blocksize=options["local_block"], **matching)
        steps.insert(2, local)
    if options.get("mirror"):
        steps.insert(0, InitialSearch(mirror="allow", **_given(seed=options.get("seed"))))
    return steps


def _evolved(step: Any, block: str, **changes: Any) -> Any:
    """A step with what was given changed; errors name options, `block` the one of its blocksize."""
    from itkstream.errors import InputError

    try:
        return step.evolve(**_given(**changes))
    except InputError as error:
        said = re.sub(r"\b(the )?blocksize\b", block, str(error)).replace(", or None;", ";")
        for name, option in _STEP_WORDS.items():
            said = re.sub(rf"^{name}\b", option, said)
        raise InputError(said) from error


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}

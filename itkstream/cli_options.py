"""Options that several commands share, and the values they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import click

__all__ = [
    "Number",
    "Which",
    "config_from",
    "resources_from",
    "with_overwrite",
    "with_resources",
]


def _resource_options() -> list[Callable[..., Any]]:
    """In the order of the help text, from its end."""
    count = click.IntRange(1)
    options = (
        ("--workers", count, "n_workers", "Worker processes. [default: threads of this process]"),
        ("--threads", count, "threads_per_worker", "Blocks computed at a time by each worker."),
        ("--memory-limit", str, "memory_limit", "Memory of each worker process, such as 8GB."),
        (
            "--cluster",
            str,
            "cluster",
            "slurm, lsf, pbs, sge, htcondor, oar or moab; a scheduler's address; or a cluster "
            "named in ~/.config/itkstream/clusters.yaml. [default: this machine]",
        ),
        ("--cores", count, "cores", "Cores per job."),
        ("--processes", count, "processes", "Worker processes per job. [default: 1]"),
        ("--memory", str, "memory", "Memory per job, such as 16GB."),
        ("--walltime", str, "walltime", "How long a job may run: hours:minutes."),
        ("--queue", str, "queue", "Where jobs wait."),
        ("--project", str, "project", "Which project is charged for the jobs."),
        ("--min-workers", count, "min_workers", "Workers to hold. [default: 1 job]"),
        ("--max-workers", count, "max_workers", "Workers to ask for. [default: 4 jobs]"),
    )
    return [
        click.option(flag, name, type=kind, help=text)
        for flag, kind, name, text in reversed(options)
    ]


def with_resources(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what it may use; `resources_from` reads them.

    Parameters
    ----------
    command : callable
        Takes them among its keywords.

    Returns
    -------
    callable
        The same command.
    """
    for option in _resource_options():
        command = option(command)
    return command


def with_overwrite(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option to replace what it wrote before.

    Parameters
    ----------
    command : callable
        Takes ``overwrite`` among its keywords.

    Returns
    -------
    callable
        The same command.
    """
    text = "Replace an earlier result."
    return click.option("--overwrite", is_flag=True, help=text)(command)


class Number(click.ParamType):
    """A number; whole ones keep every digit."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read the text of an option.

        Parameters
        ----------
        value : str or number
            The text, or the default.
        param, ctx : click.Parameter, click.Context
            For messages.

        Returns
        -------
        int or float
            The number.
        """
        try:
            return int(value)
        except (ValueError, OverflowError):
            return float(click.FLOAT.convert(value, param, ctx))


class Which(click.ParamType):
    """A place counted from 0, or all of them, which is None."""

    name = "number|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """Read the text of an option.

        Parameters
        ----------
        value : str or int
            The text, or the default.
        param, ctx : click.Parameter, click.Context
            For messages.

        Returns
        -------
        int or None
            The place; None for all.
        """
        if value == "all":
            return None
        return int(click.IntRange(0).convert(value, param, ctx))


def resources_from(options: dict[str, Any]) -> Any:
    """What a command may use.

    Parameters
    ----------
    options : dict
        Of a command `with_resources`; others are left alone.

    Returns
    -------
    Resources
        The defaults where nothing was said.
    """
    from itkstream.workers import Resources

    names = {field.name for field in fields(Resources)}
    given = {name: value for name, value in options.items() if name in names}
    return Resources(**{name: value for name, value in given.items() if value is not None})


def config_from(options: dict[str, Any]) -> Any:
    """What a file says, or the options that change steps; files named by options come first.

    Parameters
    ----------
    options : dict
        Of `register` or `plan`.

    Returns
    -------
    Config
        Steps, settings, initial transform and masks.

    Raises
    ------
    click.UsageError
        Where both a file and options say what the steps are.
    """
    from itkstream.config import Config, read_config

    changing = [name for name in _STEP_OPTIONS if options.get(name) is not None]
    if options["config_file"] is None:
        config = Config(tuple(_steps(options)))
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
    background = options.get("background")
    if background is not None:
        config = replace(config, settings=replace(config.settings, background=background))
    return replace(config, **{name: file for name, file in files.items() if file is not None})


_STEP_OPTIONS = ("radii", "match_threshold", "block", "local_block", "seed")


def _steps(options: dict[str, Any]) -> list[Any]:
    """The default steps, with what the options change."""
    from itkstream.steps import DEFAULT_STEPS, step_from, step_name, step_parameters

    # `plan` has only those that change what a run costs.
    matching = {name: options.get(name) for name in ("match_threshold", "seed")}
    radii = options.get("radii")
    changes = {
        "ransac-affine": {**matching, "radii": None if radii is None else (radii,)},
        "local-affines": {**matching, "blocksize": options["local_block"]},
        "deformable": {"blocksize": options["block"]},
    }
    steps = []
    for step in DEFAULT_STEPS:
        name = step_name(step)
        given = {k: v for k, v in changes.get(name, {}).items() if v is not None}
        if name != "local-affines" or options["local_block"] != 0:
            steps.append(step_from(name, {**step_parameters(step), **given}))
    return steps

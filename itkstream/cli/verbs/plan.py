"""The commands that say what a registration would do: its price, its parameters."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.console import make_console, tabulate_plan
from itkstream.cli.options import (
    collect_config,
    collect_resources,
    name_options,
    open_given_image,
    with_block,
    with_image_options,
    with_local_block,
    with_resources,
)
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell, wants_json

__all__ = ["config", "plan"]


@click.command(
    cls=Verb,
    examples=(
        "itkstream plan round1.zarr round2.zarr --probe 3",
        "itkstream plan round1.zarr round2.zarr --memory 16GB",
    ),
)
@click.argument("fixed")
@click.argument("moving")
@with_block
@with_local_block
@click.option(
    "--probe",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Compute N blocks to tell the time of this machine. [default: none; the time is that of "
    "the machine on which it was measured]",
)
@click.option("--config", "config_file", metavar="FILE", help="YAML file of steps and settings.")
@with_resources
@with_image_options("fixed", "moving")
def plan(fixed: str, moving: str, probe: int, **options: Any) -> None:
    """Show what registering MOVING to FIXED will need: memory, disk, tasks, time.

    Nothing is written. With --memory, blocks and threads are chosen to fit it; `register` with the
    same options chooses the same. The exit code is 2 where the memory is too small.
    """
    with importing():
        from itkstream.pipelines import plan as make

    config = collect_config(options)
    made = make(
        open_given_image("fixed", config.fixed, fixed),
        open_given_image("moving", config.moving, moving),
        config.steps,
        config.settings,
        resources=collect_resources(options, config.engine),
        probe=probe,
    )
    if not wants_json():
        make_console().print(tabulate_plan(made))
    tell(made.facts, _describe_workers(made), f"chosen: {name_options(made.choices())}")
    made.require_fit()


def _describe_workers(made: Any) -> str:
    from dask.utils import format_bytes

    blocks = "1 block at a time" if made.threads == 1 else f"{made.threads} blocks at a time"
    device = made.facts.get("device_memory")
    on_gpu = "" if device is None else f"; the largest takes {format_bytes(device)} of a GPU"
    if made.workers:
        return f"computed by {made.workers} worker processes, {blocks} each{on_gpu}"
    return f"computed by one process, {blocks}{on_gpu}"


@click.command(
    cls=Verb,
    examples=("itkstream config --defaults > run.yaml", "itkstream config run.yaml"),
)
@click.option("--defaults", is_flag=True, help="Print the default steps and settings.")
@click.argument("file", required=False)
def config(defaults: bool, file: str | None) -> None:
    """Print the steps and settings of FILE, checked and in full, or the defaults, as YAML."""
    import yaml

    from itkstream.cli.config import Config, read_config, to_yaml

    if defaults == (file is not None):
        raise click.UsageError("give either --defaults or a FILE")
    text = to_yaml(Config() if file is None else read_config(file))
    tell(yaml.safe_load(text), text.rstrip())

"""The command that registers a pair whose true transform is known."""

from __future__ import annotations

from typing import Any

import click

from itkstream.cli.console import console_reporter, make_console
from itkstream.cli.options import collect_resources, with_overwrite, with_resources
from itkstream.cli.process import importing
from itkstream.cli.verb import Verb, tell, with_out

__all__ = ["demo"]


@click.command(cls=Verb, examples=("itkstream demo --out demo",))
@with_out("Folder to write.")
@with_resources
@with_overwrite
def demo(out: str, **options: Any) -> None:
    """Register a synthetic pair of rounds and print the error against the truth."""
    with importing():
        from itkstream.cli.demo import run_demo

    with console_reporter(make_console()) as reporter:
        result = run_demo(
            out,
            resources=collect_resources(options),
            overwrite=options["overwrite"],
            reporter=reporter,
        )
    found = {"before": result.before.summary(), "after": result.after.summary()}
    lines = [
        f"target registration error {name}: median {summary['median_vox']:.2f}, "
        f"95th percentile {summary['p95_vox']:.2f} voxels"
        for name, summary in found.items()
    ]
    tell(
        found | {"folds": result.folds, "overlay": str(result.overlay)},
        *lines,
        f"voxels folded: {result.folds}",
        f"picture: {result.overlay}",
    )

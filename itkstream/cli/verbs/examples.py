"""The command that writes small files to try the others on."""

from __future__ import annotations

import click

from itkstream.cli.verb import Verb, tell, with_out

__all__ = ["examples"]


@click.command(cls=Verb, examples=("itkstream examples --out examples",))
@with_out("Folder to write, new or empty.")
def examples(out: str) -> None:
    """Write small synthetic files to try the commands on.

    Four rounds of an experiment (round1.ome.zarr to round4.ome.zarr: nuclei and spots of two genes;
    round3 is turned by 20 degrees, round4 sees half of the tissue), their tables of spots, cells of
    round1 (labels.ome.zarr), and in the folder atlas a brain, a template, its annotation and the
    names of its regions. What is true of them lies beside them.
    """
    from itkstream.io.storage.outputs import check_folder
    from itkstream.phantoms import make_atlas, make_experiment

    check_folder(out, "examples", False)
    make_experiment().write(out)
    make_atlas().write(f"{out}/atlas")
    tell({"written": out}, f"written: {out}")

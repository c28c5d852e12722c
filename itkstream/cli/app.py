"""The command line: its commands, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
from itertools import chain
from typing import ClassVar

import click

from itkstream.cli.exit_codes import BAD_INPUT, EXISTS, FAILED, INTERRUPTED
from itkstream.cli.experiments.atlas import atlas
from itkstream.cli.experiments.rounds import rounds
from itkstream.cli.experiments.spots import count, points
from itkstream.cli.options import name_options
from itkstream.cli.process import keep_freed_memory
from itkstream.cli.verb import set_verbosity
from itkstream.cli.verbs.advise import advise
from itkstream.cli.verbs.demo import demo
from itkstream.cli.verbs.examples import examples
from itkstream.cli.verbs.info import info
from itkstream.cli.verbs.plan import config, plan
from itkstream.cli.verbs.register import register
from itkstream.cli.verbs.report import report
from itkstream.cli.verbs.serve import serve, view
from itkstream.cli.verbs.transform_commands import (
    apply,
    check,
    export,
    invert,
    repair,
)
from itkstream.errors import (
    BlockErrors,
    ExistingOutputError,
    InterruptedRunError,
    ItkstreamError,
    OutputError,
    WorkersError,
)

__all__ = ["main"]


class Verbs(click.Group):
    """The commands, by what they are for."""

    sections: ClassVar[dict[str, tuple[click.Command, ...]]] = {
        "Before": (info, advise, plan, config, demo, examples),
        "Register": (register, rounds, atlas),
        "Use a result": (apply, points, count, export, invert),
        "Look": (view, serve, report),
        "Judge and mend": (check, repair),
    }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lists of commands."""
        width = max(len(name) for name in self.commands)
        for title, members in self.sections.items():
            with formatter.section(title):
                rows = [(str(c.name).ljust(width), c.get_short_help_str()) for c in members]
                formatter.write_dl(rows)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, good or to be looked at; 1 work failed; 2 the command or its "
    "input is at fault; 3 the output exists or another run writes to it; 4 not aligned; 130 "
    'stopped. Completion in your shell: eval "$(_ITKSTREAM_COMPLETE=bash_source itkstream)", or '
    "zsh_source, fish_source.",
)
@click.version_option(None, "-V", "--version", package_name="itkstream")
@click.option("-v", "--verbose", count=True, metavar="", help="Log more; twice for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def commands(ctx: click.Context, verbose: int, quiet: bool) -> None:
    """Register 3-D images too large for memory."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    set_verbosity(verbose, quiet, ctx)


for _command in chain.from_iterable(Verbs.sections.values()):
    commands.add_command(_command)


def main() -> None:
    """Run the command line, without tracebacks for what it knows.

    Exit code 1: a result is missing or not sound; 2: the input is at fault; 3: the output exists or
    another run writes to it; 4: the images were not aligned; 130: it was stopped.
    """
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as cleanly as Ctrl-C does
    try:
        commands.main(prog_name="itkstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(_describe_stop(error), err=True)
        sys.stdout.flush()
        # Everything is put away; threads still in compiled code would abort a slower end.
        os._exit(INTERRUPTED)
    except (BlockErrors, OutputError, WorkersError) as error:
        click.echo(f"itkstream: {error}", err=True)
        sys.exit(FAILED)
    except ExistingOutputError as error:
        click.echo(f"itkstream: {name_options(str(error))}", err=True)
        sys.exit(EXISTS)
    except ItkstreamError as error:
        click.echo(f"itkstream: {name_options(str(error))}", err=True)
        sys.exit(BAD_INPUT)


def _describe_stop(error: BaseException) -> str:
    """Read how far a run was from its exception, which click puts one of its own around."""
    run = error.__cause__ if isinstance(error, click.Abort) else error
    return str(run) if isinstance(run, InterruptedRunError) else "stopped"

"""A command of the command line: its options in sections, with examples, and what all share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import click

from itkstream.cli.options import IMAGE_OPTIONS, RESOURCE_OPTIONS

__all__ = ["Verb", "set_verbosity", "tell", "wants_json", "wants_quiet", "with_out"]

_GENERAL = {"--json", "--verbose", "--quiet", "--help"}
_PLACE, _PLACE_SHOWN = "place", "[OUT]"
_IMAGES = "Options for what an image file does not state"


class Verb(click.Command):
    """A command with its options in sections, and with examples.

    Every one has ``--json``, ``-v`` and ``-q``. An option for an image that may be left out, and
    is, is an error; so is an output given twice.
    """

    def __init__(self, *given: Any, examples: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*given, **named)
        self.examples = tuple(examples)
        self.params.extend(_list_general_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, and refuse options for an image that is not given."""
        left = super().parse_args(ctx, args)
        set_verbosity(ctx.params.pop("verbose"), ctx.params.pop("quiet"), ctx)
        ctx.meta["itkstream.json"] = ctx.params.pop("json")
        _choose_out(ctx)
        for which in getattr(self.callback, "image_prefixes", ()):
            said = [n for n in IMAGE_OPTIONS if ctx.params.get(f"{which}_{n}") is not None]
            if said and ctx.params.get(which, "") is None:
                raise click.UsageError(
                    f"--{which}-{said[0]} speaks of the image of --{which}, which is not given", ctx
                )
        return left

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole: the list of commands wraps it."""
        return super().get_short_help_str(max(limit, 200))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Write the output as an option, though it may be the last argument too."""
        pieces = [piece for piece in super().collect_usage_pieces(ctx) if piece != _PLACE_SHOWN]
        return [*pieces, "--out OUT"] if any(p.name == "out" for p in self.params) else pieces

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into the help text, section by section."""
        prefixes = getattr(self.callback, "image_prefixes", None)
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                sections.setdefault(_section_of(option), []).append(record)
        if prefixes:
            sections.setdefault(_IMAGES, [])
        for title in ("Options", _IMAGES, "Options for workers", "General options"):
            records = sections.get(title)
            if records is None:
                continue
            with formatter.section(title):
                if records:
                    formatter.write_dl(records)
                if title == _IMAGES:
                    formatter.write_text(_describe_prefixes(prefixes or ()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def with_out(
    text: str, *, also_last: bool = False, required: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the option for its output; `also_last` takes it as the last argument too."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        if also_last:
            command = click.argument(_PLACE, cls=_Place, needed=required)(command)
        needed = required and not also_last
        return click.option("-o", "--out", metavar="OUT", help=text, required=needed)(command)

    return decorate


class _Place(click.Argument):
    """An output given as the last argument instead of by its option."""

    def __init__(self, *given: Any, needed: bool, **named: Any) -> None:
        super().__init__(*given, **{**named, "required": False, "metavar": _PLACE_SHOWN})
        self.needed = needed


def tell(facts: dict[str, Any], *lines: str) -> None:
    """Print the result of a command: its facts as JSON if asked for, else the lines."""
    if wants_json():
        click.echo(json.dumps(facts, indent=2, default=str))
    elif not wants_quiet():
        for line in lines:
            click.echo(line)


def wants_json() -> bool:
    """Whether the command that runs shall print JSON."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("itkstream.json"))


def wants_quiet() -> bool:
    """Whether the command that runs shall print errors only."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("itkstream.quiet"))


def set_verbosity(verbose: int, quiet: bool, ctx: click.Context) -> None:
    """Choose what is logged: warnings by default, more if `verbose`, errors alone if `quiet`."""
    verbose += ctx.meta.get("itkstream.verbose", 0)
    quiet = quiet or ctx.meta.get("itkstream.quiet", False)
    ctx.meta["itkstream.verbose"], ctx.meta["itkstream.quiet"] = verbose, quiet
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.getLogger("itkstream").setLevel(logging.ERROR if quiet else level)


def _list_general_options() -> list[click.Option]:
    return [
        click.Option(["--json"], is_flag=True, help="Print the result as JSON."),
        click.Option(
            ["-v", "--verbose"], count=True, metavar="", help="Log more; twice for everything."
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing but errors."),
    ]


def _section_of(option: click.Parameter) -> str:
    """The section of an option."""
    if option.name in IMAGE_OPTIONS:
        return _IMAGES
    if option.name in RESOURCE_OPTIONS:
        return "Options for workers"
    return "General options" if _GENERAL.intersection(option.opts) else "Options"


def _describe_prefixes(prefixes: Sequence[str]) -> str:
    if not prefixes:
        return "They hold for all images of which nothing else is said."
    flags = [f"--{prefixes[0]}-{name}" for name in IMAGE_OPTIONS]
    others = "".join(f", and the same with --{prefix}-" for prefix in prefixes[1:])
    return f"For one image alone: {', '.join(flags)}{others}."


def _choose_out(ctx: click.Context) -> None:
    """Take the output from its option or its argument."""
    place = next((p for p in ctx.command.params if isinstance(p, _Place)), None)
    if place is None:
        return
    last, out = ctx.params.pop(_PLACE), ctx.params["out"]
    if last is not None and out is not None:
        raise click.UsageError(f"the output is given twice: {last} and --out {out}", ctx)
    if place.needed and last is None and out is None:
        raise click.UsageError("say where to write: --out OUT", ctx)
    ctx.params["out"] = last if out is None else out

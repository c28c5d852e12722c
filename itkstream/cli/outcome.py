"""The end of a command that registers: its verdict, where the files are, its exit code."""

from __future__ import annotations

import sys
from typing import Any

from itkstream.cli.exit_codes import NOT_ALIGNED
from itkstream.cli.verb import tell

__all__ = ["tell_outcome"]


def tell_outcome(result: Any, facts: dict[str, Any], *lines: str) -> None:
    """Print the verdict of a registration, further lines, and its folder; exit where it failed.

    A folder whose registration failed is kept, and never called registered.
    """
    failed = result.verdict.outcome == "failed"
    end = f"files kept: {result.out}" if failed else f"registered: {result.out}"
    known = {"out": str(result.out), "verdict": result.verdict.facts}
    tell(known | facts, *result.verdict.describe(), *lines, end)
    if failed:
        sys.exit(NOT_ALIGNED)

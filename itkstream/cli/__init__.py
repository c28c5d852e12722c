"""The command line: words to values, one call, results to words."""

from __future__ import annotations

from itkstream.cli.app import commands, main

__all__ = ["commands", "main"]

"""Exit codes of the command line, beside 0."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "EXISTS", "FAILED", "INTERRUPTED", "NOT_ALIGNED"]

FAILED = 1
"""A result is missing or not sound."""

BAD_INPUT = 2
"""The command or its input is at fault."""

EXISTS = 3
"""The output exists already, or another run writes to it."""

NOT_ALIGNED = 4
"""The images were not aligned, or the verdict is "failed"."""

INTERRUPTED = 130
"""It was stopped."""

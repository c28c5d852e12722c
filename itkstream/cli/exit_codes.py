"""Exit codes of the command line, beside 0."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "NOT_ALIGNED"]

FAILED = 1
"""A result is missing or not sound."""

BAD_INPUT = 2
"""The input is at fault."""

NOT_ALIGNED = 4
"""The images were not aligned."""

INTERRUPTED = 130
"""It was stopped."""

"""Files that are served in tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from itkstream.geometry import Grid

__all__ = ["GRID", "Scene"]

# Two blocks of 128 along two axes, and two levels.
GRID = Grid((20, 150, 300), (2.0, 1.0, 0.75), (5.0, 30.0, -10.0), axes=("z", "y", "x"))


@dataclass(frozen=True)
class Scene:
    """Files of a fixed and a moving image of two channels, of a transform, and of its result."""

    fixed: Path
    moving: Path
    transform: Path
    applied: Path

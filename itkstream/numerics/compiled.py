"""The folder of the compiled functions, and whether they are there or the next call compiles them.

numba keeps them beside the source, or in the folder that NUMBA_CACHE_DIR names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itkstream.numerics.deformation import force

__all__ = ["is_compiled", "kept_in"]


def kept_in() -> Path:
    """The folder where numba keeps the functions of a deformation."""
    function: Any = force.mean_line
    return Path(function.stats.cache_path)


def is_compiled() -> bool:
    """Whether an earlier run compiled the functions of a deformation from the source as it is."""
    source = Path(force.__file__)
    written = source.stat().st_mtime
    return any(i.stat().st_mtime >= written for i in kept_in().glob(f"{source.stem}.*.nbi"))

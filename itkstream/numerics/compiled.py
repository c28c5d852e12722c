"""Whether the compiled functions are there, or the next call compiles them."""

from __future__ import annotations

from pathlib import Path

from itkstream.numerics.deformation import force

__all__ = ["is_compiled"]


def is_compiled() -> bool:
    """Whether numba's cache holds the functions of a deformation, as an earlier run left them.

    Returns
    -------
    bool
        False too where they were compiled from an older source.
    """
    source = Path(force.__file__)
    kept = Path(force.mean_line.stats.cache_path or "").glob(f"{source.stem}.*.nbi")
    written = source.stat().st_mtime
    return any(index.stat().st_mtime >= written for index in kept)

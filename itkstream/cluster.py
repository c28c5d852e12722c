"""Running what a ``prepare_`` function prepared, on threads, processes or a cluster."""

from __future__ import annotations

from itkstream.compute.execute import compute, continues, execute, store
from itkstream.compute.progress import Progress

__all__ = ["Progress", "compute", "continues", "execute", "store"]


def __dir__() -> list[str]:
    return __all__

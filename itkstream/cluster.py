"""Running what a ``prepare_`` function prepared, on threads, processes or a cluster."""

from __future__ import annotations

from itkstream.compute.execute import Progress, compute, continues, execute, store

__all__ = ["Progress", "compute", "continues", "execute", "store"]

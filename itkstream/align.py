"""Several steps block by block, on top of each other; nothing is computed yet."""

from __future__ import annotations

from itkstream.registration.blockwise import prepare_piecewise_align

__all__ = ["prepare_piecewise_align"]

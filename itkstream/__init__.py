"""Register 3-D images too large for memory, with transforms that ITK reads.

Everything public is loaded when it is first used; ``__init__.pyi`` lists it::

    import itkstream

    fixed = itkstream.open_image("round1.n5/lowres")
    result = itkstream.register("round1.n5/lowres", "round2.n5/lowres", "registered")

The tutorial's functions live in `itkstream.affine`, `itkstream.deform`, `itkstream.transform` and
`itkstream.cluster`.

Examples in docstrings run one by one in the folder in which ``itkstream examples --out examples``
was called, after::

    import itkstream
    import numpy as np

    fixed = itkstream.open_image("examples/round1.ome.zarr")
    moving = itkstream.open_image("examples/round2.ome.zarr")
    registration = itkstream.register(fixed, moving, "registered")
    advice = itkstream.advise(fixed, moving)
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("itkstream")
    return _load(name)

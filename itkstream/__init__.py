"""Register 3-D images too large for memory, with transforms that ITK reads.

Everything public is loaded when it is first used::

    import itkstream

    fixed = itkstream.open_image("round1.n5/lowres")
    result = itkstream.register("round1.n5/lowres", "round2.n5/lowres", "registered")

The tutorial's functions live in `itkstream.affine`, `itkstream.deform`, `itkstream.transform` and
`itkstream.cluster`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from itkstream.writers import set_transform_writer

if TYPE_CHECKING:
    from itkstream import affine, align, cluster, deform, transform
    from itkstream.block_kernels import WarpSettings
    from itkstream.cluster import execute
    from itkstream.geometry import (
        AffineTransform,
        BSplineTransform,
        CompositeTransform,
        DisplacementField,
        Grid,
        Image,
        LandmarkSpline,
        PiecewiseAffine,
    )
    from itkstream.io import ImageOptions, open_container, open_image
    from itkstream.io.itk_transforms import read_itk_transform
    from itkstream.io.transform_files import read_transform, write_transform
    from itkstream.pipelines import Plan, Registration, plan, register
    from itkstream.steps import (
        Deformable,
        IntensityAffine,
        LocalAffines,
        RansacAffine,
        RegisterSettings,
    )
    from itkstream.workers import Resources

__all__ = [
    "AffineTransform",
    "BSplineTransform",
    "CompositeTransform",
    "Deformable",
    "DisplacementField",
    "Grid",
    "Image",
    "ImageOptions",
    "IntensityAffine",
    "LandmarkSpline",
    "LocalAffines",
    "PiecewiseAffine",
    "Plan",
    "RansacAffine",
    "RegisterSettings",
    "Registration",
    "Resources",
    "WarpSettings",
    "affine",
    "align",
    "cluster",
    "deform",
    "execute",
    "open_container",
    "open_image",
    "plan",
    "read_itk_transform",
    "read_transform",
    "register",
    "transform",
    "write_transform",
]

_HOMES = {
    "AffineTransform": "geometry",
    "BSplineTransform": "geometry",
    "CompositeTransform": "geometry",
    "Deformable": "steps",
    "DisplacementField": "geometry",
    "Grid": "geometry",
    "Image": "geometry",
    "ImageOptions": "io",
    "IntensityAffine": "steps",
    "LandmarkSpline": "geometry",
    "LocalAffines": "steps",
    "PiecewiseAffine": "geometry",
    "RansacAffine": "steps",
    "Plan": "pipelines",
    "RegisterSettings": "steps",
    "Registration": "pipelines",
    "Resources": "workers",
    "WarpSettings": "block_kernels",
    "execute": "cluster",
    "open_container": "io.containers",
    "open_image": "io",
    "plan": "pipelines",
    "read_itk_transform": "io.itk_transforms",
    "read_transform": "io.transform_files",
    "register": "pipelines",
    "write_transform": "io.transform_files",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"itkstream.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("itkstream")
    if name in __all__:
        return import_module(f"itkstream.{name}")
    raise AttributeError(f"module 'itkstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# `Transform.write` asks for it; the file formats are loaded then, not now.
set_transform_writer(lambda: __getattr__("write_transform"))

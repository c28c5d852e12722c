"""A registration and all that may be asked of it: points, images, its inverse, report and view."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itkstream.apply.inverse import InverseTransform
from itkstream.apply.resampling import prepare_apply_transform
from itkstream.geometry import Image
from itkstream.geometry.shown.html import card
from itkstream.geometry.shown.pictures import plane_png
from itkstream.io import open_series
from itkstream.io.images.plain.in_memory import as_image
from itkstream.io.storage.locations import Location
from itkstream.io.transforms.ngff.store import stored_axes
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.registration.folder import ALIGNED
from itkstream.registration.register import Registered
from itkstream.report.write import write_report
from itkstream.viewing import view

__all__ = ["Registration"]

Points: TypeAlias = NDArray[Any] | Sequence[Sequence[float]] | Sequence[float]


@dataclass(frozen=True, repr=False)
class Registration(Registered):
    """Result of `itkstream.register`; `Registration.open` opens one that is there.

    Parameters
    ----------
    out : Location
        The folder.
    transform : CompositeTransform
        Fixed to moving points: a stored displacement field, then an affine.
    aligned : Image
        The moving image on the fixed grid, stored.
    facts : dict
        What registration.json holds: parameters, versions, times, quality after each step.
    error : Image, optional
        Radius around each place of the fixed image, in its unit, in which the true place lies with
        95 % probability; NaN where nothing can be said. Stored, on a coarse lattice; None where
        `RegisterSettings.error_map` is False.

    Examples
    --------
    >>> registration = itkstream.Registration.open("registered")
    >>> registration.verdict.outcome
    'good'
    >>> points = np.array([[20.0, 40.0, 40.0]])
    >>> there = registration.apply(points)
    >>> bool(np.allclose(registration.inverse.apply(there), points, atol=0.05))
    True
    >>> gene = itkstream.open_image("examples/round2.ome.zarr", channel="GeneA")
    >>> registration.apply(gene).read().shape == registration.aligned.shape
    True
    >>> registration.report().name
    'report.html'
    >>> registration.transform.to_sitk().GetDimension()
    3
    """

    @classmethod
    def of(cls, found: Registered) -> Registration:
        """Take the record of a run.

        Parameters
        ----------
        found : Registered
            What a run returned.

        Returns
        -------
        Registration
            The same.

        Examples
        --------
        >>> itkstream.Registration.of(registration) == registration
        True
        """
        return cls(found.out, found.transform, found.aligned, found.facts, found.error)

    @property
    def inverse(self) -> InverseTransform:
        """From moving to fixed points; computed where it is asked for."""
        return InverseTransform(self.transform)

    @overload
    def apply(
        self,
        what: Image | str | os.PathLike[str],
        settings: WarpSettings | None = None,
        *,
        blocksize: int = 128,
    ) -> Image: ...

    @overload
    def apply(self, what: Points) -> NDArray[np.float64]: ...

    def apply(
        self, what: Any, settings: WarpSettings | None = None, *, blocksize: int = 128
    ) -> Any:
        """Resample an image of the moving space onto the fixed voxels, or map fixed points.

        Parameters
        ----------
        what : Image, path or array_like (k, n)
            An image, such as another channel or labels, or its path; or points of the fixed image,
            in µm and in the order of its axes.
        settings : WarpSettings, optional
            Of an image: interpolation (``WarpSettings("nearest")`` for labels), background, type.
        blocksize : int
            Of an image: voxels per axis of what is computed at a time.

        Returns
        -------
        Image or ndarray, (k, n)
            The image, lazy: slices of it are computed when they are read, and all of it by
            `Image.read`. Or the points in the moving image, in µm.

        Raises
        ------
        InputError
            Where the number of axes differs, or the image cannot be opened.

        Examples
        --------
        >>> registration.apply([[20.0, 40.0, 40.0]]).shape
        (1, 3)
        >>> gene = itkstream.open_image("examples/round2.ome.zarr", channel="GeneA")
        >>> registration.apply(gene)[:1].read().shape == (1, *fixed.shape[1:])
        True
        """
        if not isinstance(what, (Image, str, os.PathLike)):
            return self.transform.apply(what)
        image, grid = as_image(what), self.aligned.grid
        size = (blocksize,) * grid.ndim
        lazy = prepare_apply_transform(
            grid, image, self.transform, size, settings or WarpSettings()
        )
        return Image(lazy, grid, image.name)

    def apply_inverse(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map points of the moving image to the fixed one: ``inverse.apply``.

        Parameters
        ----------
        points : array_like, (..., n)
            In µm, in the order of the moving image's axes.

        Returns
        -------
        ndarray, (..., n)
            Where they lie in the fixed image, in µm; NaN where the transform says nothing.

        Examples
        --------
        >>> there = registration.apply([[20.0, 40.0, 40.0]])
        >>> bool(np.allclose(registration.apply_inverse(there), [[20.0, 40.0, 40.0]], atol=0.05))
        True
        """
        return self.inverse.apply(points)

    def report(self, images: tuple[Image, Image] | None = None) -> Location:
        """Write the page of pictures and numbers, ``report.html``, and say where it is.

        Parameters
        ----------
        images : (Image, Image), optional
            The fixed and the moving image, where they were arrays or are elsewhere now.

        Returns
        -------
        Location
            The page; one that is there is replaced.

        Raises
        ------
        MissingDataError
            Where an image is not where it was.

        Examples
        --------
        >>> registration.report().name
        'report.html'
        """
        return write_report(self.out, images)

    def show(self) -> Literal["napari", "report"]:
        """Show the images in napari or, where that is not installed, the report in a browser.

        Returns
        -------
        {'napari', 'report'}
            What was shown.

        Raises
        ------
        MissingDataError
            Where there is no report, and no napari.

        See Also
        --------
        itkstream.view : The same of a folder.

        Examples
        --------
        >>> registration.show()  # doctest: +SKIP
        'napari'
        """
        return view(self.out)

    def __repr__(self) -> str:
        said = f"Registration({str(self.out)!r}, {self.verdict.outcome}"
        radius = self.facts.get("error", {}).get("median_um")
        return f"{said})" if radius is None else f"{said}, within {radius:.3g} µm)"

    def _repr_html_(self) -> str:
        """Verdict, steps and the middle plane of the aligned image, as Jupyter shows them."""
        levels = open_series(str(self.out / ALIGNED), "level", axes=stored_axes(self.aligned.grid))
        steps = [
            (step["name"], f"{step['local_correlation']:.3f}", step.get("dropped", ""))
            for step in self.facts["steps"]
            if "local_correlation" in step
        ]
        return card(
            "Registration",
            (*self.verdict.describe(), str(self.aligned.grid), str(self.out)),
            [("step", "local correlation", "left out"), *steps],
            plane_png(levels[-1]),
        )

"""Deformable registration engines behind one call, each run in a process of its own.

An engine setting is a function ``align(fixed, moving, spacing)`` that returns the displacement
from fixed to moving points, shape + (3,), in micrometers, in array-axis order. All use all cores.

As a script, ``engines.py ENGINE SETTING FOLDER RESULT`` registers ``fixed.npy`` and
``moving.npy`` of a folder and leaves ``displacement.npy`` beside them. Loading the engine and
compiling its code on a small corner of the images are timed apart.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import processes
from numpy.typing import NDArray

__all__ = ["ENGINES", "REFERENCE", "Engine", "install_hint", "run_engine"]

Floats = NDArray[np.float32]
Align = Callable[[Floats, Floats, Sequence[float]], NDArray[Any]]

_WARM_UP_VOXELS = 32


@dataclass(frozen=True)
class Engine:
    """A registration program.

    Parameters
    ----------
    package : str
        Its distribution on PyPI.
    settings : dict
        Functions by the name of the setting.
    """

    package: str
    settings: dict[str, Align]

    @property
    def installed(self) -> bool:
        """Whether the distribution is there."""
        return processes.version_of(self.package) is not None


def _itkstream(
    fixed: Floats,
    moving: Floats,
    spacing: Sequence[float],
    tutorial: bool = False,
    similarity: str = "lcc",
    engine: Literal["cpu", "gpu"] = "cpu",
) -> Any:
    from itkstream.deform import deformable_align
    from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
    from itkstream.numerics.gpu.engine import check_engine, using_engine

    if tutorial:
        return deformable_align(fixed, moving, spacing, spacing, cc_radius=12, iterations=(20, 10))
    settings = (PIPELINE_MIND if similarity == "mind" else PIPELINE_DEFAULTS).for_voxels(spacing)
    check_engine(engine, here=True)
    with using_engine(engine):
        return deformable_align(fixed, moving, spacing, spacing, settings=settings)


def _itkstream_method(fixed: Floats, moving: Floats, spacing: Sequence[float], method: str) -> Any:
    from itkstream.deform import deformable_align

    return deformable_align(fixed, moving, spacing, spacing, method=method)


def _greedy(
    fixed: Floats, moving: Floats, spacing: Sequence[float], radius: str, iterations: str
) -> Any:
    import SimpleITK as sitk
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    greedy.execute(
        f"-d 3 -i fix mov -o warp -m NCC {radius} -n {iterations} -V 0 "
        f"-threads {processes.cores()}",
        fix=_itk_image(fixed, spacing),
        mov=_itk_image(moving, spacing),
        warp=None,
    )
    return _from_itk(sitk.GetArrayFromImage(greedy["warp"]))


def _ants(
    fixed: Floats,
    moving: Floats,
    spacing: Sequence[float],
    radius: int,
    iterations: Sequence[int],
    metric: str = "CC",
) -> Any:
    import ants

    images = [
        ants.from_numpy(array, spacing=list(map(float, spacing))) for array in (fixed, moving)
    ]
    found = ants.registration(
        *images,
        type_of_transform="SyNOnly",
        initial_transform="Identity",
        syn_metric=metric,
        syn_sampling=radius,
        reg_iterations=tuple(iterations),
    )
    return ants.image_read(found["fwdtransforms"][0]).numpy()


def _demons(fixed: Floats, moving: Floats, spacing: Sequence[float], diffeomorphic: bool) -> Any:
    import SimpleITK as sitk

    pair = [_itk_image(_normalised(array), spacing) for array in (fixed, moving)]
    field = None
    for shrink, iterations in ((4, 60), (2, 30), (1, 10)):
        small = [
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, _sigmas(i, shrink)), [shrink] * 3)
            if shrink > 1
            else i
            for i in pair
        ]
        if diffeomorphic:
            demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        else:
            demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(1.5)
        if field is None:
            field = demons.Execute(*small)
        else:
            linear = sitk.sitkLinear
            field = sitk.Resample(
                field, small[0], sitk.Transform(), linear, 0.0, field.GetPixelID(), True
            )
            field = demons.Execute(*small, field)
    return _from_itk(sitk.GetArrayFromImage(field))


def _greedypy(
    fixed: Floats, moving: Floats, spacing: Sequence[float], iterations: Sequence[int], radius: int
) -> Any:
    from greedypy.greedypy_registration_method import greedypy_registration_method

    spacing = np.asarray(spacing, float)
    factors, sigmas = ([2, 1], [4, 2]) if len(iterations) == 2 else ([4, 2, 1], [4, 2, 1])
    method = greedypy_registration_method(
        fixed, spacing, moving, spacing, list(iterations), factors, sigmas, radius=radius
    )
    with contextlib.redirect_stdout(io.StringIO()):
        method.optimize()
    return method.get_warp()


ENGINES = {
    "itkstream": Engine(
        "itkstream",
        {
            "pipeline": _itkstream,
            "mind": partial(_itkstream, similarity="mind"),
            "20x10 r=12": partial(_itkstream, tutorial=True),
            **{
                method: partial(_itkstream_method, method=method)
                for method in ("demons", "symmetric-demons", "diffeomorphic-demons", "bspline")
            },
        },
    ),
    "itkstream-gpu": Engine("itkstream", {"pipeline": partial(_itkstream, engine="gpu")}),
    "picsl-greedy": Engine(
        "picsl-greedy",
        {
            "NCC 4x4x4 100x50x10": partial(_greedy, radius="4x4x4", iterations="100x50x10"),
            "NCC 2x2x2 100x50x0": partial(_greedy, radius="2x2x2", iterations="100x50x0"),
        },
    ),
    "antspyx": Engine(
        "antspyx",
        {
            "SyN CC r=4 100x50x10": partial(_ants, radius=4, iterations=(100, 50, 10)),
            "SyN CC r=2 100x50x0": partial(_ants, radius=2, iterations=(100, 50, 0)),
            "SyN mattes 100x50x10": partial(
                _ants, radius=32, iterations=(100, 50, 10), metric="mattes"
            ),
        },
    ),
    "SimpleITK": Engine(
        "SimpleITK",
        {
            "diffeomorphic demons 60x30x10": partial(_demons, diffeomorphic=True),
            "fast symmetric demons 60x30x10": partial(_demons, diffeomorphic=False),
        },
    ),
    "greedypy": Engine(
        "greedypy",
        {
            "20x10 r=12": partial(_greedypy, iterations=(20, 10), radius=12),
            "100x50x10 r=4": partial(_greedypy, iterations=(100, 50, 10), radius=4),
        },
    ),
}

REFERENCE = ("picsl-greedy", "NCC 4x4x4 100x50x10")
"""What ratios refer to, where it is part of the run."""


def install_hint(engine: str) -> str:
    """How to get a missing engine.

    Parameters
    ----------
    engine : str
        A key of `ENGINES`.

    Returns
    -------
    str
        One line.
    """
    if engine == "greedypy":
        return "not installed: pip install --no-deps greedypy pyfftw (from 2021; not in [bench])"
    return "not installed: pip install itkstream[bench]"


def run_engine(engine: str, setting: str, folder: Path, timeout: float) -> dict[str, Any]:
    """Run an engine on the images of a folder, in a new process.

    Parameters
    ----------
    engine, setting : str
        Keys of `ENGINES` and of its settings.
    folder : Path
        With ``fixed.npy``, ``moving.npy`` and ``spacing.npy``; ``displacement.npy`` is added.
    timeout : float
        Seconds before it is stopped.

    Returns
    -------
    dict
        ``seconds``, ``cpu_seconds``, ``peak_mb``, ``extra_mb``, ``import_seconds``,
        ``warm_up_seconds``; or ``error``.
    """
    return processes.call(Path(__file__), [engine, setting, str(folder)], timeout)


def _child(engine: str, setting: str, folder: Path, out: Path) -> None:
    fixed, moving, spacing = (np.load(folder / f"{n}.npy") for n in ("fixed", "moving", "spacing"))
    align = ENGINES[engine].settings[setting]
    start = time.perf_counter()
    _load(engine)
    loaded = time.perf_counter()
    corner = tuple(slice(0, min(_WARM_UP_VOXELS, n)) for n in fixed.shape)
    # A corner may hold nothing to register; then its noise compiles the code as well.
    with contextlib.suppress(Exception):
        align(fixed[corner].copy(), moving[corner].copy(), spacing.tolist())
    warm = time.perf_counter()
    field, measured = processes.timed(lambda: align(fixed, moving, spacing.tolist()))
    np.save(folder / "displacement.npy", np.asarray(field, np.float32))
    measured |= {"import_seconds": loaded - start, "warm_up_seconds": warm - loaded}
    out.write_text(json.dumps(measured))


def _load(engine: str) -> None:
    modules = {
        "itkstream": "itkstream.deform",
        "itkstream-gpu": "itkstream.deform",
        "picsl-greedy": "picsl_greedy",
        "antspyx": "ants",
        "SimpleITK": "SimpleITK",
        "greedypy": "greedypy.greedypy_registration_method",
    }
    __import__(modules[engine])


def _itk_image(array: Floats, spacing: Sequence[float]) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([float(s) for s in spacing])
    return image


def _from_itk(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors.transpose(2, 1, 0, 3)


def _sigmas(image: Any, shrink: int) -> list[float]:
    return [shrink / 2 * s for s in image.GetSpacing()]


def _normalised(array: Floats, sigma: float = 6.0) -> Floats:
    """Demons compare intensities: remove the local mean, divide by the local deviation."""
    from scipy.ndimage import gaussian_filter

    array = array / np.percentile(array, 99.9)
    mean = gaussian_filter(array, sigma)
    variance = gaussian_filter(array * array, sigma) - mean * mean
    deviation = np.sqrt(np.maximum(variance, 0))
    return np.asarray((array - mean) / (deviation + 0.1 * deviation.mean()), np.float32)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))

"""What other programs make of the files: each client maps the manifest's points in its own way.

Needs numpy and the client, nothing of itkstream: it runs in the client's own environment as
``python programs.py CLIENT MANIFEST``, and prints a line of JSON for each file. Points are x, y, z
everywhere. Programs that only resample are given ramps, images whose values are positions.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CLIENTS", "check"]

Case = dict[str, Any]
Points = np.ndarray
# Affines are held as doubles, or text of 17 digits; error relative to the size of the coordinates.
EXACT = 1e-9
# Fields are float32, and most programs resample in float32; error in voxels.
SINGLE = 1e-3
# A resampled texture, float32; error in its standard deviations.
TEXTURE = 1e-4

AFFINES = ("affine.tfm", "affine.txt", "affine.mat", "affine.h5")
TEXTS = ("affine.tfm", "affine.txt")
IMAGES = ("nrrd", "mha", "nii.gz")


@dataclass(frozen=True)
class Job:
    """Files to be used as one transform, first what acts first, and the file with the truth."""

    files: tuple[str, ...]
    truth: str
    exact: bool = False


def affines(names: tuple[str, ...] = AFFINES, exact: bool = True) -> list[Job]:
    return [Job((name,), name, exact) for name in names]


def fields(*kinds: str) -> list[Job]:
    return [
        Job((f"{stem}.{kind}",), f"{stem}.{kind}") for stem in ("field", "whole") for kind in kinds
    ]


def chains(*kinds: str) -> list[Job]:
    return [Job((f"field.{kind}", "affine.tfm"), "whole.h5") for kind in kinds]


def written(case: Case, jobs: list[Job]) -> list[Job]:
    """Those that the geometry has: there is no 2-D NIfTI."""
    return [job for job in jobs if all((Path(case["folder"]) / f).exists() for f in job.files)]


def by_points(case: Case, jobs: list[Job], mapper: Callable[..., Points]) -> Iterator[Case]:
    points = np.array(case["points"])
    for job in written(case, jobs):
        paths = [str(Path(case["folder"]) / name) for name in job.files]
        yield judge(case, job, np.asarray(mapper(case, paths, points)))


def by_ramps(case: Case, jobs: list[Job], resample: Callable[..., Any]) -> Iterator[Case]:
    """``resample(paths, fixed, moving, out)`` gives the moving image on the fixed one, a file."""
    folder = Path(case["folder"])
    with tempfile.TemporaryDirectory() as work:
        for job in written(case, jobs):
            paths = [str(folder / name) for name in job.files]
            columns = []
            for k, axis in enumerate("xyz"[: case["ndim"]]):
                out = str(Path(work) / f"{axis}.nrrd")
                resample(paths, str(folder / "fixed.nrrd"), str(folder / f"ramp_{axis}.nrrd"), out)
                columns.append(values_at(out, case["points"]) + case["middle"][k])
            yield judge(case, job, np.stack(columns, axis=1))


def values_at(path: str, points: list[list[float]]) -> Points:
    import SimpleITK as sitk

    image = sitk.ReadImage(path)
    return np.array([image[image.TransformPhysicalPointToIndex(p)] for p in points], float)


def judge(case: Case, job: Job, found: Points) -> Case:
    truth = np.array(case["mapped"][job.truth])
    difference = float(np.abs(found - truth).max()) if found.shape == truth.shape else np.inf
    scale = float(np.abs(truth).max()) if job.exact else case["voxel"]
    name = " + ".join(job.files)
    return row(case, name, difference / scale, EXACT if job.exact else SINGLE, job.exact)


def row(case: Case, name: str, error: float, allowed: float, relative: bool = False) -> Case:
    unit = "relative" if relative else "voxels"
    return {"case": case["name"], "files": name, "error": error, "allowed": allowed, "unit": unit}


def texture(case: Case, name: str, path: str) -> Case:
    """A resampled texture against the one itkstream made; error in standard deviations."""
    found = values_at(path, case["points"])
    wanted = values_at(str(Path(case["folder"]) / "aligned.nrrd"), case["points"])
    error = float(np.abs(found - wanted).max() / wanted.std())
    return {**row(case, f"image through {name}", error, TEXTURE), "unit": "deviations"}


def simpleitk(case: Case) -> Iterator[Case]:
    import SimpleITK as sitk

    def load(path: str) -> Any:
        if path.endswith(IMAGES):
            image = sitk.ReadImage(path, sitk.sitkVectorFloat64)
            return sitk.DisplacementFieldTransform(image)
        return sitk.ReadTransform(path)

    def mapper(_case: Case, paths: list[str], points: Points) -> Points:
        for path in paths:
            transform = load(path)
            points = np.array([transform.TransformPoint(p.tolist()) for p in points])
        return points

    yield from by_points(case, affines() + fields("h5", *IMAGES) + chains("nrrd"), mapper)
    folder = Path(case["folder"])
    with tempfile.TemporaryDirectory() as work:
        for name in ("whole.h5", "whole.mha"):
            fixed, moving = (sitk.ReadImage(str(folder / f"{n}.nrrd")) for n in ("fixed", "moving"))
            out = sitk.Resample(moving, fixed, load(str(folder / name)), sitk.sitkLinear, 0.0)
            sitk.WriteImage(out, str(Path(work) / "out.nrrd"))
            yield texture(case, name, str(Path(work) / "out.nrrd"))


def itk(case: Case) -> Iterator[Case]:
    import itk as itk_

    n = case["ndim"]

    def mapper(_case: Case, paths: list[str], points: Points) -> Points:
        for transform in itk_.transformread(paths[0]):
            points = np.array([transform.TransformPoint(p.tolist()) for p in points])
        return points

    def resample(paths: list[str], fixed: str, moving: str, out: str) -> None:
        vectors = itk_.imread(paths[0], itk_.Vector[itk_.F, n])
        warp = itk_.WarpImageFilter.New(
            Input=itk_.imread(moving, itk_.F), DisplacementField=vectors
        )
        warp.SetOutputParametersFromImage(itk_.imread(fixed, itk_.F))
        itk_.imwrite(itk_.output(warp), out)

    yield from by_points(case, affines() + fields("h5"), mapper)
    yield from by_ramps(case, fields(*IMAGES), resample)


def antspyx(case: Case) -> Iterator[Case]:
    import ants
    import pandas

    n = case["ndim"]

    def mapper(_case: Case, paths: list[str], points: Points) -> Points:
        table = pandas.DataFrame(points, columns=list("xyz"[:n]))
        # A lone .mat would be inverted without a word.
        found = ants.apply_transforms_to_points(n, table, paths, whichtoinvert=[False] * len(paths))
        return found[list("xyz"[:n])].to_numpy()

    def resample(paths: list[str], fixed: str, moving: str, out: str) -> None:
        result = ants.apply_transforms(
            ants.image_read(fixed),
            ants.image_read(moving),
            paths,
            interpolator="linear",
            whichtoinvert=[False] * len(paths),
            singleprecision=False,
        )
        ants.image_write(result, out)

    whole = chains("nrrd", "nii.gz")
    # ANTsPy keeps affines, too, in float32.
    yield from by_points(case, affines(exact=False) + fields("h5", *IMAGES) + whole, mapper)
    yield from by_ramps(case, affines(exact=False) + fields("h5", *IMAGES) + whole, resample)
    folder = Path(case["folder"])
    with tempfile.TemporaryDirectory() as work:
        out = str(Path(work) / "out.nrrd")
        for name in ("whole.h5", "whole.nrrd"):
            ends = (str(folder / f"{side}.nrrd") for side in ("fixed", "moving"))
            resample([str(folder / name)], *ends, out)
            yield texture(case, name, out)


def elastix(case: Case) -> Iterator[Case]:
    import itk as itk_

    def resample(paths: list[str], fixed: str, moving: str, out: str) -> None:
        fixed_image = itk_.imread(fixed, itk_.F)
        maps = itk_.ParameterObject.New()
        for path in paths:
            maps.AddParameterMap(_elastix_map(path, fixed_image))
        with tempfile.TemporaryDirectory() as work:
            result = itk_.transformix_filter(
                itk_.imread(moving, itk_.F), maps, log_to_console=False, output_directory=work
            )
        itk_.imwrite(result, out)

    jobs = affines(("affine.tfm", "affine.txt", "affine.h5"), exact=False) + fields(*IMAGES)
    yield from by_ramps(case, jobs + chains("nrrd"), resample)


def _elastix_map(path: str, fixed: Any) -> dict[str, list[str]]:
    n = fixed.GetImageDimension()
    region = fixed.GetLargestPossibleRegion()

    def texts(values: Any) -> list[str]:
        return [repr(float(v)) for v in values]

    shared = {
        "Size": [str(region.GetSize()[k]) for k in range(n)],
        "Index": ["0"] * n,
        "Spacing": texts(fixed.GetSpacing()),
        "Origin": texts(fixed.GetOrigin()),
        "Direction": texts(np.asarray(fixed.GetDirection()).T.ravel()),
        "FixedImageDimension": [str(n)],
        "MovingImageDimension": [str(n)],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "ResampleInterpolator": ["FinalLinearInterpolator"],
        "Resampler": ["DefaultResampler"],
        "ResultImagePixelType": ["float"],
        "HowToCombineTransforms": ["Compose"],
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "UseDirectionCosines": ["true"],
    }
    if path.endswith(IMAGES):
        own = {
            "Transform": ["DeformationFieldTransform"],
            "DeformationFieldFileName": [path],
            "DeformationFieldInterpolationOrder": ["1"],
            "NumberOfParameters": ["0"],
        }
    else:
        own = {"Transform": ["File"], "TransformFileName": [path]}
    return {**shared, **own}


def greedy(case: Case) -> Iterator[Case]:
    import picsl_greedy

    n = case["ndim"]
    engine = picsl_greedy.Greedy2D() if n == 2 else picsl_greedy.Greedy3D()

    def resample(paths: list[str], fixed: str, moving: str, out: str) -> None:
        words = f"-d {n} -rf {fixed} -ri LINEAR -rm {moving} {out} -r"
        engine.execute(f"{words} {' '.join(paths)} -V 0")

    jobs = fields(*IMAGES)
    if n == 3:
        # Its affines are 3-D ITK text; others are read wrong without a word.
        jobs += affines(TEXTS, exact=False) + chains(*IMAGES)
    yield from by_ramps(case, jobs, resample)


def c3d(case: Case) -> Iterator[Case]:
    from picsl_c3d import Convert3D

    if case["ndim"] == 2:
        return

    def resample(paths: list[str], fixed: str, moving: str, out: str) -> None:
        how = "-interpolation Linear"
        if paths[0].endswith(IMAGES):
            words = f"-mcs {paths[0]} {moving} {how} -warp -o {out}"
        else:
            words = f"{fixed} {moving} {how} -reslice-itk {paths[0]} -o {out}"
        Convert3D().execute(words)

    # c3d resamples on the field's own voxels.
    yield from by_ramps(case, affines(TEXTS, exact=False), resample)
    yield from by_ramps({**case, **case["nodes"]}, fields(*IMAGES), resample)


def nitransforms(case: Case) -> Iterator[Case]:
    from nitransforms import linear, manip, nonlinear

    if case["ndim"] == 2:
        return
    ras = np.array([-1.0, -1.0, 1.0])

    def load(path: str) -> Any:
        if path.endswith("nii.gz"):
            return nonlinear.load(path, fmt="itk")
        return manip.load(path, fmt="itk") if path.endswith("h5") else linear.load(path, fmt="itk")

    def mapper(_case: Case, paths: list[str], points: Points) -> Points:
        points = points * ras
        for path in paths:
            points = np.asarray(load(path).map(points))
        return points * ras

    # It reads affines from text, as float32, and neither NRRD nor MetaImage; and it takes a point
    # to lie on the nearest node of a field.
    yield from by_points(case, affines(TEXTS, exact=False), mapper)
    jobs = [*fields("nii.gz"), Job(("whole.h5",), "whole.h5"), *chains("nii.gz")]
    yield from by_points({**case, **case["nodes"]}, jobs, mapper)


def slicer(case: Case) -> Iterator[Case]:
    from slicer import vtkMRMLScene, vtkSlicerTransformLogic

    if case["ndim"] == 2:
        return
    ras = np.array([-1.0, -1.0, 1.0])

    def mapper(_case: Case, paths: list[str], points: Points) -> Points:
        scene, logic = vtkMRMLScene(), vtkSlicerTransformLogic()
        logic.SetMRMLScene(scene)
        node = logic.AddTransform(paths[0], scene)
        if not node:
            raise RuntimeError(f"Slicer does not load {paths[0]}")
        back = node.GetTransformFromParent()
        return np.array([back.TransformPoint(*(p * ras)) for p in points]) * ras

    yield from by_points(case, affines(), mapper)
    # Slicer interpolates fields by cubics: it has the same values on their nodes.
    yield from by_points({**case, **case["nodes"]}, fields("h5", *IMAGES), mapper)


CLIENTS: dict[str, Callable[[Case], Iterator[Case]]] = {
    "SimpleITK": simpleitk,
    "itk": itk,
    "antspyx": antspyx,
    "itk-elastix": elastix,
    "picsl-greedy": greedy,
    "picsl-c3d": c3d,
    "nitransforms": nitransforms,
    "slicer-core": slicer,
}


def check(client: str, manifest: Path) -> Iterator[Case]:
    """Map the points of every file by one client.

    Parameters
    ----------
    client : str
        One of `CLIENTS`.
    manifest : Path
        What ``transform_files.py`` wrote.

    Yields
    ------
    dict
        case, files, error, allowed, unit.
    """
    for case in json.loads(manifest.read_text()):
        yield from CLIENTS[client](case)


if __name__ == "__main__":
    # Some clients print as they work; results go to a channel of their own.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for found in check(sys.argv[1], Path(sys.argv[2])):
        results.write(json.dumps(found) + "\n")
        results.flush()

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
SPLINES = ("spline.tfm", "spline.txt", "spline.h5")
# B-splines, then an affine.
BENT = ("bent.tfm", "bent.h5")
IMAGES = ("nrrd", "mha", "nii.gz")


@dataclass(frozen=True)
class Job:
    """Files to be used as one transform, first what acts first, and the file with the truth."""

    files: tuple[str, ...]
    truth: str
    exact: bool = False


def affines(names: tuple[str, ...] = AFFINES, exact: bool = True) -> list[Job]:
    return [Job((name,), name, exact) for name in names]


def splines(names: tuple[str, ...] = SPLINES + BENT, exact: bool = True) -> list[Job]:
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

    jobs = affines() + splines() + fields("h5", *IMAGES) + chains("nrrd")
    yield from by_points(case, jobs, mapper)
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

    yield from by_points(case, affines() + splines() + fields("h5"), mapper)
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
    # ANTsPy keeps affines and B-splines, too, in float32.
    jobs = affines(exact=False) + splines(exact=False) + fields("h5", *IMAGES) + whole
    yield from by_points(case, jobs, mapper)
    yield from by_ramps(case, jobs, resample)
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

    yield from by_points(case, affines() + splines(), mapper)
    # Slicer interpolates fields by cubics: it has the same values on their nodes.
    yield from by_points({**case, **case["nodes"]}, fields("h5", *IMAGES), mapper)


def elastix_writes(folder: Path) -> Iterator[Case]:
    """Registers small images with every kind of transform; transformix says where points go."""
    import itk as itk_

    rng = np.random.default_rng(0)
    size = (30, 28, 26)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(float)
    noise = sum(np.sin(index @ rng.normal(0, 0.35, 3) + rng.uniform(0, 6)) for _ in range(12))
    images = [itk_.image_from_array(a.astype(np.float32)) for a in (noise, np.roll(noise, 1, 2))]
    for image in images:
        image.SetSpacing([1.5, 1.0, 0.8])
        image.SetOrigin([-20.0, 30.0, 5.0])
    points = np.array([-20.0, 30.0, 5.0]) + rng.uniform(0.3, 0.7, (20, 3)) * [37, 26, 23]
    for kinds in (("translation",), ("rigid",), ("similarity",), ("affine",), ("rigid", "bspline")):
        place = folder / "-".join(kinds)
        place.mkdir()
        maps = itk_.ParameterObject.New()
        for kind in kinds:
            known = "rigid" if kind == "similarity" else kind
            settings = maps.GetDefaultParameterMap(known, 1)
            settings["MaximumNumberOfIterations"] = ["20"]
            settings["FinalGridSpacingInPhysicalUnits"] = ["9"]
            if kind == "similarity":
                settings["Transform"] = ["SimilarityTransform"]
            maps.AddParameterMap(settings)
        _, found = itk_.elastix_registration_method(
            *images, parameter_object=maps, output_directory=str(place), log_to_console=False
        )
        listed = place / "points.txt"
        rows = [" ".join(map(repr, p)) for p in points.tolist()]
        listed.write_text("\n".join(["point", str(len(points)), *rows]) + "\n")
        itk_.transformix_filter(
            images[1],
            found,
            fixed_point_set_file_name=str(listed),
            output_directory=str(place),
            log_to_console=False,
        )
        lines = (place / "outputpoints.txt").read_text().splitlines()
        mapped = [line.split("OutputPoint = [")[1].split("]")[0].split() for line in lines]
        last = place / f"TransformParameters.{len(kinds) - 1}.txt"
        # Text of six digits.
        yield foreign(last, points, np.array(mapped, float), 1e-4)


def slicer_writes(folder: Path) -> Iterator[Case]:
    """Loads the rotated case and writes it again, in Slicer's own way."""
    from slicer import vtkMRMLScene, vtkSlicerTransformLogic

    case = json.loads((folder / "case.json").read_text())
    ras = np.array([-1.0, -1.0, 1.0])
    kinds = {"affine": ("tfm", "txt", "h5", "mat"), "field": ("h5", "nii.gz", "nrrd", "tfm", "mha")}
    kinds["whole"] = ("h5", "tfm")
    for stem, endings in kinds.items():
        for ending in endings:
            scene, logic = vtkMRMLScene(), vtkSlicerTransformLogic()
            logic.SetMRMLScene(scene)
            node = logic.AddTransform(str(Path(case["folder"]) / f"{stem}.h5"), scene)
            storage = node.CreateDefaultStorageNode()
            storage.SetFileName(str(folder / f"{stem}.{ending}"))
            if not storage.WriteData(node):
                raise RuntimeError(f"Slicer does not write {stem}.{ending}")
            points = np.array(case["nodes"]["points"])
            back = node.GetTransformFromParent()
            mapped = np.array([back.TransformPoint(*(p * ras)) for p in points]) * ras
            # Slicer computes with doubles; images hold float32.
            yield foreign(folder / f"{stem}.{ending}", points, mapped, 1e-4)
    yield from slicer_landmarks(folder, np.array(case["nodes"]["points"]))


def slicer_landmarks(folder: Path, points: Points) -> Iterator[Case]:
    """Landmark registrations, either way round, which Slicer stores as splines or inverses."""
    from slicer import vtkMRMLScene
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonTransforms import vtkThinPlateSplineTransform

    rng, ras = np.random.default_rng(0), np.array([-1.0, -1.0, 1.0])
    low, high = points.min(axis=0), points.max(axis=0)
    source = rng.uniform(low, high, (12, 3)) * ras
    landmarks = source, source + rng.normal(0, 0.02 * (high - low).max(), (12, 3))
    for name, way, allowed in (
        ("forth", "FromParent", 1e-9),
        # Slicer inverts to a thousandth.
        ("back", "ToParent", 2e-3),
    ):
        spline = vtkThinPlateSplineTransform()
        spline.SetBasisToR()
        for listed, put in zip(
            landmarks, (spline.SetSourceLandmarks, spline.SetTargetLandmarks), strict=True
        ):
            kept = vtkPoints()
            kept.SetDataTypeToDouble()
            for point in listed:
                kept.InsertNextPoint(*point)
            put(kept)
        scene = vtkMRMLScene()
        node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
        getattr(node, f"SetAndObserveTransform{way}")(spline)
        back = node.GetTransformFromParent()
        mapped = np.array([back.TransformPoint(*(p * ras)) for p in points]) * ras
        for ending in ("tfm", "h5"):
            path = folder / f"landmarks_{name}.{ending}"
            storage = node.CreateDefaultStorageNode()
            storage.SetFileName(str(path))
            if not storage.WriteData(node):
                raise RuntimeError(f"Slicer does not write {path.name}")
            yield foreign(path, points, mapped, allowed)


def foreign(path: Path, points: Points, mapped: Points, allowed: float) -> Case:
    """A file somebody else wrote, and what it says there."""
    return {
        "path": str(path),
        "points": points.tolist(),
        "mapped": mapped.tolist(),
        "allowed": allowed,
    }


WRITERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "itk-elastix": elastix_writes,
    "slicer-core": slicer_writes,
}

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
    if len(sys.argv) > 3:
        written_by = Path(sys.argv[3])
        first = json.loads(Path(sys.argv[2]).read_text())
        rotated = next(case for case in first if case["name"] == "rotated")
        (written_by / "case.json").write_text(json.dumps(rotated))
        outcome = WRITERS[sys.argv[1]](written_by)
    else:
        outcome = check(sys.argv[1], Path(sys.argv[2]))
    for found in outcome:
        results.write(json.dumps(found) + "\n")
        results.flush()

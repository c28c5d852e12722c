"""Damaged transform files: an error that says so, or a transform that maps points."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from itkstream.errors import ItkstreamError
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid
from itkstream.io.transforms.files import read_transform, write_transform

COUNT = 200
GRID = Grid((4, 5, 6), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), axes=("z", "y", "x"))
POINTS = GRID.positions().reshape(-1, 3)[::17]
# What takes the place of a part of a file: numbers that are none, too many, or far too large.
TOKENS = (b"", b"\0", b"-1", b"nan", b"inf", b"1e300", b"99999999999", b" ", b"\n", b"1,5", b"\xff")


def matrix() -> AffineTransform:
    turned = np.eye(4)
    turned[:3] += 0.1 * np.arange(12).reshape(3, 4)
    return AffineTransform(turned, ("z", "y", "x"))


def field() -> DisplacementField:
    vectors = np.random.default_rng(0).normal(size=(*GRID.shape, 3)).astype(np.float32)
    return DisplacementField(vectors, GRID)


def elastix(path: Path) -> None:
    path.write_text(
        '(Transform "EulerTransform")\n(NumberOfParameters 6)\n'
        "(TransformParameters 0.1 0.2 0.3 4 5 6)\n"
        '(InitialTransformParameterFileName "NoInitialTransform")\n'
        '(HowToCombineTransforms "Compose")\n(FixedImageDimension 3)\n(MovingImageDimension 3)\n'
        '(UseDirectionCosines "true")\n(CenterOfRotationPoint 7 8 9)\n(ComputeZYX "true")\n'
    )


def minc(path: Path) -> None:
    path.write_text(
        "MNI Transform File\n%ITK-XFM writer\n\nTransform_Type = Linear;\nLinear_Transform =\n"
        " 1.1 0.1 0.2 3\n 0.3 0.9 0.05 4\n 0 0.1 1.2 5;\n"
    )


def plain(path: Path) -> None:
    write_transform(path, field())


def both(path: Path) -> None:
    write_transform(path, CompositeTransform((field(), matrix())))


MAKERS: dict[str, Callable[[Path], None]] = {
    "t.tfm": lambda path: write_transform(path, matrix()) and None,
    "t.mat": lambda path: write_transform(path, matrix()) and None,
    "t.h5": both,
    "t.txt": elastix,
    "t.xfm": minc,
    "t.nrrd": plain,
    "t.mha": plain,
    "t.nii": plain,
    "t.ome.zarr": both,
}
# ITK's image readers are not ours: where they abort, another process ends.
APART = ("t.nrrd", "t.mha", "t.nii")


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled, or the end cut off; half the time near the start."""
    reach = len(content) if rng.random() < 0.5 else min(len(content), 600)
    first, last = sorted(rng.integers(0, reach + 1, 2).tolist())
    last = min(last, first + int(rng.integers(1, 30)))
    how = rng.integers(0, 5)
    if how == 0:
        return content[:first]
    if how == 1:
        return content[:first] + TOKENS[rng.integers(0, len(TOKENS))] + content[last:]
    if how == 2:
        return content[:last] + content[first:]
    if how == 3:
        return content[:first] + rng.bytes(last - first) + content[last:]
    flipped = bytearray(content)
    for place in rng.integers(0, reach, 3).tolist():
        flipped[place % len(content)] ^= 1 << int(rng.integers(0, 8))
    return bytes(flipped)


def outcome(path: Path) -> str:
    """What comes of reading a file and mapping points through it."""
    try:
        transform = read_transform(path, ("z", "y", "x"))
        mapped = transform.apply(POINTS)
    except ItkstreamError:
        return "refused"
    # Numbers of 1e300 are numbers.
    assert mapped.shape == POINTS.shape
    return "read"


def fuzz(name: str, folder: Path) -> dict[str, int]:
    """Damage a file, or the files of a store, again and again; anything but our errors passes."""
    path = folder / name
    MAKERS[name](path)
    parts = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    rng = np.random.default_rng(len(name))
    found = {"refused": 0, "read": 0}
    for _ in range(COUNT):
        part = parts[rng.integers(0, len(parts))]
        whole = part.read_bytes()
        part.write_bytes(damaged(whole, rng))
        with np.errstate(all="ignore"):
            try:
                found[outcome(path)] += 1
            except BaseException:
                kept = Path(shutil.copy(part, folder / f"bad{part.suffix}"))
                sys.stderr.write(f"{kept}\n")
                raise
        part.write_bytes(whole)
    return found


@pytest.mark.parametrize("name", [n for n in MAKERS if n not in APART])
def test_damage_is_an_error_or_a_transform(tmp_path: Path, name: str) -> None:
    found = fuzz(name, tmp_path)
    assert sum(found.values()) == COUNT
    assert found["refused"] > COUNT / 10


def test_damaged_images_never_end_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(APART)


def test_fields_in_hdf5_of_another_length(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    plain(path)
    with h5py.File(path, "r+") as file:
        entry = file["TransformGroup/0"]
        values = entry["TransformParameters"][:-1]
        del entry["TransformParameters"]
        entry["TransformParameters"] = values
    with pytest.raises(ItkstreamError, match="has 360 parameters; got 359"):
        read_transform(path)


if __name__ == "__main__":
    for each in APART:
        fuzz(each, Path(sys.argv[1]))
        sys.stdout.write(f"{each}\n")
        sys.stdout.flush()

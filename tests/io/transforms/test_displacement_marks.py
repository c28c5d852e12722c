"""What a displacement image says of its vectors: understood, or refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.errors import InputError
from itkstream.io.transforms.files import read_transform

SIZES, LPS = (10, 8, 6), "left-posterior-superior"
FIRST = {"sizes": "3 10 8 6", "space directions": "none (2,0,0) (0,2,0) (0,0,2)"}
LAST = {"sizes": "10 8 6 3", "space directions": "(2,0,0) (0,2,0) (0,0,2) none"}


def vectors() -> np.ndarray:
    """Axes z, y, x; components x first."""
    return np.random.default_rng(0).normal(size=(*reversed(SIZES), 3)).astype("<f4")


def nrrd(path: Path, more: str = "", last: bool = False, **fields: str) -> Path:
    data = vectors()
    given = {
        "type": "float",
        "dimension": "4",
        "space": LPS,
        **(LAST if last else FIRST),
        "kinds": "domain domain domain vector" if last else "vector domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(5,6,7)",
        **{key.replace("_", " "): value for key, value in fields.items()},
    }
    head = "NRRD0005\n" + "".join(f"{key}: {value}\n" for key, value in given.items()) + more
    stored = np.moveaxis(data, -1, 0) if last else data
    path.write_bytes(head.encode() + b"\n" + np.ascontiguousarray(stored).tobytes())
    return path


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"last": True},
        {"more": "displacement field type:=resampling\n"},
        {"more": "displacement field type:=Resampling\nintent_code:=1006\n"},
        {"kinds": "covariant-vector domain domain domain"},
        {"kinds": "list domain domain domain"},
        {"measurement_frame": "(1,0,0) (0,1,0) (0,0,1)"},
    ],
)
def test_resampling_fields(tmp_path: Path, given: dict[str, str]) -> None:
    path = nrrd(tmp_path / "t.nrrd", **given)
    found = read_transform(path)
    np.testing.assert_array_equal(np.asarray(found.data), vectors()[..., ::-1])
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    point = np.array([11.3, 12.1, 10.2])
    mapped = read_transform(path, ("x", "y", "z")).apply(point)
    np.testing.assert_allclose(mapped, itk.TransformPoint(point.tolist()), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"more": "displacement field type:=modeling\n"}, "from moving to fixed"),
        ({"more": "displacement field type:= Modeling \n"}, "from moving to fixed"),
        ({"more": "displacement field type:=other\n"}, "field type' 'other'"),
        ({"space": "right-anterior-superior"}, "in the space right-anterior-superior"),
        ({"space": "RAS"}, "in the space ras"),
        ({"space": "left-anterior-superior"}, "in the space left-anterior-superior"),
        ({"measurement_frame": "(0,1,0) (1,0,0) (0,0,1)"}, "measurement frame"),
        ({"kinds": "RGB-color domain domain domain"}, "of the kind rgb-color"),
        ({"kinds": "point domain domain domain"}, "of the kind point"),
        ({"kinds": "3-normal domain domain domain"}, "of the kind 3-normal"),
    ],
)
def test_marks_that_say_otherwise(tmp_path: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_transform(nrrd(tmp_path / "t.nrrd", **given))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (1007, b"", None),
        (0, b"", "as many components as axes"),
        (1008, b"", "NIfTI intent 1008"),
        (1005, b"", "NIfTI intent 1005"),
        (2006, b"", "a field of FSL"),
        (1007, b"NREG_TRANS", "a field of NiftyReg"),
        (1007, b"Mapping", "a field of SPM"),
    ],
)
def test_intents_of_nifti(
    tmp_path: Path, code: int, name: bytes, message: str | None, suffix: str
) -> None:
    plain = tmp_path / "t.nii"
    sitk.WriteImage(sitk.GetImageFromArray(vectors(), isVector=True), str(plain))
    content = bytearray(plain.read_bytes())
    content[68:70] = code.to_bytes(2, "little")
    content[328:344] = name.ljust(16, b"\0")
    path = tmp_path / f"u{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    if message is None:
        np.testing.assert_array_equal(np.asarray(read_transform(path).data), vectors()[..., ::-1])
        return
    with pytest.raises(InputError, match=message):
        read_transform(path)

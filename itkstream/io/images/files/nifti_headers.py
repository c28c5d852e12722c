"""Headers of NIfTI files: unit, agreement of the two geometries, and whether the file is whole."""

from __future__ import annotations

import gzip
import logging
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itkstream.errors import InputError, UnreadableDataError
from itkstream.io.images.files.headers import FileHeader, check_length, require_files

__all__ = ["read_nifti_header", "state_no_unit"]

logger = logging.getLogger(__name__)

_SIZE = 348
_SIZE_OF_2 = 540
# Bits per voxel of the data types that ITK reads.
_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32}
_BITS |= {1024: 64, 1280: 64, 1792: 128, 2304: 32}
# ITK turns all lengths into millimeters.
_MILLIMETERS = {1: 1e3, 2: 1.0, 3: 1e-3}
_OWN_UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
_RGB = (128, 2304)
_UNITS, _LENGTHS = 123, 0b111  # where xyzt_units is, and its bits for the unit of length


def read_nifti_header(path: Path) -> FileHeader:
    """Read and check the header of a NIfTI file, or of a pair of ``.hdr`` and ``.img``.

    Its unit is millimeter where the file states any, since ITK converts.
    """
    pair = path.suffix.lower() in (".hdr", ".img")
    head = path.with_suffix(_as_written(path, ".hdr")) if pair else path
    data = path.with_suffix(_as_written(path, ".img")) if pair else path
    require_files(path, (head, data), "the pair of .hdr and .img")
    raw = _first_bytes(head)
    order = next((o for o in "<>" if struct.unpack(o + "i", raw[:4])[0] == _SIZE), None)
    if _SIZE_OF_2 in (struct.unpack(o + "i", raw[:4])[0] for o in "<>"):
        raise InputError(
            f"{path} is NIfTI-2, and version 1 is read: save it as NIfTI-1, with nibabel for "
            "instance (Nifti1Image.from_image), or as NRRD"
        )
    if order is None or raw[344:348] not in (b"n+1\0", b"ni1\0"):
        raise InputError(f"{path} is no NIfTI file: sizeof_hdr or magic is another's")
    needed = _voxel_bytes(raw, order, path)
    offset = struct.unpack(order + "f", raw[108:112])[0]
    if not (math.isfinite(offset) and (pair or offset >= _SIZE) and 0 <= offset < 2**31):
        raise InputError(f"{path}: vox_offset is {offset:g}; voxels begin at byte 352 or later")
    _check_scaling(raw, order, path)
    packed = path.name.lower().endswith(".gz")
    check_length(path, int(offset) + needed, data.stat().st_size, packed=packed)
    _compare_geometries(raw, order, path)
    code = raw[_UNITS] & _LENGTHS
    return FileHeader(
        files=(head, data) if pair else (),
        unit="millimeter" if code in _MILLIMETERS else None,
        itk_scale=_MILLIMETERS.get(code, 1.0),
        own_unit=_OWN_UNITS.get(code),
        packed=((data, 0),) if packed else (),
        needed=int(offset) + needed,
        # ITK 5.4 aborts the process where it reads a region of a NIfTI file of vectors.
        streams=not packed and _components(raw, order) == 1,
    )


def state_no_unit(path: Path) -> None:
    """Take the claim of millimeters, which ITK always makes, from a NIfTI file it has written."""
    if path.name.lower().endswith(".gz"):
        plain = path.with_name(f"{path.name}.unpacked")
        with gzip.open(path, "rb") as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
        state_no_unit(plain)
        with plain.open("rb") as file, gzip.open(path, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(file, packed)
        plain.unlink()
        return
    with path.open("r+b") as file:
        file.seek(_UNITS)
        code = file.read(1)[0]
        file.seek(_UNITS)
        file.write(bytes([code & ~_LENGTHS]))


def _as_written(path: Path, suffix: str) -> str:
    return suffix.upper() if path.suffix.isupper() else suffix


def _first_bytes(path: Path) -> bytes:
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            raw = bytes(file.read(_SIZE))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as NIfTI: {error}") from error
    if len(raw) < _SIZE:
        raise UnreadableDataError(
            f"{path} is cut short, or no NIfTI file: a header has {_SIZE} bytes; got {len(raw)}"
        )
    return raw


def _voxel_bytes(raw: bytes, order: str, path: Path) -> int:
    count, *sizes = struct.unpack(order + "8h", raw[40:56])
    kind, bits = struct.unpack(order + "2h", raw[70:74])
    if not 1 <= count <= 7 or any(n < 1 for n in sizes[:count]):
        raise InputError(f"{path}: dim must be 1 to 7 positive sizes; got {[count, *sizes]}")
    if kind not in _BITS or bits != _BITS[kind]:
        raise InputError(
            f"{path}: datatype {kind} with bitpix {bits} is not read; integers of 8 to 64 bits, "
            "float32, float64 and RGB are"
        )
    steps = struct.unpack(order + "8f", raw[76:108])[1 : count + 1]
    if not np.isfinite(steps).all():
        raise InputError(f"{path}: pixdim must be finite; got {steps}")
    return math.prod(sizes[:count]) * bits // 8


def _check_scaling(raw: bytes, order: str, path: Path) -> None:
    slope, intercept = struct.unpack(order + "2f", raw[112:120])
    if slope == 0 and intercept != 0:
        raise InputError(
            f"{path}: scl_slope is 0, which means no scaling, and ITK adds scl_inter, "
            f"{intercept:g}, all the same: set it to 0"
        )


def _components(raw: bytes, order: str) -> int:
    """Count the components of a voxel: colours, or the fifth axis."""
    if struct.unpack(order + "h", raw[70:72])[0] in _RGB:
        return 3
    axes, fifth = (struct.unpack(order + "h", raw[k : k + 2])[0] for k in (40, 50))
    return int(fifth) if axes >= 5 else 1


def _compare_geometries(raw: bytes, order: str, path: Path) -> None:
    """Warn where the two matrices differ: readers differ on which of them counts."""
    qform_code, sform_code = struct.unpack(order + "2h", raw[252:256])
    sizes = np.array(struct.unpack(order + "8h", raw[40:56])[1:4])
    if qform_code < 1 or sform_code < 1:
        return
    sform = np.reshape(struct.unpack(order + "12f", raw[280:328]), (3, 4))
    qform = _qform(raw, order)
    ends = np.append(np.maximum(sizes - 1, 0), 1)
    apart = float(np.abs((sform - qform) @ ends).max())
    apart = max(apart, float(np.abs((sform - qform)[:, 3]).max()))
    step = float(np.linalg.norm(sform[:, :3], axis=0).min())
    if not apart <= 0.5 * step:
        logger.warning(
            "%s holds two geometries, sform and qform, that lie up to %.3g apart in its unit; "
            "programs differ on which counts, and ITK's choice is taken. Make them equal",
            path,
            apart,
        )


def _qform(raw: bytes, order: str) -> NDArray[np.float64]:
    b, c, d, *shift = (float(v) for v in struct.unpack(order + "6f", raw[256:280]))
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    side, *steps = struct.unpack(order + "4f", raw[76:92])
    scale = np.array(steps) * (1.0, 1.0, -1.0 if side < 0 else 1.0)
    return np.column_stack([turn * scale, shift])

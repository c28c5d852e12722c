"""Damaged image files: an error of this package that names the file, or an image that is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

FORMATS = ("tif", "ome.tif", "nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")
# Set ITKSTREAM_FUZZ=200, say, for a longer run.
ROUNDS = int(os.environ.get("ITKSTREAM_FUZZ", "40"))

# In a process of its own: a header that makes a library abort would end the tests.
WORKER = """
import logging, resource, sys, warnings
from pathlib import Path
import numpy as np
import itkstream
from itkstream.errors import ItkstreamError
logging.disable()
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
for name in sys.argv[1:]:
    print("now", name, flush=True)
    try:
        image = itkstream.open_image(name, voxel_spacing=1.0)
        assert image.data.shape == image.grid.shape, "shape"
        if np.prod(image.shape, dtype=float) < 2**24:
            voxels = image.read()
            assert (voxels.shape, voxels.dtype) == (image.shape, image.dtype), "read"
            print("image", voxels.shape, flush=True)
        else:
            print("large", image.shape, Path(name).stat().st_size, flush=True)
    except ItkstreamError as error:
        assert Path(name).name in str(error), f"{error} does not name the file"
        print("refused", flush=True)
"""


def sound(kind: str, path: Path) -> bytes:
    """The bytes of a sound file."""
    array = np.random.default_rng(7).integers(0, 999, (5, 12, 14)).astype(np.uint16)
    if kind == "tif":
        tifffile.imwrite(path, array, imagej=True, metadata={"axes": "ZYX", "unit": "um"})
    elif kind == "ome.tif":
        about = {"axes": "ZYX", "PhysicalSizeX": 0.5}
        tifffile.imwrite(path, array, tile=(16, 16), compression="zlib", metadata=about)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path.read_bytes()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, numbers replaced, cut short, or a piece lost; mostly near the beginning."""
    raw = bytearray(content)
    near = min(len(raw), 700)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, near if rng.random() < 0.8 else len(raw)))
        how = rng.integers(0, 5)
        if how == 0:
            raw[at] = int(rng.integers(0, 256))
        elif how == 1:
            width = int(rng.choice([2, 4, 8]))
            edge = [b"\xff" * width, b"\0" * width, b"\xff" * (width - 1) + b"\x7f"]
            raw[at : at + width] = edge[int(rng.integers(0, 3))]
        elif how == 2:
            digits = [k for k, byte in enumerate(raw[:near]) if 48 <= byte <= 57]
            if digits:
                new = str(rng.choice(["-1", "0", "99999999", "7", "nan", "1e30"])).encode()
                place = int(rng.choice(digits))
                raw[place : place + 1] = new
        elif how == 3:
            del raw[at : at + int(rng.integers(1, 40))]
        else:
            del raw[max(at, 1) :]
        if len(raw) < 2:
            break
        near = min(near, len(raw))
    return bytes(raw)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_refused_or_read(tmp_path, kind):
    content = sound(kind, tmp_path / f"sound.{kind}")
    rng = np.random.default_rng(11)
    names = []
    for k in range(ROUNDS):
        path = tmp_path / f"damaged{k}.{kind}"
        path.write_bytes(damaged(content, rng))
        names.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, *names], capture_output=True, text=True, timeout=600
    )
    last = done.stdout.splitlines()[-3:]
    assert done.returncode == 0, f"{last}\n{done.stderr[-3000:]}"
    told = [line for line in done.stdout.splitlines() if not line.startswith("now")]
    assert len(told) == ROUNDS
    # No file holds more voxels than its bytes can unpack to.
    assert not [line for line in told if line.startswith("large")]

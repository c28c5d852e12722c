"""Make the tutorial's pair of images and their ground truth: ``fix.n5``, ``mov.n5``, and so on.

Run as ``python resources/make_tutorial_data.py --out DIR``. The same version of the libraries
gives the same files, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from itkstream.errors import ExistingOutputError
from itkstream.geometry import Image
from itkstream.phantoms import make_pair, tutorial_settings

CHUNK = (64, 64, 48)
NAMES = ("fix.n5", "mov.n5", "tissue.n5", "truth.json")

log = logging.getLogger("make_tutorial_data")


def write_dataset(
    path: Path, data: NDArray[Any], spacing: tuple[float, ...], factors: tuple[int, ...]
) -> None:
    """Write one N5 dataset, dimensions in x, y, z, compressed with gzip.

    Parameters
    ----------
    path : Path
        Where the dataset goes.
    data : ndarray
        Its voxels.
    spacing : tuple of float
        Voxel spacing at full resolution, in µm.
    factors : tuple of int
        How many voxels of full resolution one of these spans, per axis.
    """
    metadata = {
        "dimensions": data.shape,
        "blockSize": [min(c, n) for c, n in zip(CHUNK, data.shape, strict=True)],
        "dataType": str(data.dtype),
        "compression": {"type": "gzip", "level": 9},
    }
    store = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": metadata,
            "create": True,
        }
    ).result()
    store.write(data).result()
    attributes = json.loads((path / "attributes.json").read_text())
    # Plain numbers, as EASI-FISH data have them: scripts multiply them by the factors.
    attributes["pixelResolution"] = spacing
    attributes["downsamplingFactors"] = factors
    write_json(path / "attributes.json", attributes)


def write_container(path: Path, image: Image) -> None:
    """Write an image and its average over groups of 2 x 2 x 2 voxels.

    Parameters
    ----------
    path : Path
        The N5 container.
    image : Image
        The image at full resolution; even shape.
    """
    data, spacing = image.read(), image.spacing
    average = np.rint(shrink(data)).astype(data.dtype)
    write_dataset(path / "highres", data, spacing, (1, 1, 1))
    write_dataset(path / "lowres", average, spacing, (2, 2, 2))
    root = {
        "n5": "2.0.0",
        "pixelResolution": {"dimensions": spacing, "unit": "um"},
        "scales": [[1, 1, 1], [2, 2, 2]],
    }
    write_json(path / "attributes.json", root)


def shrink(data: NDArray[Any]) -> NDArray[np.float64]:
    """Average groups of 2 x 2 x 2 voxels.

    Parameters
    ----------
    data : ndarray
        Three axes of even length.

    Returns
    -------
    ndarray
        Half as long on every axis.
    """
    x, y, z = (n // 2 for n in data.shape)
    return np.asarray(data.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5)), np.float64)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whose bytes depend on the values alone.

    Parameters
    ----------
    path : Path
        The file.
    values : dict
        What it holds.
    """
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def clear(folder: Path, overwrite: bool) -> None:
    """Make room for the output.

    Parameters
    ----------
    folder : Path
        Where the output goes; made if it is missing.
    overwrite : bool
        Whether what an earlier run left may be deleted.

    Raises
    ------
    ExistingOutputError
        Where something is there and `overwrite` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = [folder / name for name in NAMES if (folder / name).exists()]
    if there and not overwrite:
        raise ExistingOutputError(f"{there[0]} exists; give another --out, or --overwrite")
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Parse the arguments and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    clear(given.out, given.overwrite)
    pair = make_pair(tutorial_settings())
    write_container(given.out / "fix.n5", pair.fixed)
    write_container(given.out / "mov.n5", pair.moving)
    tissue = (shrink(pair.tissue) >= 0.5).astype(np.uint8)
    write_dataset(given.out / "tissue.n5" / "lowres", tissue, pair.fixed.spacing, (2, 2, 2))
    write_json(given.out / "tissue.n5" / "attributes.json", {"n5": "2.0.0"})
    (given.out / "truth.json").write_text(pair.truth.to_json() + "\n")
    apart = pair.error(lambda points: points).summary()
    log.info("unregistered: median %(median_um).1f um, %(median_vox).1f voxels", apart)


if __name__ == "__main__":
    main()

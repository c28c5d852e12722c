"""Three rounds of one tissue, two channels each, as OME-Zarr, with their true transforms."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from itkstream.geometry import Image
from itkstream.io import create_ome_zarr
from itkstream.io.images.stores.ngff_metadata import ChannelLook
from itkstream.io.images.stores.ome_zarr_writer import name_channels
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair

MOTIONS = (
    Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=0.5),
    Motion(rotation_deg=5, stretch=0.01, shear=0.01, shift=0.05, warp_um=0.5),
)


class Rounds(NamedTuple):
    """Files of rounds, the first of which the others come from, and these pairs."""

    paths: tuple[Path, ...]
    pairs: tuple[PhantomPair, ...]


def write_round(path: Path, nuclei: Image, gene: str, dtype: str = "uint16") -> Path:
    """Write a round: a channel called after a gene, and DAPI after it."""
    nuclei = nuclei.reorder(("z", "y", "x"))
    voxels = nuclei.read()
    stored = create_ome_zarr(path, nuclei.grid, dtype, chunks=(32,) * 3, series={"c": 2})
    stored[0] = (voxels[::-1] // 2).astype(dtype)
    stored[1] = voxels.astype(dtype)
    window = (0.0, 65535.0, 0.0, 4000.0)
    looks = [ChannelLook(name, "FFFFFF", window, True) for name in (gene, "DAPI")]
    name_channels(path, looks)
    return path


@pytest.fixture(scope="session")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """r1, r2 and r3: small, each of the others a few degrees and µm from the first."""
    folder = tmp_path_factory.mktemp("rounds")
    sizes = {"shape": (56, 52, 44), "spacing": (1.0, 1.0, 1.2), "seed": 3, "radii_um": (2.5, 5.0)}
    pairs = [make_pair(PhantomSettings(**sizes, motion=motion)) for motion in MOTIONS]
    images = [pairs[0].fixed, *(pair.moving for pair in pairs)]
    paths = [
        write_round(folder / f"r{k}.ome.zarr", image, f"gene{k}")
        for k, image in enumerate(images, 1)
    ]
    return Rounds(tuple(paths), tuple(pairs))


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round that shows nothing that the others do."""
    rng = np.random.default_rng(0)
    grid = make_pair(PhantomSettings((40, 40, 40), (1.0, 1.0, 1.2), radii_um=(2.5, 5.0))).fixed.grid
    image = Image(rng.integers(0, 900, grid.shape, np.uint16), grid)
    return write_round(tmp_path_factory.mktemp("noise") / "noise.ome.zarr", image, "gene")

"""Three rounds of one tissue, two channels each, as OME-Zarr, with their true transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from round_files import Rounds, write_round

from itkstream.geometry import Image
from itkstream.phantoms import Motion, PhantomSettings, make_pair

MOTIONS = (
    Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.03, warp_um=0.5),
    Motion(rotation_deg=5, stretch=0.01, shear=0.01, shift=0.05, warp_um=0.5),
)


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
    grid = make_pair(PhantomSettings((24, 24, 24), (1.0, 1.0, 1.2), radii_um=(2.5, 5.0))).fixed.grid
    image = Image(rng.integers(0, 900, grid.shape, np.uint16), grid)
    return write_round(tmp_path_factory.mktemp("noise") / "noise.ome.zarr", image, "gene")

"""Channels that nobody chose: the ones that match are taken, and none where none does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import itkstream
from itkstream.errors import UnstatedChannelError
from itkstream.geometry import Grid
from itkstream.io import create_ome_zarr
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.progress.reporters import LogReporter
from itkstream.registration.advice.channels import choose_pair
from itkstream.registration.steps import RansacAffine

SHAPE = (48, 44, 40)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two rounds of noise and nuclei, the channels in another order, and one of noise alone."""
    motion = Motion(rotation_deg=3, stretch=0.01, shear=0.01, shift=0.03, warp_um=0.5)
    pair = make_pair(
        PhantomSettings(SHAPE, (1.0, 1.0, 1.2), seed=3, radii_um=(2.5, 5.0), motion=motion)
    )
    folder = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(0)

    def write(name: str, grid: Grid, *channels: np.ndarray) -> Path:
        path = folder / f"{name}.ome.zarr"
        stored = create_ome_zarr(path, grid, "uint16", chunks=(32,) * 3, series={"c": 2})
        for number, voxels in enumerate(channels):
            stored[number] = voxels
        return path

    def noise(grid: Grid) -> np.ndarray:
        return rng.integers(0, 900, grid.shape, np.uint16)

    fixed, moving = (image.reorder(("z", "y", "x")) for image in (pair.fixed, pair.moving))
    return {
        "fixed": write("fixed", fixed.grid, noise(fixed.grid), fixed.read()),
        "moving": write("moving", moving.grid, moving.read(), noise(moving.grid)),
        "noise": write("noise", moving.grid, noise(moving.grid), noise(moving.grid)),
    }


def test_the_channels_that_match_are_taken_and_recorded(
    files: dict[str, Path], tmp_path: Path
) -> None:
    settings = itkstream.RegisterSettings(error_map=False, report=False)
    steps = (RansacAffine(search="never"),)
    found = itkstream.register(files["fixed"], files["moving"], tmp_path / "out", steps, settings)
    opened = [found.facts[which]["opened"]["channel"] for which in ("fixed", "moving")]
    assert opened == [1, 0]


def test_advice_says_which_channels_and_why(files: dict[str, Path]) -> None:
    chosen = choose_pair(files["fixed"], files["moving"], LogReporter())
    assert [setting.option for setting in chosen.settings] == [
        "--fixed-channel 1",
        "--moving-channel 0",
    ]
    assert "key points), 1 (" in chosen.settings[0].why
    one = choose_pair(
        itkstream.open_image(files["fixed"], channel=1), files["moving"], LogReporter()
    )
    assert [setting.option for setting in one.settings] == ["--moving-channel 0"]


def test_where_none_matches_all_are_listed(files: dict[str, Path]) -> None:
    said = r"of the fixed image 0 \(\d+ of \d+, \d+ key points\), 1 .*; of the moving image 0 "
    with pytest.raises(UnstatedChannelError, match=said):
        itkstream.advise(files["fixed"], files["noise"])

"""Rounds of experiments for tests: how they are written, and quick steps for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from itkstream.geometry import Image
from itkstream.io import create_ome_zarr
from itkstream.io.images.stores.ngff_metadata import ChannelLook
from itkstream.io.images.stores.ome_zarr_writer import name_channels
from itkstream.phantoms import PhantomPair
from itkstream.registration.steps import RansacAffine, RegisterSettings


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


STEPS = (RansacAffine(search="never"),)
"""Steps that take a second."""

QUICK = RegisterSettings(error_map=False, report=False)
"""Settings of a run that makes nothing but transform, images and verdict."""

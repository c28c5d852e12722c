"""A pair of images, a transform between them, and what `write_resampled` makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from serving_scene import GRID, Scene

from itkstream import (
    Deformable,
    RansacAffine,
    RegisterSettings,
    register,
    write_resampled,
    write_transform,
)
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField
from itkstream.io import create_ome_zarr, open_image, write_n5, write_pyramid
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.phantoms import PhantomPair


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("serving")
    rng = np.random.default_rng(0)
    found = Scene(*(folder / f"{n}.ome.zarr" for n in ("fixed", "moving", "transform", "applied")))
    for path, series in ((found.fixed, None), (found.moving, {"c": 2})):
        shape = (*(series or {}).values(), *GRID.shape)
        smooth = gaussian_filter(rng.random(shape), (0,) * (len(shape) - 3) + (1, 3, 3))
        array = create_ome_zarr(path, GRID, "u2", chunks=(20, 64, 64), series=series)
        array[...] = (smooth * 4000).astype("u2")
        write_pyramid(path)
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.02, (3, 3))
    nodes = GRID.shrink((3, 4, 4))
    field = DisplacementField(rng.normal(0, 0.3, (*nodes.shape, 3)).astype("f4"), nodes)
    transform = CompositeTransform((field, AffineTransform(matrix)))
    write_transform(found.transform, transform)
    moving = open_image(found.moving, channel=1)
    write_resampled(found.applied, moving, transform, GRID, WarpSettings(background=None))
    return found


@pytest.fixture(scope="session")
def registered(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `register` wrote, with key points, a field, an error map and a report."""
    folder = tmp_path_factory.mktemp("registered")
    places = []
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        places.append(folder / f"{name}.n5" / "s0")
        write_n5(folder / f"{name}.n5", "s0", image.read(), image.grid, chunks=(32, 32, 32))
    steps = (
        RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8),
        Deformable(stiffness=1),
    )
    register(*places, folder / "out", steps, RegisterSettings(blocksize=64))
    return folder / "out"

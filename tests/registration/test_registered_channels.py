"""Registrations that several channels drive: they help, they do not hurt, and they are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import itkstream
from itkstream import Deformable, IntensityAffine, LocalAffines, RansacAffine, RegisterSettings
from itkstream.align import prepare_piecewise_align
from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image, joined_channels
from itkstream.io import open_image
from itkstream.phantoms import PhantomPair, PhantomSettings, make_pair
from itkstream.registration.channels import pair_channels
from itkstream.registration.folder import registered_images, registered_options

pytestmark = pytest.mark.slow

SETTINGS = RegisterSettings(report=False, error_map=False)
STEPS = [RansacAffine(radii=[(3, 10)]), Deformable(stiffness=1)]


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(PhantomSettings(shape=(64, 56, 48), spacing=(1.0, 1.0, 1.0)))


def noise(image: Image, seed: int) -> Image:
    rng = np.random.default_rng(seed)
    return Image(rng.poisson(100, image.shape).astype(np.uint16), image.grid, "noise")


@pytest.fixture(scope="module")
def useless(pair: PhantomPair) -> tuple[Image, Image]:
    return noise(pair.fixed, 1), noise(pair.moving, 2)


@pytest.fixture(scope="module")
def alone(pair: PhantomPair, tmp_path_factory: Any) -> itkstream.Registration:
    out = tmp_path_factory.mktemp("alone") / "out"
    return itkstream.register(pair.fixed, pair.moving, out, STEPS, SETTINGS)


@pytest.fixture(scope="module")
def with_noise(
    pair: PhantomPair, useless: tuple[Image, Image], tmp_path_factory: Any
) -> itkstream.Registration:
    """The noise is named first."""
    out = tmp_path_factory.mktemp("noise") / "out"
    return itkstream.register(
        [useless[0], pair.fixed], [useless[1], pair.moving], out, STEPS, SETTINGS
    )


def facts(result: itkstream.Registration, name: str) -> dict[str, Any]:
    return next(step for step in result.facts["steps"] if step["name"] == name)


def test_a_useless_channel_does_not_hurt(
    pair: PhantomPair, alone: itkstream.Registration, with_noise: itkstream.Registration
) -> None:
    """Truth: the phantom's map. What is left out cannot move a vector."""
    points = pair.fixed.grid.positions()
    np.testing.assert_allclose(
        with_noise.transform.apply(points), alone.transform.apply(points), atol=1e-6
    )
    assert pair.error(with_noise.transform.apply).summary()["median_vox"] < 0.2
    told = facts(with_noise, "deformation")["channels"]
    assert [one["share"] for one in told] == [0.0, 1.0]
    assert told[0]["local_correlation"] < 0.01 < 0.2 < told[1]["local_correlation"]


def test_key_points_of_each_channel_are_counted(with_noise: itkstream.Registration) -> None:
    told = facts(with_noise, "affine")
    assert sum(told["matches_per_channel"]) == told["matches"]
    assert sum(told["inliers_per_channel"]) == told["inliers"]
    # Of noise, no key points match.
    assert told["inliers_per_channel"][-1] > 20


def test_the_first_channel_is_aligned(
    useless: tuple[Image, Image], with_noise: itkstream.Registration
) -> None:
    values = np.asarray(with_noise.aligned.read())
    assert values[values > 0].max() < 200
    assert with_noise.facts["moving"]["name"] == "noise"


def test_one_of_a_list_is_the_image(
    pair: PhantomPair, alone: itkstream.Registration, tmp_path: Path
) -> None:
    """A list of one channel gives the bits of the channel."""
    result = itkstream.register([pair.fixed], [pair.moving], tmp_path / "out", STEPS, SETTINGS)
    np.testing.assert_array_equal(result.aligned.read(), alone.aligned.read())
    assert "channels" not in result.facts


def test_blocks_see_all_channels(pair: PhantomPair, tmp_path: Path) -> None:
    """Each channel shows half of the image: truth, and the run with one block.

    All refining steps, of which each takes what it can.
    """
    channels: tuple[list[Image], list[Image]] = ([], [])
    border = pair.fixed.shape[0] / 2
    for first in (True, False):
        for which, image, points in (
            (0, pair.fixed, pair.fixed.grid.positions()),
            (1, pair.moving, pair.truth.inverse(pair.moving.grid.positions().reshape(-1, 3))),
        ):
            low = (points[..., 0] < border).reshape(image.shape) == first
            voxels = np.where(low, image.read(), np.percentile(image.read(), 2))
            channels[which].append(Image(voxels.astype(np.float32), image.grid))
    steps = [
        RansacAffine(radii=[(3, 10)]),
        IntensityAffine(),
        LocalAffines(blocksize=48),
        Deformable(stiffness=1, blocksize=40, overlap=10),
    ]
    settings = replace(SETTINGS, coarse_voxels=5e4)
    both = itkstream.register(*channels, tmp_path / "both", steps, settings)
    one = itkstream.register(channels[0][0], channels[1][0], tmp_path / "one", steps, settings)
    errors = [pair.error(result.transform.apply).summary()["p95_vox"] for result in (both, one)]
    assert errors[0] < 0.6
    assert errors[1] > 2 * errors[0]
    counts = [one["share"] for one in facts(both, "deformation")["channels"]]
    assert min(counts) > 0.5


def ome_zarr(path: Path, channels: list[Image]) -> Path:
    """Channels of a file."""
    grid = channels[0].grid
    voxels = np.stack([np.asarray(channel.read()) for channel in channels])
    group = zarr.create_group(path, zarr_format=2)
    group.create_array("0", data=voxels.astype("u2"))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = {"type": "scale", "scale": [1.0, *grid.spacing]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    group.attrs["omero"] = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    return path


def test_a_run_is_repeated_from_its_report(
    pair: PhantomPair, useless: tuple[Image, Image], tmp_path: Path
) -> None:
    """Truth: the first run. The report names channels and weights, and opens the first."""
    paths = [
        ome_zarr(tmp_path / f"{name}.zarr", [image, other])
        for name, image, other in (
            ("fixed", pair.fixed, useless[0]),
            ("moving", pair.moving, useless[1]),
        )
    ]
    steps = [Deformable(stiffness=1, iterations=(4, 2, 1))]
    wanted = [("DAPI", 2), "GFP"]
    images = [open_image(path, channel=wanted) for path in paths]
    start = AffineTransform(pair.truth.matrix)
    first = itkstream.register(
        *images, tmp_path / "first", steps, SETTINGS, initial_transform=start
    )
    report = json.loads((tmp_path / "first" / "registration.json").read_text())
    assert report["fixed"]["opened"]["channel"] == [[0, 2.0], 1]
    assert [one["weight"] for one in report["channels"]] == [2.0, 1.0]
    assert [one["moving"]["channel_name"] for one in report["channels"]] == ["DAPI", "GFP"]
    again = itkstream.register(
        *registered_images(tmp_path / "first"),
        tmp_path / "again",
        steps,
        SETTINGS,
        initial_transform=start,
    )
    np.testing.assert_array_equal(again.aligned.read(), first.aligned.read())
    # What is moved through it later is the first channel.
    assert registered_options(tmp_path / "first", str(paths[1])).channel == 0


def test_a_stopped_run_goes_on_with_its_channels(
    pair: PhantomPair, with_noise: itkstream.Registration, useless: tuple[Image, Image]
) -> None:
    """Truth: the run that was not stopped. The field that is lost is found again."""
    out = Path(str(with_noise.out))
    before = np.asarray(with_noise.aligned.read())
    (out / "registration.json").unlink()
    for path in (out / "steps").glob("aligned*"):
        path.unlink()
    again = itkstream.register(
        [useless[0], pair.fixed], [useless[1], pair.moving], out, STEPS, SETTINGS
    )
    np.testing.assert_array_equal(again.aligned.read(), before)


def test_what_takes_one_channel_says_so(pair: PhantomPair, tmp_path: Path) -> None:
    both = joined_channels([pair.fixed, pair.fixed]), joined_channels([pair.moving, pair.moving])
    out = tmp_path / "out"
    with pytest.raises(InputError, match="compares one channel, and 2 were given"):
        itkstream.register(*both, out, [RansacAffine(), Deformable("demons")])
    with pytest.raises(InputError, match="2 of the fixed image and 1 of the moving one"):
        itkstream.register(both[0], pair.moving, out)
    with pytest.raises(InputError, match="has 2 channels and one is taken here"):
        prepare_piecewise_align(*both, None, None, [Deformable()], (32, 32, 32))
    assert not out.exists()


def test_weights_are_said_once(pair: PhantomPair) -> None:
    def of(fixed: float | None, moving: float | None) -> float:
        images = replace(pair.fixed, weight=fixed), replace(pair.moving, weight=moving)
        return pair_channels(images)[0].weight

    assert (of(None, None), of(2, None), of(None, 3), of(2, 2)) == (1, 2, 3, 2)
    with pytest.raises(InputError, match="two weights, 2 and 3"):
        of(2, 3)


def test_channels_cost_memory_and_time(pair: PhantomPair) -> None:
    one = itkstream.plan(pair.fixed, pair.moving)
    two = itkstream.plan([pair.fixed] * 2, [pair.moving] * 2)
    single, double = ({p.name: p for p in plan.prices} for plan in (one, two))
    for name in ("read", "deformable"):
        assert double[name].work == 2 * single[name].work
    assert double["deformable"].per_block == 2 * single["deformable"].per_block
    assert double["deformable"].once > single["deformable"].once

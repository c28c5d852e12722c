"""A pattern that the camera adds to both images does not register them by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Image
from itkstream.io import create_ome_zarr, open_image
from itkstream.phantoms import Motion, PhantomPair, PhantomSettings, make_pair
from itkstream.pipelines import Registration, register
from itkstream.registration.scene import Nothing
from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings

MOTION = Motion(rotation_deg=1, stretch=0.01, shear=0.01, shift=0.06, warp_um=1.5)
STEPS = (RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8), Deformable())


class Notes:
    """A reporter that keeps the notes."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def step(self, title: str) -> None:
        pass

    def expect(self, parts: object) -> None:
        pass

    def blocks(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="module")
def pair() -> PhantomPair:
    return make_pair(
        PhantomSettings((72, 64, 48), (1.0,) * 3, 3, radii_um=(2.5, 4.5), motion=MOTION)
    )


def hot(image: Image) -> Image:
    """0.5 % of the camera's pixels, at the same places of both images, in every plane along z."""
    voxels = np.array(image.read())
    voxels[np.random.default_rng(5).random(voxels.shape[:2]) < 0.005] = 65535
    return Image(voxels, image.grid, image.name)


def run(pair: PhantomPair, out: Path, images: tuple[Image, Image], **more: Any) -> Registration:
    return register(
        *images, out, STEPS, RegisterSettings(blocksize=32, error_map=False, report=False, **more)
    )


@pytest.mark.slow
def test_hot_pixels_cost_at_most_twice_the_error_of_none(pair: PhantomPair, tmp_path: Path) -> None:
    """The moving image is warped through the transform as it is given, hot pixels and all."""
    clean = run(pair, tmp_path / "clean", (pair.fixed, pair.moving))
    assert "camera_pattern" not in clean.facts
    spoilt = hot(pair.fixed), hot(pair.moving)
    notes = Notes()
    found = register(
        *spoilt,
        tmp_path / "hot",
        STEPS,
        RegisterSettings(error_map=False, report=False),
        reporter=notes,
    )
    before, after = (pair.error(r.transform.apply).summary() for r in (clean, found))
    assert after["median_vox"] <= 2 * before["median_vox"]
    assert after["p95_vox"] <= 2 * before["p95_vox"]
    bad = (np.array(spoilt[0].read()) == 65535).all(axis=2).sum()
    assert found.facts["camera_pattern"]["fixed"]["pixels"] == bad
    assert any(f"fixed image adds the same to every plane ({bad} pixels)" in n for n in notes.told)
    assert found.aligned.read().max() > 60000


@pytest.mark.nightly
def test_a_pattern_may_be_kept(pair: PhantomPair, tmp_path: Path) -> None:
    spoilt = hot(pair.fixed), hot(pair.moving)
    start = AffineTransform(np.array(pair.truth.matrix))
    kept, found = (
        register(
            *spoilt,
            tmp_path / switch,
            STEPS[1:],
            RegisterSettings(camera_pattern=switch, error_map=False, report=False),
            initial_transform=start,
        )
        for switch in ("keep", "auto")
    )
    assert "camera_pattern" not in kept.facts
    errors = [np.median(pair.error(r.transform.apply).vox) for r in (kept, found)]
    assert errors[0] > 1.5 * errors[1]
    with pytest.raises(InputError, match="camera_pattern must be"):
        RegisterSettings(camera_pattern="remove")


def test_masks_count_intensities_as_they_were_given(pair: PhantomPair, tmp_path: Path) -> None:
    """Stripes change all voxels; those that a mask leaves out by their value are left out still."""
    stripes = np.random.default_rng(1).normal(0, 60, (1, pair.fixed.shape[1], 1))
    voxels = np.clip(np.rint(pair.fixed.read() + stripes), 0, 65535).astype(np.uint16)
    voxels[:20] = 0
    image = Image(voxels, pair.fixed.grid)
    seen: list[np.ndarray] = []

    def look(scene: Any, *_: Any) -> Nothing:
        seen.append(np.asarray(scene.fixed.read()))
        return Nothing("it only looked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RansacAffine, "find", lambda _self, *words: look(*words))
        start = AffineTransform(np.array(pair.truth.matrix))
        result = register(
            image,
            pair.moving,
            tmp_path / "out",
            STEPS[:1],
            initial_transform=start,
            fixed_mask=(0,),
        )
    assert result.facts["camera_pattern"]["fixed"]["noise"] > 0
    np.testing.assert_array_equal(np.isnan(seen[0]), voxels == 0)


@pytest.mark.nightly
def test_blocks_of_stored_images_see_none(pair: PhantomPair, tmp_path: Path) -> None:
    """Read in blocks from a store, with levels averaged of it, the images give what arrays do."""
    images = []
    for name, image in (("fixed", hot(pair.fixed)), ("moving", hot(pair.moving))):
        path = tmp_path / f"{name}.ome.zarr"
        create_ome_zarr(path, image.grid, image.dtype, chunks=(16,) * 3)[...] = image.read()
        images.append(open_image(path, axes="xyz"))
    settings = {"coarse_voxels": 3e4}
    steps = (STEPS[0], Deformable(blocksize=32))
    stored = register(*images, tmp_path / "stored", steps, RegisterSettings(**settings))
    arrays = register(
        hot(pair.fixed), hot(pair.moving), tmp_path / "arrays", steps, RegisterSettings(**settings)
    )
    np.testing.assert_array_equal(stored.aligned.read(), arrays.aligned.read())
    assert stored.facts["camera_pattern"] == arrays.facts["camera_pattern"]
    assert (tmp_path / "stored/steps/fixed-pattern.zarr").is_dir()
    again = Notes()
    register(*images, tmp_path / "stored", steps, RegisterSettings(**settings), reporter=again)
    assert again.told.count("done by an earlier run") >= len(steps)

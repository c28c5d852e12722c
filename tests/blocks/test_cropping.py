"""A part of the images registered alone: its transform is one of the whole images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import itkstream
from itkstream.blocks.cropping import cropped_pair
from itkstream.cli.app import commands
from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import write_n5
from itkstream.phantoms import PhantomPair
from itkstream.registration.folder import registered_images
from itkstream.registration.steps import IntensityAffine, RegisterSettings

STEPS = (IntensityAffine("affine", iterations=(100, 100)),)
SETTINGS = RegisterSettings(blocksize=64, error_map=False, report=False)


@pytest.fixture(scope="module")
def files(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("crops")
    for name, image in (("fixed.n5", pair.fixed), ("moving.n5", pair.moving)):
        write_n5(folder / name, "s0", image.read(), image.grid, chunks=(32, 32, 32))
    return folder / "fixed.n5/s0", folder / "moving.n5/s0"


@pytest.fixture(scope="module")
def part(
    files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> itkstream.Registration:
    out = tmp_path_factory.mktemp("part") / "out"
    return itkstream.register(*files, out, STEPS, SETTINGS, crop="16:60,8:48,10:48um")


def test_a_part_s_transform_is_that_of_the_whole(
    part: itkstream.Registration, pair: PhantomPair
) -> None:
    grid = pair.fixed.grid.crop((slice(16, 60), slice(8, 48), slice(8, 40)))
    assert part.aligned.grid.shape == grid.shape
    np.testing.assert_allclose(part.aligned.grid.origin, grid.origin)
    points = grid.shrink((4, 4, 4)).positions()
    error = np.linalg.norm(part.transform.apply(points) - pair.truth(points), axis=-1)
    before = np.linalg.norm(points - pair.truth(points), axis=-1)
    # The warp of up to 2 µm stays; coordinates of the part would be 16 µm off.
    assert np.median(error) < 1.0 < np.median(before)


def test_a_part_is_opened_again_as_it_was(part: itkstream.Registration, pair: PhantomPair) -> None:
    told = json.loads((Path(str(part.out)) / "registration.json").read_text())
    assert told["fixed"]["opened"]["crop"] == "16:60,8:48,8:40"
    fixed, moving = registered_images(str(part.out))
    np.testing.assert_array_equal(fixed.read(), pair.fixed.read()[16:60, 8:48, 8:40])
    # Half a length more on either side, as far as there is any.
    assert moving.shape[0] > fixed.shape[0]


def test_another_part_is_another_run(
    part: itkstream.Registration, files: tuple[Path, Path]
) -> None:
    with pytest.raises(ExistingOutputError):
        itkstream.register(*files, part.out, STEPS, SETTINGS, crop="0:40,8:48,8:40")


def test_the_command_takes_a_part(files: tuple[Path, Path], tmp_path: Path) -> None:
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps:\n- intensity-affine: {model: translation, iterations: [9, 9]}\n")
    words = ["register", *map(str, files), "--out", str(tmp_path / "out"), "--config", str(steps)]
    done = CliRunner().invoke(commands, [*words, "--crop", "16:60,8:48,:", "--no-report"])
    assert done.exit_code == 0
    told = json.loads((tmp_path / "out/registration.json").read_text())
    assert told["fixed"]["grid"]["shape"] == [44, 40, 48]
    assert not (tmp_path / "out/report.html").exists()


def test_the_moving_part_lies_where_the_start_puts_it() -> None:
    """Also where the images' axes are in other orders."""
    fixed = Image(np.zeros((100, 100, 100), np.uint8), Grid((100,) * 3, (1.0,) * 3, axes="xyz"))
    moving = Image(np.zeros((90, 200, 300), np.uint8), Grid((90, 200, 300), (1.0,) * 3, axes="zyx"))
    shift = np.eye(4)
    shift[:3, 3] = (150, 80, 0)  # x, y, z
    start = AffineTransform(shift, ("x", "y", "z"))
    box = (slice(40, 60), slice(40, 60), slice(40, 60))
    first, second = cropped_pair((fixed, moving), box, start)
    assert first.shape == (20, 20, 20)
    # 19 µm between the outer centres, and 9.5 on either side.
    np.testing.assert_allclose(second.grid.origin, (30, 110, 180))
    assert second.shape == (40, 40, 40)
    far = AffineTransform(np.eye(4) + 1e4 * np.eye(4, k=3), ("x", "y", "z"))
    with pytest.raises(InputError, match="shows nothing near the crop"):
        cropped_pair((fixed, moving), box, far)


def test_a_mask_of_the_whole_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    mask = np.ones((64, 56, 48), bool)
    with pytest.raises(InputError, match="fixed mask covers the whole image"):
        itkstream.register(
            *files, tmp_path / "out", STEPS, SETTINGS, crop="16:60,8:48,:", fixed_mask=mask
        )


def test_a_part_of_a_part_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    image = itkstream.open_image(files[0], crop="16:60,8:48,:")
    with pytest.raises(InputError, match="cropped already"):
        itkstream.register(image, files[1], tmp_path / "out", STEPS, SETTINGS, crop="0:20,:,:")

"""A preview: which blocks it takes, what it tells, and that it leaves only its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from itkstream.cli.app import commands
from itkstream.errors import ExistingOutputError, InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io import write_n5
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import preview
from itkstream.preview import Preview, choose_blocks
from itkstream.registration.steps import Deformable, RansacAffine, RegisterSettings

pytestmark = pytest.mark.slow

STEPS = (
    RansacAffine(radii=((2.0, 6.0),), match_threshold=0.6, cc_radius=8),
    Deformable(iterations=(5, 5, 2), stiffness=1.0),
)
SETTINGS = RegisterSettings(blocksize=64)


@pytest.fixture(scope="module")
def made(pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory) -> Preview:
    page = tmp_path_factory.mktemp("preview") / "page.html"
    named = Image(pair.fixed.data, pair.fixed.grid, "<i>fixed</i>")
    return preview(named, pair.moving, page, STEPS, SETTINGS, blocks=2)


def test_a_block_is_registered_from_the_start_of_the_whole(made: Preview) -> None:
    """The image is one block."""
    (block,) = made.blocks
    assert block.box == (slice(0, 64), slice(0, 56), slice(0, 48))
    assert block.after > block.before + 0.02  # the affine was found before
    assert block.after > 0.7
    assert block.seconds > 0


def test_the_needs_of_the_whole_are_told(made: Preview) -> None:
    assert made.plan.seconds is not None
    assert made.plan.seconds > 0
    page = made.page.path.read_text()
    for price in made.plan.prices:
        assert f"<th>{price.name}</th>" in page
    assert "1 block of tissue" in page


def test_only_the_page_is_written(made: Preview) -> None:
    assert [path.name for path in made.page.path.parent.iterdir()] == ["page.html"]
    page = made.page.path.read_text()
    assert "<i>fixed</i>" not in page
    assert "i&gt;" in page  # the last two parts of what would be a path


def test_blocks_are_full_of_tissue_that_both_show_and_apart() -> None:
    grid = Grid((512, 256, 64), (1.0, 1.0, 1.0), axes=("x", "y", "z"))
    image = np.random.default_rng(0).uniform(0, 5, grid.shape).astype(np.float32)
    for box in ((slice(0, 128), slice(0, 128)), (slice(128, 512), slice(128, 256))):
        image[box] += np.random.default_rng(1).uniform(100, 200, image[box].shape)
    fixed = Image(image, grid)
    shift = np.eye(4)
    shift[0, 3] = 128  # the last block along x has nothing in the moving image
    boxes = choose_blocks((fixed, fixed), AffineTransform(shift), 1e7, 3)
    assert [(box[0].start, box[1].start) for box in boxes] == [(0, 0), (128, 128), (256, 128)]
    assert choose_blocks((fixed, fixed), None, 1e7, 2)[0][0].start == 0


@pytest.mark.parametrize(("page", "blocks"), [("page.txt", 1), ("page.html", 0)])
def test_what_cannot_be_written_is_refused(
    pair: PhantomPair, tmp_path: Path, page: str, blocks: int
) -> None:
    with pytest.raises(InputError, match=r"ends in \.html"):
        preview(pair.fixed, pair.moving, tmp_path / page, STEPS, SETTINGS, blocks=blocks)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_stays(pair: PhantomPair, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ExistingOutputError):
        preview(pair.fixed, pair.moving, tmp_path / "page.html", STEPS, SETTINGS)
    assert (tmp_path / "page.html").read_text() == "mine"


def test_the_command_writes_a_page_beside_the_folder(pair: PhantomPair, tmp_path: Path) -> None:
    for name, image in (("fixed.n5", pair.fixed), ("moving.n5", pair.moving)):
        write_n5(tmp_path / name, "s0", image.read(), image.grid)
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps:\n- intensity-affine: {model: translation, iterations: [9, 9]}\n")
    words = ["register", *(str(tmp_path / f"{n}.n5/s0") for n in ("fixed", "moving"))]
    words += ["--out", str(tmp_path / "out"), "--config", str(steps), "--preview"]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0
    assert f"preview: {tmp_path}/out.preview.html" in done.output
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(commands, [*words, "--crop", "0:9,0:9,0:9"])
    assert "--preview takes neither --landmarks nor --crop" in refused.output

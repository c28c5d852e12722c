"""The coarse level of an image: read once per run, kept, the same whoever makes it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itkstream.blocks.inputs import block_grid
from itkstream.blocks.levels import factors_to_fit, read_coarse
from itkstream.blocks.masks import masked
from itkstream.errors import ExistingOutputError
from itkstream.estimate.content import prepare_content
from itkstream.geometry import AffineTransform, CompositeTransform, DisplacementField, Grid, Image
from itkstream.io import create_ome_zarr, open_image
from itkstream.io.storage.locations import Location
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.phantoms import PhantomPair
from itkstream.pipelines import Registration, register
from itkstream.registration.scene import Scene, make_level
from itkstream.registration.steps import Deformable, RegisterSettings
from itkstream.workers import Resources

CHUNK = 16
STEP = Deformable(blocksize=32, stiffness=1)


def silent(_done: int, _total: int) -> None:
    """Hear nothing."""


class Phases:
    """A reporter that knows which step is being done, and may stop a run when one begins."""

    def __init__(self, last: str = "") -> None:
        self.now, self.last = "before", last
        self.heard: dict[str, set[int]] = defaultdict(set)

    def step(self, title: str) -> None:
        if title == self.last:
            raise KeyboardInterrupt
        self.now = title

    def expect(self, parts: object) -> None:
        pass

    def blocks(self, done: int, total: int) -> None:
        self.heard[self.now].add(done)

    def note(self, text: str) -> None:
        pass


class Counting:
    """A stored image that counts, step by step, how often each of its chunks is read."""

    def __init__(self, values: np.ndarray, name: str, phases: Phases) -> None:
        self.values, self.name, self.phases = values, name, phases
        self.shape, self.dtype, self.chunks = values.shape, values.dtype, (CHUNK,) * 3
        self.opened: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.name)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        self.opened[self.phases.now].update(chunks_of(key, self.shape))
        return self.values[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[(slice(None),) * 3], dtype)


def chunks_of(key: tuple[slice, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    spans = (s.indices(n)[:2] for s, n in zip(key, shape, strict=True))
    return product(*(range(a // CHUNK, -(-b // CHUNK)) for a, b in spans))


def once_each(shape: tuple[int, ...]) -> Counter[tuple[int, ...]]:
    return Counter(chunks_of((slice(None),) * 3, shape))


def run(pair: PhantomPair, out: Path, phases: Phases, **how: Any) -> tuple[list[Counting], Any]:
    """A registration of two images that do not fit the coarse level; who stops it gets None."""
    given = (("fixed", pair.fixed), ("moving", pair.moving))
    sources = [Counting(image.read(), name, phases) for name, image in given]
    images = [
        Image(source, image.grid, name)
        for source, (name, image) in zip(sources, given, strict=True)
    ]
    # The look for a camera's pattern would be counted too.
    settings = RegisterSettings(pair.fixed.grid.size / 3, 32, camera_pattern="keep", report=False)
    how.setdefault("initial_transform", pair.truth.matrix)
    try:
        done = register(*images, out, (STEP,), settings, reporter=phases, **how)
    except KeyboardInterrupt:
        done = None
    return sources, done


@pytest.fixture(scope="module")
def whole(
    pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Counting], Registration, Phases]:
    phases = Phases()
    return *run(pair, tmp_path_factory.mktemp("whole") / "out", phases), phases


def test_one_pass_over_each_image_and_one_by_the_blocks(
    pair: PhantomPair, whole: tuple[list[Counting], Registration, Phases]
) -> None:
    (fixed, moving), _, phases = whole
    for source in (fixed, moving):
        assert source.opened["read"] == once_each(source.shape)
    # Large displacements and the search for content take the level: only blocks read the image,
    # and the sample by which the deformation is judged, which is all of so small an image.
    blocks = block_grid(fixed.shape, (32,) * 3, None)
    # (Chunks that blocks share may be kept, so these are the most.)
    assert fixed.opened["deformation"] <= once_each(fixed.shape) + Counter(
        chunk for block in blocks for chunk in chunks_of(block.padded, fixed.shape)
    )
    # Moving blocks are as large, and a margin of a chunk at most wider on each side.
    assert max(moving.opened["deformation"].values()) <= 1 + len(blocks)
    assert "before" not in fixed.opened | moving.opened
    assert set(fixed.opened) == {"read", "deformation", "error map"}
    assert set(moving.opened) == {"read", "deformation", "aligned image", "error map"}
    assert len(phases.heard["read"]) > 1  # progress is told


def test_a_run_that_goes_on_does_not_read_the_images_again(
    pair: PhantomPair, whole: tuple[list[Counting], Registration, Phases], tmp_path: Path
) -> None:
    stopped, nothing = run(pair, tmp_path / "out", Phases("deformation"))
    assert nothing is None
    assert stopped[0].opened["read"] == once_each(stopped[0].shape)
    # What the first step is noted with, the quality before it, was not written yet.
    sources, again = run(pair, tmp_path / "out", Phases())
    assert all("read" not in source.opened for source in sources)
    assert again is not None
    np.testing.assert_array_equal(again.aligned.read(), whole[1].aligned.read())
    for made in ("fixed", "moving"):
        files = sorted((tmp_path / "out/steps" / f"{made}.zarr/c").rglob("*"))
        assert any(file.is_file() for file in files)


def bright(voxels: np.ndarray) -> np.ndarray:
    return voxels > np.percentile(voxels, 20)


def written(out: Path) -> dict[Path, int]:
    """When every file of a run was written, without the notes of who looked at it."""
    files = (p for p in out.rglob("*") if p.is_file() and ".itkstream" not in p.parts)
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_a_mask_given_as_a_function_costs_no_other_pass(pair: PhantomPair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (fixed, _), done = run(pair, out, Phases("aligned image"), fixed_mask=bright)
    assert done is None
    assert fixed.opened["before"] == once_each(fixed.shape)
    assert set(fixed.opened) == {"before", "deformation"}
    (fixed, _), done = run(pair, out, Phases(), fixed_mask=bright)
    assert done is not None
    assert "before" not in fixed.opened
    # A complete run is known again by its mask, and is not touched by another.
    (fixed, _), done = run(pair, out, Phases(), fixed_mask=bright)
    assert not fixed.opened
    before = written(out)
    with pytest.raises(ExistingOutputError, match="earlier run"):
        run(pair, out, Phases(), fixed_mask=lambda voxels: voxels > np.percentile(voxels, 30))
    assert written(out) == before


def test_another_image_is_not_averaged_for_a_complete_run(
    pair: PhantomPair, whole: tuple[list[Counting], Registration, Phases]
) -> None:
    """The level is not there, so this is another run: refused before an hour of reading."""
    _, registered, _ = whole
    other = Image(pair.fixed.read() + 1, pair.fixed.grid, "fixed")
    settings = RegisterSettings(coarse_voxels=pair.fixed.grid.size / 3, blocksize=32, report=False)
    with pytest.raises(ExistingOutputError, match="earlier run"):
        register(other, pair.moving, registered.out, (STEP,), settings, fixed_mask=bright)


@pytest.mark.parametrize("factors", [(2, 4, 2), (1, 8, 16)])
def test_a_mask_on_the_level_is_the_mask_on_the_image(
    factors: tuple[int, ...], odd_grid: Callable[..., Grid]
) -> None:
    """To the last bit, partial groups at the borders included."""
    rng = np.random.default_rng(1)
    grid = odd_grid(3, shape=(13, 22, 30))
    image = Image(rng.integers(0, 60000, grid.shape).astype(np.uint16), grid)
    level = read_coarse(image, factors)
    chosen = Image(rng.integers(0, 2, level.shape), level.grid)
    expected = read_coarse(masked(image, chosen), factors).read()
    assert 0.3 < np.isnan(expected).mean() < 0.7
    np.testing.assert_array_equal(masked(level, chosen).read(), expected)


def stored(path: Path, chunk: int) -> Image:
    grid = Grid((60, 50, 70), (1.0, 1.0, 2.0))
    target = create_ome_zarr(path, grid, np.dtype(np.uint16), chunks=(chunk,) * 3)
    target[...] = np.random.default_rng(0).integers(0, 60000, grid.shape)
    return open_image(path)


@pytest.mark.slow
def test_workers_and_threads_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many blocks: the real limits need gigabytes.
    monkeypatch.setattr("itkstream.blocks.levels._BLOCK_VOXELS", 20_000)
    image = stored(tmp_path / "a.zarr", 20)
    expected = read_coarse(image, factors_to_fit(image.grid, 10_000)).read()
    for number, how in enumerate(
        (Resources(threads_per_worker=1), Resources(threads_per_worker=3), Resources(n_workers=2))
    ):
        place = Location.parse(tmp_path / f"{number}.zarr")
        level = make_level(image, 10_000, how, silent, lambda known, there=place: there)
        np.testing.assert_array_equal(level.read(), expected)
    in_memory = make_level(image, 10_000, Resources(), silent)
    assert isinstance(in_memory.data, np.ndarray)
    np.testing.assert_array_equal(in_memory.read(), expected)


def test_a_level_made_again_is_the_same_to_what_depends_on_it(tmp_path: Path) -> None:
    """A deformation of which half is done goes on, though the level was lost."""
    image = stored(tmp_path / "a.zarr", 20)
    place = Location.parse(tmp_path / "level.zarr")
    blocks = block_grid(image.shape, (32,) * 3, 0)
    make = partial(make_level, image, 10_000, Resources(), silent, lambda known: place)
    still, names = AffineTransform(np.eye(4)), set()
    for _ in range(2):
        levels = make(), make()
        content = prepare_content((image, image), still, blocks, 10_000, levels)
        names.add(content.key)
        place.remove()
    assert len(names) == 1


def test_a_level_of_another_image_is_replaced(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "level.zarr")
    for name, chunk in (("a.zarr", 20), ("b.zarr", 25)):
        image = stored(tmp_path / name, chunk)
        level = make_level(image, 10_000, Resources(), silent, lambda known: place)
        np.testing.assert_array_equal(
            level.read(), read_coarse(image, factors_to_fit(image.grid, 10_000)).read()
        )
        before = (place.path / "zarr.json").stat().st_mtime_ns
        make_level(image, 10_000, Resources(), silent, lambda known: place)
        assert (place.path / "zarr.json").stat().st_mtime_ns == before


def test_a_small_image_is_its_own_level(tmp_path: Path) -> None:
    image = stored(tmp_path / "a.zarr", 20)
    place = Location.parse(tmp_path / "level.zarr")
    assert make_level(image, 1e6, Resources(), silent, lambda known: place) is image
    assert not place.exists()


def test_a_field_larger_than_the_level_is_judged_by_the_workers(
    pair: PhantomPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block, as well as at once: the calling process would read all of the field."""
    monkeypatch.setattr("itkstream.registration.scene._JUDGED_BLOCK", 8)
    phases = Phases()
    voxels, given = pair.fixed.grid.size / 64, (pair.fixed, pair.moving)
    levels = [partial(make_level, i, voxels, Resources(), phases.blocks) for i in given]
    scene = Scene(*given, voxels, Resources(), phases, (levels[0], levels[1]))
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.1, (*pair.fixed.shape, 3)).astype(np.float32)
    field = DisplacementField(vectors, pair.fixed.grid)
    transform = CompositeTransform((field, AffineTransform(pair.truth.matrix)))
    fixed, moving = scene.coarse
    phases.heard.clear()
    found = scene.aligned(transform)
    assert max(phases.heard["before"]) == np.prod([-(-n // 8) for n in fixed.shape])
    settings = WarpSettings(background=np.nan, dtype=np.float32)
    # Intensities of some hundreds, float32.
    np.testing.assert_allclose(
        found.read(), warp_block(moving, transform, fixed.grid, settings), atol=0.01
    )

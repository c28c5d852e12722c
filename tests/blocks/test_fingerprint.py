"""Names of graphs: the same computation has the same name in every process, any other another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from itkstream.affine import prepare_piecewise_ransac_affine
from itkstream.apply.folds import prepare_fold_count
from itkstream.apply.resampling import piecewise_transform, prepare_apply_transform
from itkstream.blocks import fingerprint
from itkstream.blocks.graph import Result, map_blocks
from itkstream.deform import prepare_piecewise_deformable_align
from itkstream.estimate.deformation import prepare_displacement
from itkstream.geometry import (
    AffineTransform,
    BlockGrid,
    CompositeTransform,
    DisplacementField,
    Grid,
    Image,
)
from itkstream.io import open_image, write_n5
from itkstream.numerics.deformation.settings import DescentSettings
from itkstream.numerics.sampling.warping import WarpSettings
from itkstream.transform import (
    prepare_apply_local_affines,
    prepare_apply_position_field,
    prepare_invert,
)

SHAPE = (24, 20, 16)
SIZE = (12, 10, 8)
GRID = Grid(SHAPE, (1.0, 1.2, 0.9))


def make_stores(folder: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)
    for name in ("fix", "mov"):
        write_n5(folder / "pair.n5", name, voxels, GRID, chunks=(8, 8, 8))
    vectors = np.ones((*SHAPE, 3), np.float32)
    zarr.create_array(str(folder / "field.zarr"), data=vectors, chunks=(8, 8, 8, 3))
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / "image.mhd"))


def itk_transform() -> sitk.Transform:
    field = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3)), isVector=True)
    steps = [sitk.TranslationTransform(3, (1, 2, 3)), sitk.BSplineTransform(3)]
    return sitk.CompositeTransform(
        [sitk.CompositeTransform(steps), sitk.DisplacementFieldTransform(field)]
    )


def every_prepare(folder: Path) -> dict[str, da.Array]:
    """One call of every prepare_ function, on stores."""
    fixed, moving = (open_image(folder / "pair.n5" / name) for name in ("fix", "mov"))
    pair = (fixed, moving, None, None)
    field = zarr.open_array(str(folder / "field.zarr"), mode="r")
    locals_ = np.tile(np.eye(4), (2, 2, 2, 1, 1))
    chain = CompositeTransform((DisplacementField(field, GRID), AffineTransform(np.eye(4))))
    piecewise = piecewise_transform(GRID, locals_, SIZE, np.eye(4))
    deform = (fixed, moving, piecewise, SIZE, DescentSettings())
    return {
        "prepare_piecewise_ransac_affine": prepare_piecewise_ransac_affine(*pair, 2, 4, 0.7, SIZE),
        "prepare_piecewise_deformable_align": prepare_piecewise_deformable_align(
            *pair, SIZE, local_affines=locals_
        ),
        "prepare_displacement": prepare_displacement(*deform, coarse_voxels=1000),
        "a coarse field": prepare_displacement(*deform, factors=(2, 2, 2)),
        "prepare_fold_count": prepare_fold_count(chain.transforms[0], SIZE),
        "prepare_apply_local_affines": prepare_apply_local_affines(*pair, locals_, SIZE),
        "prepare_apply_position_field": prepare_apply_position_field(*pair, field, SIZE),
        "prepare_apply_transform": prepare_apply_transform(fixed, moving, chain, SIZE),
        "an ITK transform": prepare_apply_transform(fixed, moving, itk_transform(), SIZE),
        "a file of ITK": prepare_apply_transform(
            fixed, open_image(folder / "image.mhd"), chain, SIZE
        ),
        "prepare_invert": prepare_invert(chain, GRID, SIZE),
        "dask": prepare_apply_position_field(*pair, da.zeros((*SHAPE, 3)), SIZE),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    make_stores(folder)
    return folder


def test_every_process_gives_the_same_names(folder: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env["PYTHONHASHSEED"] = "1"
    there = subprocess.run(
        [sys.executable, __file__, str(folder)], env=env, capture_output=True, text=True, check=True
    )
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        here = every_prepare(folder)
    assert there.stdout.split() == [lazy_array.name for lazy_array in here.values()]
    assert len({lazy_array.name for lazy_array in here.values()}) == len(here)


def test_all_keys_of_a_graph_are_the_same_again(folder: Path) -> None:
    for first, second in zip(
        every_prepare(folder).values(), every_prepare(folder).values(), strict=True
    ):
        assert set(first.__dask_graph__()) == set(second.__dask_graph__())


def rewrite_chunk(folder: Path) -> None:
    chunk = folder / "pair.n5" / "mov" / "0" / "0" / "0"
    os.utime(chunk, ns=(1, 1))


def remove_chunk(folder: Path) -> None:
    (folder / "field.zarr" / "c" / "0" / "0" / "0" / "0").unlink()


def change_raw_file(folder: Path) -> None:
    os.utime(folder / "image.raw", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (rewrite_chunk, {"prepare_displacement", "prepare_apply_local_affines", "dask"}),
        (remove_chunk, {"prepare_apply_position_field", "prepare_fold_count", "prepare_invert"}),
        (change_raw_file, {"a file of ITK"}),
    ],
)
def test_what_a_store_holds_counts(
    tmp_path: Path, change: Callable[[Path], None], changed: set[str]
) -> None:
    make_stores(tmp_path)
    before = {key: value.name for key, value in every_prepare(tmp_path).items()}
    change(tmp_path)
    after = {key: value.name for key, value in every_prepare(tmp_path).items()}
    assert changed <= {key for key in before if before[key] != after[key]}
    assert change is not change_raw_file or sum(before[k] != after[k] for k in before) == 1


def test_every_parameter_counts(folder: Path) -> None:
    fixed, moving = (open_image(folder / "pair.n5" / name) for name in ("fix", "mov"))
    still, move = AffineTransform(np.eye(4)), AffineTransform(np.diag([1, 1, 1.01, 1]))

    def wider(image: Image) -> Image:
        return Image(image.data, replace(image.grid, spacing=(1.0, 1.2, 1.0)))

    calls: list[tuple[Any, ...]] = [
        (fixed, moving, still, SIZE),
        (fixed, moving, move, SIZE),
        (wider(fixed), moving, still, SIZE),
        (fixed, wider(moving), still, SIZE),
        (fixed, moving, still, (12, 10, 16)),
        (fixed, moving, still, SIZE, WarpSettings("nearest")),
        (fixed, moving, still, SIZE, WarpSettings(background=1)),
        (fixed, moving, itk_transform(), SIZE),
        (fixed, moving, sitk.TranslationTransform(3, (1, 2, 3)), SIZE),
        (fixed, moving, sitk.TranslationTransform(3, (1, 2, 4)), SIZE),
        (fixed, moving, sitk.BSplineTransform(3, 2), SIZE),
        (fixed, moving, sitk.BSplineTransform(3, 3), SIZE),
        (fixed, Image(moving.read(), moving.grid), still, SIZE),
        (fixed, Image(moving.read() + 1, moving.grid), still, SIZE),
    ]
    assert len({prepare_apply_transform(*call).name for call in calls}) == len(calls)
    settings = (DescentSettings(), DescentSettings(cc_radius=3))
    names = {prepare_displacement(fixed, moving, still, SIZE, s).name for s in settings}
    assert len(names) == 2


def test_the_code_counts(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    before = every_prepare(folder)
    monkeypatch.setattr(fingerprint, "code_version", lambda: "a later one")
    after = every_prepare(folder)
    assert not {a.name for a in before.values()} & {a.name for a in after.values()}


def test_a_change_of_a_source_is_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "blocks" / "fingerprint.py"))
    seen = set()
    for text in ("a = 1\n", "a = 2\n"):
        (tmp_path / "io" / "deeper").mkdir(parents=True, exist_ok=True)
        (tmp_path / "io" / "deeper" / "module.py").write_text(text)
        fingerprint.code_version.cache_clear()
        seen.add(fingerprint.code_version())
    fingerprint.code_version.cache_clear()
    assert len(seen) == 2


class Foreign:
    """An array of somebody else: it may read anything, its token says nothing about it."""

    shape = (4, 4)
    dtype = np.dtype(int)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.zeros(self.shape, int)[key]


def take_core(part: np.ndarray, block: Any) -> np.ndarray:
    return part[block.core_in_padded]


def test_what_cannot_be_told_has_a_name_of_its_own_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocks = BlockGrid((4, 4), (2, 2))
    memory = zarr.create_array({}, data=np.zeros((4, 4), int))
    for source in (Foreign(), memory):
        caplog.clear()
        first, second = (map_blocks(take_core, blocks, source, {}, Result(int)) for _ in range(2))
        assert first.name != second.name
        # Said where it happens, and of what.
        said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(said) == 2
        assert all("take_core has a random name" in text for text in said)
        assert (first.compute() == 0).all()


def test_a_warning_says_where_the_value_is(caplog: pytest.LogCaptureFixture) -> None:
    shared = {"add": (1, Image(Foreign(), Grid((4, 4), (1, 1))))}
    map_blocks(take_core, BlockGrid((4, 4), (2, 2)), np.zeros((4, 4)), shared, Result(int))
    assert "shared['add'][1].data is a " in caplog.text
    assert "Foreign" in caplog.text


if __name__ == "__main__":
    print(*(found.name for found in every_prepare(Path(sys.argv[1])).values()))  # noqa: T201

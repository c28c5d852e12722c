"""A deformation is told whether its affines were applied already, and looks whether that is so."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from itkstream.apply.resampling import apply_transform, piecewise_transform
from itkstream.blocks.inputs import block_grid
from itkstream.compute.execute import compute, execute
from itkstream.deform import prepare_piecewise_deformable_align
from itkstream.errors import ExistingOutputError, RefusedInputError
from itkstream.geometry import AffineTransform, Grid, Image, Transform
from itkstream.numerics.sampling.blend import blend_points
from itkstream.phantoms import PhantomPair
from itkstream.transform import prepare_apply_local_affines

SIZE = (32, 28, 24)
LIGHT: dict[str, Any] = {
    "cc_radius": 4, "iterations": (25, 6), "smooth_sigmas": (1.5, 0.5), "overlap": (8, 7, 6)
}  # fmt: skip
MIDDLE = (slice(4, -4),) * 3


@pytest.fixture(scope="module")
def pair(pair: PhantomPair) -> PhantomPair:
    """The pair, the moving image 6 µm away from where it was."""
    away = np.eye(4)
    away[0, 3] = 6.0
    grid = pair.moving.grid
    grid = replace(grid, origin=(grid.origin[0] + 6.0, *grid.origin[1:]))
    truth = replace(pair.truth, matrix=tuple(map(tuple, away @ np.array(pair.truth.matrix))))
    return replace(pair, moving=Image(pair.moving.read(), grid), truth=truth)


@pytest.fixture(scope="module")
def affines(pair: PhantomPair) -> dict[str, np.ndarray]:
    """The true affine, in two parts that must be composed: local turns, and what undoes them."""
    turn = np.eye(4)
    turn[:2, :2] = [[0.9, -0.3], [0.3, 0.9]]
    local = np.broadcast_to(turn, (2, 2, 2, 4, 4)).copy()
    return {
        "global_affine": np.array(pair.truth.matrix) @ np.linalg.inv(turn),
        "local_affines": local,
    }


@pytest.fixture(scope="module")
def aligned(pair: PhantomPair, affines: dict[str, np.ndarray]) -> np.ndarray:
    lazy = prepare_apply_local_affines(
        pair.fixed, pair.moving, None, None, affines["local_affines"], SIZE,
        affines["global_affine"], overlap=LIGHT["overlap"], dtype=np.float32,
    )  # fmt: skip
    return compute(lazy)


def prepare(pair: PhantomPair, moving: Any, **more: Any) -> Any:
    spacing = pair.fixed.spacing
    there = None if isinstance(moving, Image) else spacing
    return prepare_piecewise_deformable_align(
        pair.fixed.read(), moving, spacing, there, **{"blocksize": SIZE, **LIGHT, **more}
    )


def error(pair: PhantomPair, positions: np.ndarray) -> float:
    off = np.linalg.norm(positions - pair.truth(pair.fixed.grid.positions()), axis=-1)
    return float(np.median(off[MIDDLE][pair.tissue[MIDDLE]]))


@pytest.mark.parametrize("coarse_voxels", [0, 20e6])
@pytest.mark.parametrize("size", [SIZE, (64, 56, 48)])
def test_the_aligned_image_gives_the_map_to_the_original(
    pair: PhantomPair,
    affines: dict[str, np.ndarray],
    aligned: np.ndarray,
    size: tuple[int, ...],
    coarse_voxels: float,
) -> None:
    given = dict(affines)
    if size != SIZE:
        given["local_affines"] = affines["local_affines"][:1, :1, :1]
    more = {"blocksize": size, "coarse_voxels": coarse_voxels}
    start = AffineTransform(np.array(pair.truth.matrix)).apply(pair.fixed.grid.positions())
    found = compute(prepare(pair, aligned, **given, **more))
    assert error(pair, found) < 0.5 * error(pair, start)
    # Composed, not added: what is found between the images, then the affines.
    alone = compute(prepare(pair, aligned, **more))
    affine = piecewise_transform(
        pair.fixed.grid, given["local_affines"], size, given["global_affine"], LIGHT["overlap"]
    )
    np.testing.assert_allclose(found, affine.apply(alone), atol=1e-9)


@pytest.mark.parametrize("coarse_voxels", [0, 20e6])
@pytest.mark.parametrize("kind", ["global", "local"])
def test_either_image_taken_for_the_other_is_refused(
    pair: PhantomPair,
    affines: dict[str, np.ndarray],
    aligned: np.ndarray,
    kind: str,
    coarse_voxels: float,
) -> None:
    given = affines if kind == "local" else {"global_affine": np.array(pair.truth.matrix)}
    for moving, mov_is, other in (
        (pair.moving, "aligned", "original"),
        (aligned, "original", "aligned"),
    ):
        lazy = prepare(pair, moving, mov_is=mov_is, coarse_voxels=coarse_voxels, **given)
        with pytest.raises(RefusedInputError, match=rf"is 0\.\d+ .* say mov_is='{other}'"):
            execute(lazy)
        with pytest.raises(RefusedInputError, match="local correlation of fix with mov"):
            lazy.compute()


def test_after_a_refusal_the_right_call_writes_to_the_same_place(
    pair: PhantomPair, aligned: np.ndarray, tmp_path: Path
) -> None:
    more = {"global_affine": np.array(pair.truth.matrix), "iterations": (2, 1)}
    place = tmp_path / "out.zarr"
    with pytest.raises(RefusedInputError):
        execute(prepare(pair, pair.moving, **more), place)
    right = prepare(pair, aligned, **more)
    np.testing.assert_array_equal(execute(right, place)[...], compute(right))
    with pytest.raises(ExistingOutputError, match="is there already"):
        execute(prepare(pair, pair.moving, mov_is="original", **more), place)


def test_preparing_reads_no_voxel(pair: PhantomPair, affines: dict[str, np.ndarray]) -> None:
    class Unreadable:
        shape, dtype = pair.fixed.shape, np.dtype(np.uint16)

        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("read")

    unreadable = Image(Unreadable(), pair.fixed.grid)
    for mov_is in ("aligned", "original"):
        lazy = prepare_piecewise_deformable_align(
            unreadable, unreadable, None, None, SIZE, **affines, mov_is=mov_is
        )
        assert lazy.shape == (*pair.fixed.shape, 3)


def test_warns_where_it_is_not_sure(
    pair: PhantomPair, aligned: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    near = np.eye(4)
    near[0, 3] = 0.75  # less than a voxel from no affine at all
    with caplog.at_level(logging.WARNING, "itkstream"):
        # The moving image at that place: through the affine it fits a little better.
        shifted = apply_transform(
            pair.fixed, Image(aligned, pair.fixed.grid), AffineTransform(np.linalg.inv(near))
        )
        compute(prepare(pair, shifted, global_affine=near, blocksize=pair.fixed.shape))
    assert "look whether mov seems to be the original moving image" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "itkstream"):
        compute(prepare(pair, aligned, global_affine=np.eye(4), blocksize=pair.fixed.shape))
    assert "look whether" not in caplog.text


def test_the_look_is_coarse_and_works_block_by_block_on_stores(
    pair: PhantomPair, affines: dict[str, np.ndarray], aligned: np.ndarray, tmp_path: Path
) -> None:
    names = {"fix": pair.fixed.read(), "mov": aligned}
    images = [
        zarr.create_array(str(tmp_path / name), data=voxels.T, chunks=(16, 16, 16))
        for name, voxels in names.items()
    ]
    spacing = pair.fixed.spacing
    lazy = prepare_piecewise_deformable_align(
        *images, spacing, spacing, SIZE, (True, True), **affines, **LIGHT
    )
    np.testing.assert_array_equal(compute(lazy), compute(prepare(pair, aligned, **affines)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_go_through_blended_affines_as_through_the_transform(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    shape, size = (40, 36, 20)[:ndim], (10, 12, 20)[:ndim]
    matrices = np.broadcast_to(
        np.eye(ndim + 1), block_grid(shape, size, 2).numblocks + (ndim + 1,) * 2
    )
    matrices = matrices.copy()
    matrices[..., :-1, :] += rng.normal(0, 0.2, matrices[..., :-1, :].shape)
    grid = Grid(shape, (1.0, 1.5, 0.5)[:ndim], (3.0, -2.0, 1.0)[:ndim])
    local = piecewise_transform(grid, matrices, size, None, 2)
    assert isinstance(local, Transform)
    points = rng.uniform(-30, 80, (5, 7, ndim))  # outside too
    np.testing.assert_allclose(blend_points(local, points), local.apply(points), atol=1e-12)

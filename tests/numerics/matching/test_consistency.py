"""Point phantoms with a known displacement, a dense oracle, and properties of the solution."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itkstream.errors import InputError, RegistrationError
from itkstream.geometry import Block, BlockGrid, Grid, PiecewiseAffine
from itkstream.numerics.matching.consistency import (
    CONFIDENCE_COLUMNS,
    ConsistencySettings,
    Evidence,
    evidence_of,
    evidence_size,
    own_confidence,
    solve_consistent,
)

Floats = np.ndarray[Any, np.dtype[np.float64]]
Move = Callable[[Floats], Floats]

MATCHES, RESIDUAL, DISAGREEMENT, CONFIDENCE = range(len(CONFIDENCE_COLUMNS))
NOISE_UM = 0.5
GRID = Grid((600, 500, 400), (1.0, 1.0, 1.0))
BLOCKS = BlockGrid(GRID.shape, (100, 100, 100), (12, 12, 12))


def smooth_move(seed: int, length: float, size: float, ndim: int = 3) -> Move:
    """A random displacement of Gaussian correlation `length` and root mean square `size`."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(0, 1 / length, (60, ndim)), rng.uniform(0, 2 * np.pi, 60)
    heights = rng.normal(0, size / np.sqrt(30 * ndim), (60, ndim))
    return lambda p: np.asarray(np.cos(p @ waves.T + phases) @ heights)


def affine_move(seed: int, grid: Grid, strain: float = 0.01) -> tuple[Move, Floats]:
    """An affine displacement that moves the middle of the grid by 3 µm, and its matrix."""
    rng = np.random.default_rng(seed)
    n = grid.ndim
    matrix = np.eye(n + 1)
    matrix[:n, :n] += rng.normal(0, strain, (n, n))
    middle = grid.to_physical((np.asarray(grid.shape) - 1) / 2)
    matrix[:n, n] = middle + 3 / np.sqrt(n) - matrix[:n, :n] @ middle
    return lambda p: p @ (matrix[:n, :n] - np.eye(n)).T + matrix[:n, n], matrix


@dataclass(frozen=True)
class Case:
    """Matches of every block, and what kind of block each is."""

    grid: Grid
    blocks: BlockGrid
    move: Move
    matches: list[tuple[Floats, Floats]]
    kinds: Any

    def evidence(self) -> Evidence:
        rows = [
            evidence_of(p, q, core_centre(self.grid, block)).packed()
            for (p, q), block in zip(self.matches, self.blocks, strict=True)
        ]
        shape = (*self.blocks.numblocks, evidence_size(self.grid.ndim))
        return Evidence.unpacked(np.stack(rows).reshape(shape), self.grid.ndim)

    def solve(self, settings: ConsistencySettings | None = None) -> tuple[Floats, Floats]:
        return solve_consistent(self.evidence(), self.blocks, self.grid, settings)

    def own_fits(self) -> Floats:
        """Each block's least squares on its own matches; the identity without enough."""
        n = self.grid.ndim
        out = np.broadcast_to(np.eye(n + 1), (len(self.blocks), n + 1, n + 1)).copy()
        for matrix, (p, q) in zip(out, self.matches, strict=True):
            if len(p) > n:
                rows = np.column_stack([p - p.mean(axis=0), np.ones(len(p))])
                fit = np.linalg.lstsq(rows, q, rcond=None)[0].T
                matrix[:n, :n] = fit[:, :n]
                matrix[:n, n] = fit[:, n] - fit[:, :n] @ p.mean(axis=0)
        return out.reshape((*self.blocks.numblocks, n + 1, n + 1))

    def error(self, matrices: Floats, kind: str = "") -> float:
        """Root mean square error of the blended map, in the cores of one kind of block or all."""
        rng = np.random.default_rng(99)
        index = rng.uniform(-0.5, np.asarray(self.grid.shape) - 0.5, (20_000, self.grid.ndim))
        which = ((index + 0.5) // self.blocks.blocksize).astype(int)
        which = np.minimum(which, np.asarray(self.blocks.numblocks) - 1)
        kinds = self.kinds.reshape(self.blocks.numblocks)[tuple(which.T)]
        p = self.grid.to_physical(index[(kinds == kind) if kind else slice(None)])
        found = PiecewiseAffine(matrices, self.blocks, self.grid).apply(p)
        return float(np.sqrt(np.square(found - p - self.move(p)).sum(axis=1).mean()))


def core_centre(grid: Grid, block: Block) -> Floats:
    return grid.to_physical([(s.start + s.stop - 1) / 2 for s in block.core])


def make_case(
    move: Move,
    counts: tuple[int, int],
    seed: int = 0,
    *,
    empty: float = 0.0,
    wrong: float = 0.0,
    noise: float = NOISE_UM,
    grid: Grid = GRID,
    blocks: BlockGrid = BLOCKS,
) -> Case:
    """Random matches in each padded block; wrong ones follow another affine, 10 µm away."""
    rng = np.random.default_rng(seed)
    n = grid.ndim
    kinds = rng.choice(["good", "empty", "wrong"], len(blocks), p=[1 - empty - wrong, empty, wrong])
    matches = []
    for kind, block in zip(kinds, blocks, strict=True):
        m = 0 if kind == "empty" else int(rng.integers(counts[0], counts[1] + 1))
        ends = np.array([(s.start - 0.5, s.stop - 0.5) for s in block.padded])
        p = grid.to_physical(rng.uniform(ends[:, 0], ends[:, 1], (m, n)))
        q = p + move(p) + rng.normal(0, noise, (m, n))
        if kind == "wrong":
            shift = rng.normal(size=n)
            q += 10 * shift / np.linalg.norm(shift)
            q += (p - core_centre(grid, block)) @ rng.normal(0, 0.01, (n, n))
        matches.append((p, q))
    return Case(grid, blocks, move, matches, kinds)


def only(case: Case, number: int, count: int | None = None) -> Case:
    """The case with matches in one block alone, `count` of them."""
    kept = [(p[:count], q[:count]) if b == number else (p[:0], q[:0])
            for b, (p, q) in enumerate(case.matches)]  # fmt: skip
    return Case(case.grid, case.blocks, case.move, kept, case.kinds)


# --- accuracy -------------------------------------------------------------------------------------


def test_one_affine_for_all_blocks_is_found() -> None:
    move, matrix = affine_move(0, GRID)
    case = make_case(move, (500, 500), noise=0.0)
    matrices, confidence = case.solve()
    # Strain is held back by 0.2 of 500 matches: 4e-4 of 1 %, far below what noise does to a fit
    # of 500 matches (0.5 µm / 30 µm / sqrt(500) = 7e-4).
    assert np.abs((matrices - matrix)[..., :3, :3]).max() < 4e-4 * 0.015
    assert case.error(matrices) < 3e-4  # µm
    assert (confidence[..., MATCHES] == 500).all()
    assert confidence[..., RESIDUAL].max() < 1e-3
    # Ties of 1 to each neighbour predict all but the strain that 0.2 holds back.
    assert confidence[..., DISAGREEMENT].max() < 0.05
    assert confidence[..., CONFIDENCE].min() > 0.98


@pytest.mark.parametrize("length", [150.0, 300.0])
def test_rich_blocks_are_as_accurate_as_their_own_fits(length: float) -> None:
    case = make_case(smooth_move(1, length, 5.0), (300, 500))
    matrices, _ = case.solve()
    # Six ties against 400 matches: on the rougher field they cost up to 2 %.
    assert case.error(matrices) <= 1.02 * case.error(case.own_fits())


def test_sparse_blocks_gain_from_their_neighbours() -> None:
    case = make_case(smooth_move(2, 300.0, 8.0), (5, 15))
    matrices, confidence = case.solve()
    assert case.error(matrices) < 0.5 * case.error(case.own_fits())
    assert case.error(matrices) < NOISE_UM
    assert 0.4 < confidence[..., CONFIDENCE].min() < confidence[..., CONFIDENCE].max() < 0.75


@pytest.mark.parametrize("counts", [(300, 500), (5, 15)])
@pytest.mark.parametrize(("empty", "wrong"), [(0.15, 0.0), (0.0, 0.2), (0.1, 0.15)])
def test_blocks_without_right_matches_follow_their_neighbours(
    counts: tuple[int, int], empty: float, wrong: float
) -> None:
    case = make_case(smooth_move(3, 300.0, 8.0), counts, empty=empty, wrong=wrong)
    matrices, confidence = case.solve()
    share = confidence[..., CONFIDENCE].ravel()
    kinds = case.kinds
    # Right blocks as good as the noise of few matches, or the field's curvature, lets them be.
    assert case.error(matrices, "good") < 0.5
    assert (share[kinds == "good"] > 0.3).all()
    if wrong:
        assert (share[kinds == "wrong"] < 0.1).all()
        assert case.error(matrices, "wrong") < 1.5
    if empty:
        assert (share[kinds == "empty"] == 0).all()
        assert np.isnan(confidence[..., RESIDUAL:CONFIDENCE].reshape(-1, 2)[kinds == "empty"]).all()
        assert case.error(matrices, "empty") < 1.5


def test_a_quarter_of_rich_blocks_may_be_wrong() -> None:
    case = make_case(smooth_move(4, 300.0, 8.0), (300, 500), wrong=0.25)
    matrices, confidence = case.solve()
    wrong = case.kinds == "wrong"
    assert wrong.sum() > 20
    assert (confidence[..., CONFIDENCE].ravel()[wrong] < 0.1).all()
    assert case.error(matrices) < 0.5


def test_rough_displacement_does_not_make_right_blocks_wrong() -> None:
    # Neighbours predict each other badly: some disagree by more than `scale_um`.
    case = make_case(smooth_move(5, 100.0, 12.0), (300, 500))
    _, confidence = case.solve()
    assert confidence[..., DISAGREEMENT].max() > ConsistencySettings().scale_um
    assert confidence[..., CONFIDENCE].min() > 0.9


# --- thin evidence --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 37, 119])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 500])
def test_a_lone_block_is_continued_without_running_away(number: int, count: int) -> None:
    move, _ = affine_move(6, GRID, strain=0.02)
    case = only(make_case(move, (500, 500)), number, count)
    matrices, confidence = case.solve()
    assert np.isfinite(matrices).all()
    corners, centre = GRID.corners(), core_centre(GRID, list(BLOCKS)[number])
    moved = PiecewiseAffine(matrices, BLOCKS, GRID).apply(corners) - corners
    # Beyond the block's own displacement no more than half again of the true affine's growth.
    growth = np.linalg.norm(move(corners) - move(centre), axis=1).max()
    assert np.linalg.norm(moved - move(centre), axis=1).max() < 1.5 * growth
    assert (confidence[..., MATCHES] > 0).sum() == 1
    assert confidence[..., CONFIDENCE].max() == pytest.approx(count / (count + 6), rel=0.1)
    if count == 1:
        p, q = case.matches[number]
        found = PiecewiseAffine(matrices, BLOCKS, GRID).apply(p)
        # One match says where, not how turned: it is met, and hardly anything turns.
        assert np.allclose(found, q, atol=0.1)
        assert np.abs(matrices[..., :3, :3] - np.eye(3)).max() < 5e-3


def test_clustered_matches_do_not_turn_the_empty_blocks() -> None:
    # Four matches 5 µm apart: their own affine errs by 0.5 / 5 per micrometer, 50 µm at the corner.
    rng = np.random.default_rng(7)
    case = make_case(lambda p: np.full_like(p, 2.0), (4, 4))
    centre = core_centre(GRID, BLOCKS[0, 0, 0])
    p = centre + rng.uniform(-2.5, 2.5, (4, 3))
    case.matches[0] = (p, p + 2.0 + rng.normal(0, NOISE_UM, p.shape))
    alone = only(case, 0)
    assert alone.error(alone.own_fits()) > 1  # the identity elsewhere: 2 µm per axis
    matrices, _ = alone.solve()
    assert alone.error(matrices) < 1.0


def test_rotation_gives_way_after_strain() -> None:
    turn, stretch = np.zeros((3, 3)), np.diag([0.02, -0.02, 0.0])
    turn[0, 1], turn[1, 0] = 0.02, -0.02
    kept = []
    for part in (turn, stretch):
        everywhere = make_case(lambda p, g=part: (p - 300.0) @ g.T, (8, 8), 8, noise=0.0)  # type: ignore[misc]
        matrices, _ = only(everywhere, 60).solve()
        far = matrices[-1, -1, -1, :3, :3] - np.eye(3)
        kept.append(float((far * part).sum() / (part * part).sum()))
    assert 1 > kept[0] > kept[1] > 0


def test_no_match_at_all_is_an_error() -> None:
    nothing = make_case(smooth_move(0, 300.0, 5.0), (0, 0))
    with pytest.raises(RegistrationError, match="all 120 blocks failed"):
        nothing.solve()


def test_one_block() -> None:
    grid = Grid((60, 50, 40), (1.0, 1.0, 2.0))
    blocks = BlockGrid(grid.shape, grid.shape)
    move, matrix = affine_move(9, grid)
    case = make_case(move, (500, 500), noise=0.0, grid=grid, blocks=blocks)
    matrices, confidence = case.solve()
    assert np.abs(matrices[0, 0, 0, :3, :3] - matrix[:3, :3]).max() < 1e-5
    assert np.isnan(confidence[..., DISAGREEMENT]).all()
    assert confidence[..., CONFIDENCE].item() == pytest.approx(500 / 506)


def test_two_blocks_that_contradict_each_other_both_stay() -> None:
    # Nothing tells which is right: each keeps its own matches, and the map says they disagree.
    grid = Grid((200, 100, 100), (1.0, 1.0, 1.0))
    blocks = BlockGrid(grid.shape, (100, 100, 100), (12, 12, 12))
    case = make_case(lambda p: np.zeros_like(p), (200, 200), grid=grid, blocks=blocks)
    p, q = case.matches[1]
    case.matches[1] = (p, q + 10.0)
    matrices, confidence = case.solve()
    moved = [m[:3, :3] @ core_centre(grid, b) + m[:3, 3] - core_centre(grid, b)
             for m, b in zip(matrices.reshape(-1, 4, 4), blocks, strict=True)]  # fmt: skip
    assert np.allclose(moved, [[0, 0, 0], [10, 10, 10]], atol=0.3)
    assert (confidence[..., DISAGREEMENT] > 10).all()


# --- oracle and properties ------------------------------------------------------------------------


def dense_solution(case: Case, settings: ConsistencySettings) -> Floats:
    """The sum of squares in the module's words, with quadrature points, solved densely."""
    n, blocks, grid = case.grid.ndim, case.blocks, case.grid
    size = n * (n + 1)
    rows, wanted = [], []

    def row(terms: list[tuple[int, Floats]], target: float, weight: float) -> None:
        line = np.zeros(len(blocks) * size)
        for b, values in terms:
            line[b * size : (b + 1) * size] += values
        rows.append(np.sqrt(weight) * line)
        wanted.append(np.sqrt(weight) * target)

    def component(i: int, x: Floats) -> Floats:
        out = np.zeros((n, n + 1))
        out[i] = [*x, 1]
        return out.ravel()

    every = list(blocks)
    centres = [core_centre(grid, b) for b in every]
    # Two Gauss points per axis average a square of an affine function exactly.
    signs = np.array(list(product((-1, 1), repeat=n))) / np.sqrt(3) / 2
    points = [
        grid.to_physical([(s.start + s.stop - 1) / 2 for s in b.core] + signs * b.core_shape)
        for b in every
    ]
    for b, (p, q) in enumerate(case.matches):
        for x, d in zip(p - centres[b], q - p, strict=True):
            for i in range(n):
                row([(b, component(i, x))], d[i], 1.0)
        for y in points[b]:
            x = y - centres[b]
            for i in range(n):
                for sign, weight in ((1, settings.strain), (-1, settings.rotation)):
                    part = np.zeros((n, n + 1))
                    part[i, :n] += x / 2
                    part[:n, i] += sign * x / 2
                    row([(b, part.ravel())], 0.0, weight / len(signs))
    for b, c in product(range(len(every)), repeat=2):
        if (
            sum(abs(j - k) for j, k in zip(every[b].index, every[c].index, strict=True)) != 1
            or b > c
        ):
            continue
        for y in np.concatenate([points[b], points[c]]):
            for i in range(n):
                terms = [(b, component(i, y - centres[b])), (c, -component(i, y - centres[c]))]
                row(terms, 0.0, settings.tie / (2 * len(signs)))
    found = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0].reshape(-1, n, n + 1)
    out = np.broadcast_to(np.eye(n + 1), (len(every), n + 1, n + 1)).copy()
    out[:, :n, :n] += found[:, :, :n]
    out[:, :n, n] = [f[:, n] - f[:, :n] @ c for f, c in zip(found, centres, strict=True)]
    return out.reshape((*blocks.numblocks, n + 1, n + 1))


@pytest.mark.parametrize(("ndim", "seed"), [(2, 0), (2, 1), (3, 0)])
def test_matches_a_dense_least_squares_oracle(
    odd_grid: Callable[..., Grid], ndim: int, seed: int
) -> None:
    grid = odd_grid(seed, ndim, shape=(50, 41, 30)[:ndim])
    blocks = BlockGrid(grid.shape, (16, 20, 16)[:ndim], (3,) * ndim)
    move = smooth_move(seed, 30.0, 1.0, ndim)
    case = make_case(move, (0, 9), seed, grid=grid, blocks=blocks)
    settings = ConsistencySettings(tie=1.7, strain=0.6, rotation=0.2, scale_um=1e6)
    matrices, _ = case.solve(settings)
    # Gradients stop at 1e-8 relative; offsets are far from the origin, 200 µm.
    assert np.allclose(matrices, dense_solution(case, settings), rtol=0, atol=1e-5)


@given(
    seed=st.integers(0, 1000),
    ndim=st.sampled_from([2, 3]),
    shift=st.floats(-1e5, 1e5),
)
@settings(max_examples=12)
def test_origin_and_order_of_axes_do_not_matter(seed: int, ndim: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(ndim)
    shape, size, spacing = np.array([90, 70, 65]), np.array([30, 30, 20]), np.array([1.0, 1.2, 0.7])
    grid = Grid(tuple(shape[:ndim]), tuple(spacing[:ndim]))
    blocks = BlockGrid(grid.shape, tuple(size[:ndim]), (3,) * ndim)
    move = smooth_move(seed, 60.0, 3.0, ndim)
    case = make_case(move, (0, 12), seed, wrong=0.1, grid=grid, blocks=blocks)
    other = Grid(tuple(shape[order]), tuple(spacing[order]), tuple(np.full(ndim, shift)))
    cut = BlockGrid(other.shape, tuple(size[order]), (3,) * ndim)
    number = np.arange(len(blocks)).reshape(blocks.numblocks).transpose(order).ravel()
    turned = [
        (case.matches[b][0][:, order] + shift, case.matches[b][1][:, order] + shift) for b in number
    ]
    first, sure = case.solve()
    second, sure_too = Case(other, cut, move, turned, case.kinds[number]).solve()
    p = grid.to_physical(rng.uniform(0, np.asarray(grid.shape) - 1, (200, ndim)))
    here = PiecewiseAffine(first, blocks, grid).apply(p) - p
    there = PiecewiseAffine(second, cut, other).apply(p[:, order] + shift) - p[:, order] - shift
    # The search for wrong blocks solves to 1e-3 only, so their weights differ in later digits.
    assert np.allclose(there, here[:, order], atol=5e-3)
    same = sure.transpose(*order, ndim)
    assert np.allclose(sure_too, same, atol=2e-2, equal_nan=True)


SOLVE = """
import sys, hashlib, numpy as np
from itkstream.geometry import BlockGrid, Grid
from itkstream.numerics.matching.consistency import Evidence, solve_consistent
rows = np.load(sys.argv[1])
grid = Grid((1200, 1200, 1000), (1.0, 1.0, 1.0))
results = solve_consistent(Evidence.unpacked(rows, 3), BlockGrid(grid.shape, (100, 100, 100)), grid)
print(*(hashlib.sha256(r.tobytes()).hexdigest() for r in results))
"""


@pytest.mark.slow
def test_same_bits_for_any_number_of_threads(tmp_path: Path) -> None:
    # 1440 blocks: inner products of so many numbers are what OpenBLAS spreads over threads.
    grid = Grid((1200, 1200, 1000), (1.0, 1.0, 1.0))
    blocks = BlockGrid(grid.shape, (100, 100, 100))
    move = smooth_move(10, 300.0, 8.0)
    case = make_case(move, (5, 15), empty=0.2, wrong=0.1, grid=grid, blocks=blocks)
    np.save(tmp_path / "rows.npy", case.evidence().packed())
    bits = {
        subprocess.run(
            [sys.executable, "-c", SOLVE, str(tmp_path / "rows.npy")],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in (1, 2)
    }
    assert len(bits) == 1


def test_ten_thousand_blocks_fit_in_little_memory() -> None:
    grid = Grid((2200, 2200, 2100), (1.0, 1.0, 1.0))
    blocks = BlockGrid(grid.shape, (100, 100, 100))
    rng = np.random.default_rng(11)
    spread = rng.integers(0, 12, blocks.numblocks) * (rng.uniform(size=blocks.numblocks) > 0.1)
    normal = spread[..., None, None] * np.diag([833.0, 833.0, 833.0, 1.0])
    moves = np.array([1.0, -2.0, 3.0])
    cross = np.zeros((*spread.shape, 3, 4))
    cross[..., 3] = spread[..., None] * moves
    evidence = Evidence(normal, cross, spread * (moves @ moves))
    tracemalloc.start()
    matrices, _ = solve_consistent(evidence, blocks, grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(blocks) > 10_000
    assert peak < 0.5e9
    assert np.allclose(matrices[..., :3, 3], moves, atol=1e-3)


# --- pieces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
def test_evidence_packs_and_unpacks(ndim: int) -> None:
    rng = np.random.default_rng(12)
    p = rng.normal(size=(7, ndim))
    evidence = evidence_of(p, p + 1, np.ones(ndim))
    row = evidence.packed()
    assert row.shape == (evidence_size(ndim),)
    back = Evidence.unpacked(row, ndim)
    for name in ("normal", "cross", "square"):
        assert np.array_equal(getattr(back, name), getattr(evidence, name))
    assert evidence.normal[ndim, ndim] == 7
    assert evidence.square == pytest.approx(7 * ndim)


def test_own_confidence_is_that_of_the_matches_alone() -> None:
    case = make_case(smooth_move(13, 300.0, 8.0), (0, 40), 13)
    rows = own_confidence(case.evidence())
    counts = np.array([len(p) for p, _ in case.matches]).reshape(BLOCKS.numblocks)
    assert np.array_equal(rows[..., MATCHES], counts)
    assert np.isnan(rows[..., DISAGREEMENT]).all()
    assert np.allclose(rows[..., CONFIDENCE], counts / (counts + 6))
    expected = [
        np.sqrt(np.square(p @ m[:3, :3].T + m[:3, 3] - q).sum(axis=1).mean()) if len(p) > 4 else 0
        for m, (p, q) in zip(case.own_fits().reshape(-1, 4, 4), case.matches, strict=True)
    ]
    rich = counts.ravel() > 4
    assert np.allclose(rows[..., RESIDUAL].ravel()[rich], np.array(expected)[rich], atol=1e-6)


@pytest.mark.parametrize("name", ["tie", "strain", "rotation", "scale_um"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_settings_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be a positive number"):
        ConsistencySettings(**{name: value})

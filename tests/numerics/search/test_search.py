"""Starts are found wherever images lie, and none is made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.matching.contexts import ContextSource, ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.sampling.warping import WarpSettings, warp_block
from itkstream.numerics.search.evidence import Evidence
from itkstream.numerics.search.information import most_informed
from itkstream.numerics.search.initial import Candidate, Found, SearchResult, find_start
from itkstream.numerics.search.lattice import lattice_starts
from itkstream.numerics.search.moments import moment_starts
from itkstream.numerics.search.settings import SearchSettings
from itkstream.numerics.search.turned import Sided, match_turned, turned_starts
from itkstream.numerics.search.witnesses import Witnesses
from itkstream.phantoms import PhantomPair

Three = tuple[Image, Image, np.ndarray]
Error = Callable[[Image, np.ndarray, np.ndarray], float]


def sides(fixed: Image, moving: Image, copy: np.ndarray) -> list[Sided]:
    window = ContextWindow((10.0,) * 3, 7, ball=True)
    made = []
    for image, which in ((fixed, np.eye(3)), (moving, copy)):
        points = find_key_points(image.read(), image.grid, KeyPointSettings(2.0, 6.0)).positions
        points = points[:250]
        made.append(Sided(ContextSource.of(image.read(), image.grid, window), points, which))
    return made


def test_key_points_tell_a_turn_of_130_degrees(turned: Three, error_um: Error) -> None:
    fixed, moving, truth = turned
    starts = turned_starts(match_turned(*sides(fixed, moving, np.eye(3))), 3.0, 4)
    assert starts[0][0] > 2 * starts[-1][0]
    # A rigid transform of a phantom that is stretched by up to 2 % and bends by 2 µm.
    assert error_um(fixed, starts[0][1], truth) < 3


def test_a_mirrored_copy_is_matched_where_it_is_asked_for(mirrored: Three, error_um: Error) -> None:
    fixed, moving, truth = mirrored
    flip = np.diag([-1.0, 1.0, 1.0])
    votes, matrix = turned_starts(match_turned(*sides(fixed, moving, flip)), 3.0, 1)[0]
    plain = turned_starts(match_turned(*sides(fixed, moving, np.eye(3))), 3.0, 1)[0][0]
    assert votes > 3 * plain
    lead = np.diag([-1.0, 1.0, 1.0, 1.0])
    assert error_um(fixed, lead @ matrix, truth) < 3


def test_no_key_points_give_no_starts() -> None:
    grid = Grid((20, 20, 20), (1.0, 1.0, 1.0))
    voxels = np.random.default_rng(0).normal(size=grid.shape)
    source = ContextSource.of(voxels, grid, ContextWindow((4.0,) * 3, 7, ball=True))
    none = Sided(source, np.empty((0, 3)), np.eye(3))
    assert turned_starts(match_turned(none, none), 3.0, 4) == []


def test_the_search_finds_the_turn(turned: Three, error_um: Error) -> None:
    fixed, moving, truth = turned
    best = find_start(Witnesses(fixed, moving), SearchSettings()).best
    assert best is not None
    assert best.evidence.outcome == "convincing"
    assert not best.mirrored
    assert error_um(fixed, best.matrix, truth) < 2


def test_a_tissue_of_other_size_is_found(turned: Three, error_um: Error) -> None:
    fixed, moving, truth = turned
    grid = moving.grid
    large = Grid(grid.shape, tuple(1.25 * s for s in grid.spacing), axes=grid.axes)
    best = find_start(Witnesses(fixed, Image(moving.read(), large)), SearchSettings()).best
    assert best is not None
    assert best.evidence.outcome == "convincing"
    assert error_um(fixed, best.matrix, np.diag([1.25, 1.25, 1.25, 1.0]) @ truth) < 2.5


def test_what_is_known_is_looked_at_first(turned: Three) -> None:
    known = [Candidate("known", turned[2])]
    result = find_start(Witnesses(turned[0], turned[1]), SearchSettings(), known)
    assert result.looked_at == 1
    assert result.best is not None
    assert result.best.origin == "known"


def test_a_rival_is_turned_otherwise_and_nearly_as_good() -> None:
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])

    def found(matrix: np.ndarray, supported: int) -> Found:
        return Found("here", matrix, Evidence(supported, (3,), 1000))

    best = found(np.eye(4), 100)
    assert SearchResult((best, found(turn, 85)), 9).rival is not None
    assert SearchResult((best, found(turn, 75)), 9).rival is None
    assert SearchResult((best, found(np.diag([1.1, 1.0, 1.0, 1.0]), 99)), 9).rival is None
    assert SearchResult((best, found(np.diag([-1.0, 1.0, 1.0, 1.0]), 99)), 9).rival is None
    assert SearchResult((), 9).rival is None


def ellipsoid(turn: np.ndarray) -> Image:
    """A lopsided ellipsoid, turned about the middle of the image."""
    grid = Grid((48, 48, 48), (1.0, 1.0, 1.0))
    at = (grid.positions() - 23.5) @ turn
    inside = np.square(at / np.array([18.0, 11.0, 7.0])).sum(axis=-1) < 1
    return Image(np.where(inside, 100 + 3 * at[..., 0], 0).astype(np.float32), grid)


def on_bright_ground(light: Image, seed: int) -> Image:
    """What light leaves that shines through, uneven and noisy."""
    rng = np.random.default_rng(seed)
    slope = 1 + 0.2 * np.linspace(0, 1, light.shape[1])[:, None]
    counts = rng.poisson(100 * slope * np.exp(-np.asarray(light.read()) / 150))
    return Image(counts.astype(np.uint16), light.grid)


@pytest.mark.parametrize("bright", [False, True])
def test_a_shape_without_blobs_is_turned_by_its_axes(error_um: Error, bright: bool) -> None:
    turn = Rotation.from_rotvec([0.9, -1.3, 0.6]).as_matrix()
    fixed, moving = ellipsoid(np.eye(3)), ellipsoid(turn)
    if bright:
        fixed, moving = (on_bright_ground(image, n) for n, image in enumerate((fixed, moving)))
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = turn, 23.5 - turn @ np.full(3, 23.5)
    starts = moment_starts(fixed, moving)
    assert min(error_um(fixed, matrix, truth) for matrix in starts) < 1


@pytest.mark.parametrize("degrees", [37.0, 141.0])
def test_all_turns_are_tried_on_a_coarse_level(degrees: float) -> None:
    """Smooth texture in a plane, of which two thirds are in both images."""
    rng = np.random.default_rng(4)
    grid = Grid((120, 110), (1.0, 1.0))
    scene = Image(gaussian_filter(rng.normal(size=grid.shape), 4).astype(np.float32), grid)
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    onto = np.eye(3)
    onto[:2, :2] = [[c, -s], [s, c]]
    onto[:2, 2] = 57.0 - onto[:2, :2] @ np.array([60.0, 55.0]) + (9.0, -12.0)
    settings = WarpSettings(background=np.nan, dtype=np.float32)
    moving = Image(warp_block(scene, AffineTransform(onto), grid, settings), grid)
    best = lattice_starts(scene, moving, np.eye(2), 0.4, 4)[0].matrix
    points = grid.positions()[30:90:10, 30:80:10].reshape(-1, 2)
    expected = AffineTransform(np.linalg.inv(onto)).apply(points)
    apart = np.linalg.norm(AffineTransform(best).apply(points) - expected, axis=1)
    # Turns are 4 degrees apart, and voxels of the level 1.25 long.
    assert np.median(apart) < 3


@pytest.mark.nightly
def test_information_tells_a_start_where_contrast_is_another(
    pair: PhantomPair, error_um: Error
) -> None:
    voxels = pair.moving.read().astype(np.float32)
    inverted = Image(voxels.max() - voxels, pair.moving.grid)
    truth = np.array(pair.truth.matrix)
    near, far = truth.copy(), truth @ np.diag([-1.0, -1.0, 1.0, 1.0])
    near[:3, 3] += (2.0, -1.5, 1.0)
    far[:2, 3] += (60.0, 50.0)
    best = most_informed(pair.fixed, inverted, [far, near])
    assert best is not None
    # The phantom bends by up to 2 µm.
    assert error_um(pair.fixed, best.matrix, truth) < 1.5
    assert best.stands_out


@pytest.mark.parametrize(
    ("name", "value"),
    [("mirror", "maybe"), ("scales", ()), ("scales", (0.0,)), ("scales", "no"), ("overlap", 0),
     ("overlap", 1.1), ("seed", -1)],
)  # fmt: skip
def test_parameters_are_checked(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        SearchSettings(**{name: value})

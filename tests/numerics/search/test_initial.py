"""Starts are found wherever images lie, and none is made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from itkstream.errors import InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.numerics.matching.contexts import ContextSource, ContextWindow
from itkstream.numerics.matching.keypoints import KeyPointSettings, find_key_points
from itkstream.numerics.search.initial import find_start
from itkstream.numerics.search.lattice import lattice_starts
from itkstream.numerics.search.moments import moment_starts
from itkstream.numerics.search.settings import SearchSettings
from itkstream.numerics.search.turned import Sided, match_turned, turned_starts
from itkstream.numerics.search.witnesses import Witnesses

Three = tuple[Image, Image, np.ndarray]
Error = Callable[[Image, np.ndarray, np.ndarray], float]


def sides(fixed: Image, moving: Image, copy: np.ndarray) -> list[Sided]:
    window = ContextWindow((10.0,) * 3, 7, ball=True)
    made = []
    for image, which in ((fixed, np.eye(3)), (moving, copy)):
        points = find_key_points(image.read(), image.grid, KeyPointSettings(2.0, 6.0)).positions
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
    from itkstream.numerics.search.initial import Candidate

    known = [Candidate("known", turned[2])]
    result = find_start(Witnesses(turned[0], turned[1]), SearchSettings(), known)
    assert result.looked_at == 1
    assert result.best is not None
    assert result.best.origin == "known"


def ellipsoid(turn: np.ndarray) -> Image:
    """A lopsided ellipsoid, turned about the middle of the image."""
    grid = Grid((48, 48, 48), (1.0, 1.0, 1.0))
    at = (grid.positions() - 23.5) @ turn
    inside = np.square(at / np.array([18.0, 11.0, 7.0])).sum(axis=-1) < 1
    return Image(np.where(inside, 100 + 3 * at[..., 0], 0).astype(np.float32), grid)


@pytest.mark.parametrize("starts", ["moments", "lattice"])
def test_a_shape_without_blobs_gives_starts(starts: str, error_um: Error) -> None:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec([0.9, -1.3, 0.6]).as_matrix()
    fixed, moving = ellipsoid(np.eye(3)), ellipsoid(turn)
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = turn, 23.5 - turn @ np.full(3, 23.5)
    assert moving.read()[
        tuple(np.rint(AffineTransform(truth).apply((38.0, 23.5, 23.5))).astype(int))
    ]
    if starts == "moments":
        matrices = moment_starts(fixed, moving)
        limit = 1.0
    else:
        matrices = [s.matrix for s in lattice_starts(fixed, moving, np.eye(3), 0.4, 8)]
        # Neighbouring rotations of the lattice are some 25 degrees apart.
        limit = 6.0
    assert min(error_um(fixed, matrix, truth) for matrix in matrices) < limit


@pytest.mark.parametrize(
    ("name", "value"),
    [("mirror", "maybe"), ("scales", ()), ("scales", (0.0,)), ("scales", "no"), ("overlap", 0),
     ("overlap", 1.1), ("seed", -1)],
)  # fmt: skip
def test_parameters_are_checked(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        SearchSettings(**{name: value})

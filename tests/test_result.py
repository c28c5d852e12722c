"""A registration as a value: what it gives as numpy, SimpleITK and xarray, its report and view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import itkstream
from itkstream import viewing
from itkstream.errors import InputError
from itkstream.io import write_n5
from itkstream.phantoms import PhantomPair

STEPS = (
    itkstream.RansacAffine(radii=[(2, 6)], match_threshold=0.6, cc_radius=8),
    itkstream.Deformable(stiffness=1),
)
QUICK = itkstream.RegisterSettings(error_map=False, report=False)


@pytest.fixture(scope="module")
def registration(
    pair: PhantomPair, tmp_path_factory: pytest.TempPathFactory
) -> itkstream.Registration:
    folder = tmp_path_factory.mktemp("result")
    paths = []
    for side, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        write_n5(folder / f"{side} <b>.n5", "s0", image.read(), image.grid, chunks=(32, 32, 32))
        paths.append(folder / f"{side} <b>.n5" / "s0")
    return itkstream.register(*paths, folder / "out", STEPS, QUICK)


@pytest.fixture(scope="module")
def points(pair: PhantomPair) -> np.ndarray:
    middle = np.multiply(pair.fixed.shape, pair.fixed.spacing) / 2
    return middle + np.random.default_rng(0).uniform(-8, 8, (50, 3))


def test_every_door_gives_the_same_kind(registration: itkstream.Registration) -> None:
    opened = itkstream.Registration.open(registration.out)
    assert type(registration) is type(opened) is itkstream.Registration
    assert type(opened.moved(opened.out)) is itkstream.Registration


def test_the_inverse_leads_back(registration: itkstream.Registration, points: np.ndarray) -> None:
    there = registration.apply(points)
    np.testing.assert_allclose(registration.inverse.apply(there), points, atol=0.02)
    # Any shape of points, one point too.
    assert registration.inverse.apply(there.reshape(5, 10, 3)).shape == (5, 10, 3)
    np.testing.assert_allclose(registration.inverse.apply(there[0]), points[0], atol=0.02)
    assert np.isnan(registration.inverse.apply([1e4, 1e4, 1e4])).all()


def test_the_inverse_on_a_grid_warps_and_is_written(
    registration: itkstream.Registration, points: np.ndarray, pair: PhantomPair, tmp_path: Path
) -> None:
    sampled = registration.inverse.on(pair.moving.grid)
    there = registration.apply(points)
    np.testing.assert_allclose(sampled.apply(there), points, atol=0.1)
    sampled.write(tmp_path / "inverse.h5")
    with pytest.raises(InputError, match="InverseTransform"):
        registration.inverse.write(tmp_path / "unsampled.h5")


def test_simpleitk_maps_points_alike(
    registration: itkstream.Registration, points: np.ndarray
) -> None:
    """The oracle is ITK: its points are x, y, z, as the axes of this pair are."""
    transform = registration.transform.to_sitk()
    assert isinstance(transform, sitk.Transform)
    assert registration.transform.axes == ("x", "y", "z")
    there = [transform.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(there, registration.apply(points), atol=1e-4)


def test_simpleitk_resamples_alike(registration: itkstream.Registration, pair: PhantomPair) -> None:
    moving, fixed = pair.moving.to_sitk(), pair.fixed.to_sitk()
    transform = registration.transform.to_sitk()
    seen = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    ours = registration.apply(pair.moving, itkstream.WarpSettings(dtype=np.float32)).to_xarray()
    inner = (slice(6, -6),) * 3
    theirs = sitk.GetArrayFromImage(seen)[inner]
    difference = theirs - ours.transpose("z", "y", "x").to_numpy()[inner]
    # Where a position falls on the border of the moving image one of both takes the background.
    assert np.percentile(np.abs(difference), 99) < 1


def test_an_affine_without_axes_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match=r"axes=\('z', 'y', 'x'\)"):
        itkstream.AffineTransform(np.eye(4)).to_sitk()
    assert itkstream.AffineTransform(np.eye(4)).to_sitk("zyx").GetDimension() == 3


def test_the_report_is_written_and_shown(
    registration: itkstream.Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(viewing, "_has_screen", lambda: False)
    monkeypatch.setattr(viewing.webbrowser, "open", opened.append)
    page = registration.report()
    assert page.is_file()
    assert registration.show() == "report"
    assert opened == [page.path.as_uri()]


@pytest.fixture
def values(registration: itkstream.Registration) -> Iterator[object]:
    odd = itkstream.Image(np.eye(9, dtype="u1"), itkstream.Grid((9, 9), (1, 1)), "a <b>&c")
    plan = itkstream.plan(registration.aligned, registration.aligned)
    affine = registration.transform.transforms[-1]
    return iter(
        (registration, odd, plan, registration.transform, affine, registration.inverse, STEPS[1])
    )


def test_values_are_short_in_a_line_and_drawn_in_a_notebook(values: Iterator[object]) -> None:
    for value in values:
        assert "\n" not in repr(value)
        assert len(repr(value)) < 400
        shown = value._repr_html_()  # type: ignore[attr-defined]
        assert shown.startswith("<div>")
        assert "<b>&" not in shown
        assert len(shown) < 100_000


def test_a_picture_is_drawn_of_images_and_registrations(
    registration: itkstream.Registration,
) -> None:
    for value in (registration, registration.aligned):
        assert "data:image/png;base64," in value._repr_html_()
    assert "<td>deformation</td>" in registration._repr_html_()

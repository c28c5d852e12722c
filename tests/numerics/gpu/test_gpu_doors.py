"""Every door takes an engine, refuses an unknown one at once, and says nothing of one by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from emulated import needs_compiler

from itkstream import pipelines
from itkstream.affine import ransac_affine
from itkstream.compute.execute import execute
from itkstream.deform import DescentSettings, deformable_align
from itkstream.errors import InputError
from itkstream.numerics.gpu.backend import find_backend
from itkstream.workers import Resources

SPACING = (1.0, 1.0, 1.0)
IMAGE = np.random.default_rng(0).normal(size=(18, 20, 16)).astype(np.float32)
GIVEN: dict[str, Any] = {"spacing": SPACING, "axes": "zyx"}


@needs_compiler
def test_images_in_memory_are_deformed_on_what_is_said(with_gpus: Callable[..., None]) -> None:
    levels = {"iterations": (2,), "shrink_factors": (1,), "smooth_sigmas": (0.0,)}
    settings = DescentSettings(cc_radius=3, **levels)
    with_gpus(1)
    backend = find_backend()
    assert backend is not None
    launched = backend.xp.launched
    for said, used in (("gpu", True), ("auto", True), ("cpu", False), (None, False)):
        launched.clear()
        found = deformable_align(IMAGE, IMAGE, SPACING, SPACING, settings=settings, engine=said)
        assert (found.shape, bool(launched)) == ((*IMAGE.shape, 3), used)
    with_gpus(0)
    with pytest.raises(InputError, match="needs CuPy and a GPU"):
        deformable_align(IMAGE, IMAGE, SPACING, SPACING, settings=settings, engine="gpu")


def test_an_engine_is_said_beside_resources_or_in_them(with_gpus: Callable[..., None]) -> None:
    with_gpus(1)
    for given in ({"engine": "gpu"}, {"resources": Resources(engine="gpu")}):
        assert pipelines.plan(IMAGE, IMAGE, **GIVEN, **given).facts["device_memory"]
    assert "device_memory" not in pipelines.plan(IMAGE, IMAGE, **GIVEN).facts
    with pytest.raises(InputError, match="contradict each other"):
        pipelines.plan(IMAGE, IMAGE, **GIVEN, engine="gpu", resources=Resources(engine="cpu"))


@pytest.mark.parametrize(
    "door",
    [
        lambda out: deformable_align(IMAGE, IMAGE, SPACING, SPACING, engine="tpu"),
        lambda out: ransac_affine(IMAGE, IMAGE, SPACING, SPACING, 2, 6, 0.7, engine="tpu"),
        lambda out: pipelines.plan(IMAGE, IMAGE, **GIVEN, engine="tpu"),
        lambda out: pipelines.register(IMAGE, IMAGE, out, **GIVEN, engine="tpu"),
        lambda out: pipelines.preview(IMAGE, IMAGE, out / "page.html", engine="tpu"),
        lambda out: execute(da.zeros(3), out / "out.zarr", engine="tpu"),
    ],
)
def test_what_is_no_engine_is_refused_at_once(door: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown engine 'tpu'"):
        door(tmp_path)
    assert not list(tmp_path.iterdir())

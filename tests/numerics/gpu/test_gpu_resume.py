"""A computation goes on with the engine that began it, unless its user names another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk

from itkstream.compute.execute import execute
from itkstream.compute.ledger import Ledger
from itkstream.errors import BlockErrors, InputError
from itkstream.geometry import AffineTransform
from itkstream.io.storage.locations import Location
from itkstream.numerics.gpu.engine import choose_engine, engine_said, join_engines
from itkstream.pipelines import register
from itkstream.registration.steps import Deformable, IntensityAffine, RegisterSettings
from itkstream.workers import Resources


@pytest.mark.parametrize(
    ("said", "begun", "chosen"),
    [
        (None, None, "cpu"),
        ("auto", None, "gpu"),
        (None, "cpu", "cpu"),
        # What goes on by itself keeps its bits.
        ("auto", "cpu", "cpu"),
        ("auto", "gpu", "gpu"),
        ("cpu", "gpu", "cpu"),
        ("gpu", "cpu+gpu", "gpu"),
        (None, "gpu", None),
        (None, "cpu+gpu", None),
        ("auto", "cpu+gpu", None),
    ],
)
def test_only_who_names_an_engine_goes_on_with_another(
    with_gpus: Callable[..., None], said: Any, begun: str | None, chosen: str | None
) -> None:
    with_gpus(1)
    if chosen:
        assert choose_engine(said, True, begun, "out") == chosen
        return
    with pytest.raises(InputError, match=re.escape(f"out was begun with engine={begun!r}")):
        choose_engine(said, True, begun, "out")


def test_what_a_gpu_began_needs_one_to_go_on_by_itself(with_gpus: Callable[..., None]) -> None:
    with_gpus(0)
    assert choose_engine("auto", True) == "cpu"
    with pytest.raises(InputError, match="begun on a GPU, and CuPy finds none here: engine='cpu'"):
        choose_engine("auto", True, "gpu", "out")
    # Workers elsewhere have their own.
    assert choose_engine("auto", False, "gpu", "out") == "gpu"
    assert choose_engine("auto", False) == "auto"


def test_engines_are_named_once() -> None:
    assert join_engines("cpu", "cpu") == "cpu"
    assert join_engines("gpu+cpu", "gpu") == "gpu+cpu"


class Stop(Exception):
    """Stands for a kill."""


class Watching:
    """Hears notes, and stops a run before a step."""

    def __init__(self, last: str = "") -> None:
        self.last = last
        self.notes: list[str] = []

    def expect(self, parts: Any) -> None: ...

    def blocks(self, done: int, total: int) -> None: ...

    def step(self, title: str) -> None:
        if title == self.last:
            raise Stop

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "image.nrrd")
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), path)
    return path


def registering(image: str, out: Path, engine: Any, last: str = "") -> list[str]:
    """Register an image to itself in two steps, or up to one of them; what was told."""
    steps = (
        IntensityAffine(iterations=(2,), shrink_factors=(1,), smooth_sigmas=(1,)),
        Deformable(stiffness=1.0, similarity="lcc"),
    )
    told = Watching(last)
    register(
        image,
        image,
        out,
        steps,
        RegisterSettings(error_map=False, report=False),
        initial_transform=AffineTransform(np.eye(4)),
        resources=Resources(engine=engine),
        reporter=told,
    )
    return told.notes


def test_a_registration_goes_on_with_its_engine_alone(
    with_gpus: Callable[..., None], image: str, tmp_path: Path, command: Any
) -> None:
    """Its affine is done and no voxel of its deformation when another engine is to go on."""
    with_gpus(1)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        registering(image, out, "auto", "deformation")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    before = content()
    with pytest.raises(InputError, match="was begun with engine='gpu'"):
        registering(image, out, None)
    said = command("register", image, image, "--out", out)
    assert said.returncode == 2
    assert "say which is to go on, --engine gpu or --engine cpu" in " ".join(said.stderr.split())
    with_gpus(0)
    with pytest.raises(InputError, match="CuPy finds none here"):
        registering(image, out, "auto")
    assert content() == before
    registering(image, out, "cpu")
    assert json.loads((out / "registration.json").read_text())["engine"] == "gpu+cpu"
    # Nothing is left to compute.
    notes = registering(image, out, None)
    assert set(notes) == {"done by an earlier run"}
    assert json.loads((out / "registration.json").read_text())["engine"] == "gpu+cpu"


def test_auto_says_what_computes(
    with_gpus: Callable[..., None], image: str, tmp_path: Path
) -> None:
    for count, said in ((1, "GPU 0 computes"), (0, "the processors compute: CuPy finds no GPU")):
        with_gpus(count)
        told = Watching("read")
        with pytest.raises(Stop):
            register(
                image, image, tmp_path / "out", resources=Resources(engine="auto"), reporter=told
            )
        assert re.match(f"{said}", told.notes[0])


def halved(broken: set[int]) -> da.Array:
    """Numbers by halves; some blocks fail."""

    def half(block: np.ndarray, block_id: tuple[int, ...] = ()) -> np.ndarray:
        if block_id[0] in broken:
            raise ValueError("no tissue")
        return block / 2

    values = da.from_array(np.arange(6.0), chunks=2)
    return values.map_blocks(half, dtype=float, meta=np.zeros(0), name="halved")


def test_an_array_goes_on_with_its_engine_alone(
    with_gpus: Callable[..., None], tmp_path: Path
) -> None:
    with_gpus(1)
    path, broken = tmp_path / "out.zarr", {1}
    lazy = halved(broken)
    with pytest.raises(BlockErrors):
        execute(lazy, path, engine="auto")
    broken.clear()
    with pytest.raises(InputError, match="begun with engine='gpu'"):
        execute(lazy, path)
    written = execute(lazy, path, engine="cpu")
    np.testing.assert_array_equal(written[:], np.arange(6.0) / 2)

    def header() -> tuple[str, bool]:
        found = Ledger(Location.parse(path)).header()
        assert found is not None
        return found.engine, found.finished

    assert header() == ("gpu+cpu", True)
    # What is complete is opened, whatever is said.
    assert execute(lazy, path)[:].tobytes() == written[:].tobytes()
    assert header() == ("gpu+cpu", True)
    (path / "c" / "0").unlink()
    with pytest.raises(InputError, match=r"begun with engine='gpu\+cpu'"):
        execute(lazy, path)


def test_blocks_know_their_engine_wherever_they_are(with_gpus: Callable[..., None]) -> None:
    values = da.from_array(np.zeros(2), chunks=1)

    def name(block: np.ndarray) -> np.ndarray:
        return block + (engine_said() == "gpu")

    lazy = values.map_blocks(name, dtype=float, meta=np.zeros(0))
    with_gpus(1)
    assert np.asarray(execute(lazy, engine="auto")).all()
    assert np.asarray(execute(lazy, engine="auto", n_workers=1)).all()
    assert not np.asarray(execute(lazy)).any()
    assert engine_said() is None

"""The choice of an engine: by request only, and never a run that fails for want of memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from emulated import EmulatedBackend, needs_compiler

from itkstream.compute.execute import execute
from itkstream.compute.ledger import Ledger
from itkstream.errors import BlockErrors, DeviceError, InputError
from itkstream.geometry import AffineTransform, Grid, Image
from itkstream.io.storage.locations import Location
from itkstream.numerics.deformation.settings import PIPELINE_DEFAULTS, PIPELINE_MIND
from itkstream.numerics.engines import DeformEstimate, deform_block
from itkstream.numerics.gpu import dispatch, engine
from itkstream.numerics.gpu.backend import find_backend, visible_devices
from itkstream.numerics.gpu.engine import (
    BYTES_PER_VOXEL,
    device_bytes,
    engine_here,
    engine_said,
    using_engine,
)
from itkstream.workers import Resources

GRID = Grid((18, 20, 16), (1.0, 1.0, 1.0))


def deform(settings: Any = PIPELINE_DEFAULTS) -> DeformEstimate:
    fixed = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    moving = np.roll(fixed, 1, axis=0)
    images = Image(fixed, GRID), Image(moving, GRID)
    return deform_block(*images, AffineTransform(np.eye(4)), settings.for_voxels(GRID.spacing))


def bits(found: DeformEstimate) -> bytes:
    assert found.displacement is not None
    return found.displacement.tobytes()


# dask looks for CuPy by itself, and does without.
_NO_CUPY = """
import traceback, os
said = os.environ.get("SAID", "nobody")
if any("numerics" in frame.filename for frame in traceback.extract_stack()):
    raise SystemExit("CuPy was imported by " + said)
raise ImportError
"""


def test_nothing_looks_for_a_gpu_unless_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text(_NO_CUPY, encoding="utf-8")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import itkstream, itkstream.cli.app, itkstream.pipelines\n"
        "from itkstream.workers import Resources\n"
        "from test_engine import deform\n"
        "assert deform() and Resources() and Resources(engine='cpu')\n"
        "import os; os.environ['SAID'] = 'who asked'\n"
        "Resources(engine='gpu')"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    # The last line does look for it.
    assert (run.returncode, run.stderr.strip()) == (1, "CuPy was imported by who asked")


def test_without_a_gpu_auto_changes_no_bit(use: Callable[[Any], None]) -> None:
    use(None)
    expected = bits(deform())
    with using_engine("auto"):
        assert bits(deform()) == expected


def test_without_a_gpu_to_ask_for_one_is_refused(use: Callable[[Any], None]) -> None:
    use(None)
    with pytest.raises(InputError, match=r"pip install 'itkstream\[gpu\]'"):
        Resources(engine="gpu")
    with pytest.raises(InputError, match="engine"):
        Resources(engine="tpu")  # type: ignore[arg-type]
    with using_engine("gpu"), pytest.raises(DeviceError, match="no GPU"):
        deform()


@needs_compiler
@pytest.mark.parametrize("said", ["gpu", "auto"])
def test_a_block_goes_to_the_gpu(
    said: Any, use: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected, device = deform(), EmulatedBackend()
    use(device)
    with using_engine(said), caplog.at_level(logging.INFO, "itkstream"):
        found = deform()
    assert "correlate" in device.launched
    assert device.name in caplog.text
    assert found.displacement is not None
    np.testing.assert_allclose(found.displacement, expected.displacement, atol=1e-3)
    assert engine_said() is None


def test_self_similarity_stays_on_the_processors(use: Callable[[Any], None]) -> None:
    use(EmulatedBackend())
    expected = bits(deform(PIPELINE_MIND))
    with using_engine("gpu"):
        assert bits(deform(PIPELINE_MIND)) == expected


def test_who_shares_out_blocks_needs_no_gpu(use: Callable[[Any], None]) -> None:
    use(None)
    expected = bits(deform())
    with using_engine(engine_here("gpu", here=False)):
        assert bits(deform()) == expected
    assert engine_here("gpu", here=True) == "gpu"
    assert engine_here(None, here=False) is None


class _Failing(EmulatedBackend):
    """Fails at its first kernel."""

    errors = (ConnectionError,)

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        raise self.error


def test_auto_does_without_a_cupy_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find() -> None:
        raise DeviceError("CuPy cannot be imported: no libcuda")

    expected = bits(deform())
    for module in (dispatch, engine):
        monkeypatch.setattr(module, "find_backend", find)
    with using_engine("auto"):
        assert bits(deform()) == expected
    assert engine.choose_engine("auto", here=True) == "cpu"
    assert caplog.text.count("no libcuda: the processors compute") == 1
    with using_engine("gpu"), pytest.raises(DeviceError, match="no libcuda"):
        deform()


@pytest.mark.parametrize(
    "device", [EmulatedBackend(memory=1000), _Failing(MemoryError("out of memory"))]
)
def test_without_room_the_processors_go_on_with_a_warning(
    device: EmulatedBackend, use: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = bits(deform())
    use(device)
    with using_engine("gpu"):
        assert bits(deform()) == expected
    assert "the processors compute it" in caplog.text


def test_a_library_without_memory_is_no_lost_device(
    with_gpus: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = bits(deform())
    with_gpus(1, STAND_IN_FULL="yes")
    with using_engine("gpu"):
        assert bits(deform()) == expected
    assert "GPU 0 is out of memory (CUDA_ERROR_OUT_OF_MEMORY" in caplog.text


def test_a_gpu_without_a_library_of_cuda_is_none_to_auto(
    with_gpus: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """A driver brings neither compiler nor libraries."""
    expected = bits(deform())
    with_gpus(1, STAND_IN_LACKS="libnvrtc")
    with using_engine("auto"):
        assert bits(deform()) == expected
    assert caplog.text.count("libnvrtc is not there): where parts of CUDA are missing, pip") == 1
    with pytest.raises(DeviceError, match=r"cupy-cuda12x\[ctk\]"):
        Resources(engine="gpu")


def test_more_rows_than_a_grid_has_blocks_stay_on_the_processors(
    with_gpus: Callable[..., None],
) -> None:
    with_gpus(1)
    backend = find_backend()
    assert backend is not None
    with pytest.raises(MemoryError, match="too many rows or planes"):
        backend.launch("laplacian", (1, 1, 70000))


@needs_compiler
def test_large_arrays_and_small_ones_come_and_go(with_gpus: Callable[..., None]) -> None:
    with_gpus(1)
    backend = find_backend()
    assert backend is not None
    for array in (np.arange(12.0)[::2], np.arange(2.0**19)[::2]):
        np.testing.assert_array_equal(backend.get(backend.put(array)), array)


def test_a_lost_device_is_a_failed_block_with_its_reason(use: Callable[[Any], None]) -> None:
    use(_Failing(ConnectionError("unspecified launch failure")))
    blocks = da.from_array(np.zeros((2, 2)), chunks=(1, 2)).map_blocks(
        lambda block: block + bool(deform()), meta=np.zeros((0, 0))
    )
    with pytest.raises(BlockErrors) as caught:
        execute(blocks, engine="gpu")
    assert len(caught.value.failures) == 2
    assert "was lost: unspecified launch failure" in caught.value.failures[0].reason


class _LostOnce(EmulatedBackend):
    """Fails at its first kernel, as a device that is reset meanwhile."""

    errors = (ConnectionError,)

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        if not self.launched:
            self.launched.append(kernel)
            raise ConnectionError("unspecified launch failure")
        super().launch(kernel, size, *arguments)


@needs_compiler
def test_other_blocks_go_on_and_the_same_again_computes_the_lost_one(
    use: Callable[[Any], None], tmp_path: Path
) -> None:
    device = _LostOnce()
    use(device)
    blocks = da.from_array(np.zeros(3), chunks=1).map_blocks(
        lambda block: block + bool(deform()), meta=np.zeros(0), name="deformed"
    )
    path = tmp_path / "out.zarr"
    with pytest.raises(BlockErrors, match=r"(?s)1 of 3 blocks failed.*was lost"):
        execute(blocks, path, engine="gpu", threads_per_worker=1)
    (noted,) = Ledger(Location.parse(path)).failures()
    assert noted.reason == f"{device.name} was lost: unspecified launch failure"
    seen: list[tuple[int, int]] = []
    written = execute(blocks, path, engine="gpu", progress=lambda *counts: seen.append(counts))
    assert seen == [(2, 3), (3, 3)]
    assert written[:].all()
    assert not Ledger(Location.parse(path)).failures()


def test_channels_take_memory_of_a_device() -> None:
    assert device_bytes(10, 20, 3) > device_bytes(10, 20) == 20 * BYTES_PER_VOXEL


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy_there_is_no_gpu() -> None:
    assert find_backend() is None
    assert visible_devices() == ()
    assert Resources(engine="auto").choose_engine() == "cpu"
    expected = bits(deform())
    with using_engine("auto"):
        assert bits(deform()) == expected
    assert "cupy" not in sys.modules

"""GPUs that are none, seen through a CuPy that is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from itkstream.numerics.gpu.backend import find_backend

STAND_IN = str(Path(__file__).with_name("stand_in"))


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give this process, and those it starts, so many GPUs; further variables as stand_in has."""

    def change(count: int, **variables: str) -> None:
        monkeypatch.syspath_prepend(STAND_IN)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in {"STAND_IN_GPUS": str(count), **variables}.items():
            monkeypatch.setenv(name, value)
        find_backend.cache_clear()

    yield change
    sys.modules.pop("cupy", None)
    find_backend.cache_clear()

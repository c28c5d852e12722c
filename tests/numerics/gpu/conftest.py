"""A device that is found, and computing on both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from emulated import EmulatedBackend

from itkstream.numerics.gpu import backend as backends
from itkstream.numerics.gpu import dispatch, engine
from itkstream.numerics.gpu.engine import using_engine


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make a device, or None, the one that is found."""

    def change(device: Any) -> None:
        for module in (backends, dispatch, engine):
            monkeypatch.setattr(module, "find_backend", lambda: device)

    return change


@pytest.fixture
def device(use: Callable[[Any], None]) -> EmulatedBackend:
    """A device that is found where one is asked for."""
    found = EmulatedBackend()
    use(found)
    return found


@pytest.fixture
def both(device: EmulatedBackend) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What the processors compute, and what the device does, which has to take part."""

    def compute(function: Callable[[], Any]) -> tuple[Any, Any]:
        here, before = function(), len(device.launched)
        with using_engine("gpu"):
            there = function()
        assert len(device.launched) > before
        return here, there

    return compute

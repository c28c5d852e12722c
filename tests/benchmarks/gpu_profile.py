"""Where the seconds of a computation on a GPU go; `tests/benchmarks/gpu.py` runs it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from itkstream.numerics.gpu.backend import Backend

__all__ = ["ClockedBackend"]


class ClockedBackend:
    """A device whose clock is read before and after each thing it does, which it ends first.

    What is neither a kernel of this package nor a way to the card or back is told as the rest:
    arithmetic of arrays, and the decisions of the processors.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def put(self, array: NDArray[Any]) -> Any:
        """As `Backend.put`."""
        return self._timed("put", lambda: self._backend.put(array))

    def get(self, array: Any) -> NDArray[Any]:
        """As `Backend.get`."""
        found: NDArray[Any] = self._timed("get", lambda: self._backend.get(array))
        return found

    def launch(self, kernel: str, size: tuple[int, ...], *arguments: Any) -> None:
        """As `Backend.launch`."""
        self._timed(kernel, lambda: self._backend.launch(kernel, size, *arguments))

    def facts(self, whole: float) -> dict[str, list[float]]:
        """Calls and seconds of each, the longest first, out of so many seconds."""
        told: dict[str, list[float]] = {
            name: [self.calls[name], round(seconds, 4)]
            for name, seconds in self.seconds.most_common()
        }
        return told | {"the rest": [1, round(whole - self.seconds.total(), 4)]}

    def _timed(self, name: str, do: Callable[[], Any]) -> Any:
        self._wait()
        began = time.perf_counter()
        found = do()
        self._wait()
        self.seconds[name] += time.perf_counter() - began
        self.calls[name] += 1
        return found

    def _wait(self) -> None:
        """Let the device end what it was told to do; one that is emulated has."""
        cuda = getattr(self._backend.xp, "cuda", None)
        if cuda is not None:
            cuda.runtime.deviceSynchronize()

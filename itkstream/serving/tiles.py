"""Tiles computed once and kept while there is room: those asked for last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["TileCache"]

_Compute: TypeAlias = Callable[[], NDArray[Any]]


class TileCache:
    """Arrays under keys, of so many bytes at most, computed by a few threads.

    Whoever asks for what another asked for already waits for that one; what fails is forgotten.
    """

    def __init__(self, most_bytes: int, threads: int) -> None:
        self._most = most_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._lock = Lock()
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._running: dict[Hashable, Future[NDArray[Any]]] = {}
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept now."""
        return self._bytes

    def get(self, key: Hashable, compute: _Compute) -> NDArray[Any]:
        """Return what is kept under a key, or compute it."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
            future = self._running.get(key)
            if future is None:
                future = self._pool.submit(self._compute, key, compute)
                self._running[key] = future
        return future.result()

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compute(self, key: Hashable, compute: _Compute) -> NDArray[Any]:
        try:
            tile = compute()
        except BaseException:
            with self._lock:
                del self._running[key]
            raise
        with self._lock:
            # At once: who asks in between finds one or the other.
            del self._running[key]
            self._keep(key, tile)
        return tile

    def _keep(self, key: Hashable, tile: NDArray[Any]) -> None:
        self._kept[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes

"""Functions that numba compiles: kept on disk, without the interpreter's lock, safe from Ctrl-C.

Compiling, and loading what was compiled before, hold a lock of llvmlite's. An exception that
Ctrl-C raises between taking and giving it back leaves it taken, and every other thread that loads
a function then waits forever. Exceptions of signals are raised in the main thread only, so another
thread does it, while the calling one waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from numba import njit

__all__ = ["compiled", "expanded", "helper", "inlined"]


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function where it is first called, for the types of that call.

    Parameters
    ----------
    function : callable
        What is compiled.
    **options
        Further ones of `numba.njit`.
    """
    dispatcher = njit(nogil=True, cache=True, **options)(function)
    # The method that numba calls where there is no function of these types yet.
    load = dispatcher._compile_for_args
    dispatcher._compile_for_args = lambda *args: _elsewhere(load, args)
    return dispatcher


def expanded(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function as a part of those that call it, before types are known.

    These are worked out again at each call: for functions of more than a few lines that takes
    longer than the rest of compiling. See `inlined`.
    """
    return compiled(function, inline="always", **options)


helper = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""A function that only compiled ones call; LLVM may put it in the place of the call.

Without the entry for Python, and without a file of its own (its code is kept with that of its
callers), the first run compiles a tenth less.
"""

inlined = njit(
    nogil=True,
    error_model="numpy",
    forceinline=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
"""A helper that LLVM puts in the place of each call; division by zero is infinite."""


def _elsewhere(load: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function in a thread of its own."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(load(*args))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="compiling").start()
    return result.result()

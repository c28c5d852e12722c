"""How functions are compiled that only compiled functions call.

Neither kind can be called from Python: without the entry for it, and without a file of its own
(its code is kept with that of its callers), the first run compiles a tenth less.
"""

from __future__ import annotations

from numba import njit

__all__ = ["helper", "inlined"]

helper = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""A function that its callers may call, or LLVM puts in its place."""

inlined = njit(
    nogil=True,
    error_model="numpy",
    forceinline=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
"""A function that LLVM puts in the place of each call; division by zero is infinite.

numba's own ``inline="always"`` does so before types are known, and works them out again at each
call: for functions of more than a few lines that takes longer than the rest of compiling.
"""

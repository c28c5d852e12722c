"""Workers that compute: threads, processes of this machine, jobs of a cluster; chosen here.

`Resources` says what a computation may use, `connected` gives the workers, and `session` keeps
the same workers for several computations.
"""

from __future__ import annotations

from itkstream.workers.connect import connected, session
from itkstream.workers.resources import Resources, check_count, free_memory

__all__ = ["Resources", "check_count", "connected", "free_memory", "session"]


def __dir__() -> list[str]:
    return __all__

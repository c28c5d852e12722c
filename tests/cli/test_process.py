"""What a command imports is not sought for garbage; what it frees it takes again."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from itkstream.cli.process import importing


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_what_was_imported_is_left_alone() -> None:
    with importing():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)


def test_garbage_is_sought_again_where_an_import_fails() -> None:
    with pytest.raises(ImportError), importing():
        import itkstream.nothing_of_this_name  # noqa: F401
    assert gc.isenabled()


_FAULTS = """
import resource, threading
import numpy as np
from itkstream.cli.process import keep_freed_memory

def take(faults):
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(20_000_000)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

keep_freed_memory()
found = []
thread = threading.Thread(target=take, args=[found])
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide themselves")
@pytest.mark.parametrize("said", [{}, {"MALLOC_ARENA_MAX": "8"}])
def test_pages_of_an_array_that_is_freed_serve_the_next(said: dict[str, str]) -> None:
    """In a thread too, unless the environment says otherwise."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", _FAULTS], env=plain | said, capture_output=True, check=True
    )
    first, second = map(int, run.stdout.split())
    assert (second < first / 4) == (not said)

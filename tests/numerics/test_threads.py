"""Slabs cover everything once, whatever the number of threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextvars import ContextVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.numerics.threads import (
    each_of,
    get_threads,
    over_slabs,
    processors,
    set_threads,
    threads_for,
    using_threads,
)


@given(st.integers(0, 30), st.integers(1, 9))
def test_slabs_cover_every_plane_once(length: int, threads: int) -> None:
    seen = np.zeros(length, int)

    def mark(start: int, stop: int) -> None:
        seen[start:stop] += 1

    with using_threads(threads):
        over_slabs(mark, length)
    assert (seen == 1).all()


def test_slabs_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meet(_start: int, _stop: int) -> None:
        meeting.wait()

    with using_threads(2):
        over_slabs(meet, 2)


def test_an_error_in_a_slab_is_raised() -> None:
    def fail(start: int, _stop: int) -> None:
        if start:
            raise ZeroDivisionError("plane")

    with using_threads(2), pytest.raises(ZeroDivisionError, match="plane"):
        over_slabs(fail, 4)


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_that_call_kernels_are_done_side_by_side(threads: int) -> None:
    """Whichever ends first; the first of those that fail is told."""
    meeting = threading.Barrier(threads, timeout=20)

    def work(part: int) -> int:
        over_slabs(lambda _start, _stop: None, 4)
        meeting.wait()
        if part < 0:
            raise ValueError(str(part))
        return 2 * part

    with using_threads(threads):
        assert each_of(work, (3, 5)) == [6, 10]
        with pytest.raises(ValueError, match="-3"):
            each_of(work, (-3, -5))


def test_what_holds_for_the_caller_holds_for_each_part() -> None:
    said: ContextVar[str] = ContextVar("said", default="nothing")
    token = said.set("this")
    try:
        with using_threads(2):
            assert each_of(lambda _: said.get(), range(3)) == ["this"] * 3
    finally:
        said.reset(token)


def test_the_number_is_restored_even_after_an_error() -> None:
    before = get_threads()
    with using_threads(before + 3):
        assert get_threads() == before + 3
    with pytest.raises(KeyError), using_threads(before + 3):
        raise KeyError
    assert get_threads() == before
    with using_threads(1):
        set_threads(0)
        assert get_threads() == 1


@pytest.mark.parametrize(("value", "wanted"), [("3", "3"), ("many", None), ("0", None)])
def test_the_environment_decides_first(value: str, wanted: str | None) -> None:
    code = (
        "import os; from itkstream.numerics.threads import get_threads;"
        "print(get_threads(), len(os.sched_getaffinity(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"ITKSTREAM_THREADS": value, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    threads, processors = done.stdout.split()
    assert threads == (wanted or processors)


def test_few_voxels_are_worth_one_thread() -> None:
    assert threads_for(256 * 256) == 1
    assert threads_for(256**3) == processors()

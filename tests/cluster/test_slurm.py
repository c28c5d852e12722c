"""A real Slurm: its jobs register a pair, are lost and replaced, and none stays in the queue.

``.ci/slurm`` brings one up on this host and runs these tests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

from itkstream.compute.execute import execute
from itkstream.errors import InputError, WorkersError
from itkstream.io import write_n5
from itkstream.phantoms import Motion, PhantomSettings, make_pair
from itkstream.workers.batch_systems import SYSTEMS
from itkstream.workers.replacement import queued_jobs

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("ITKSTREAM_SLURM" not in os.environ, reason="no Slurm: run .ci/slurm"),
]

JOBS: dict[str, Any] = {"cluster": "slurm", "cores": 1, "memory": "1GB"}


@pytest.fixture(autouse=True)
def own_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/itkstream/jobs"


def queue(state: str = "all") -> list[str]:
    """Numbers of the jobs in a state, those that wait, run or end by default."""
    states = [] if state == "all" else ["--states", state]
    command = ["squeue", "--noheader", "--format=%A", *states]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def queue_empties() -> None:
    # A cancelled job is listed as completing until Slurm has buried its processes.
    wait_until(lambda: not queue(), 60, f"jobs stay in the queue: {queue()}")


def slow_blocks(count: int) -> da.Array:
    def work(block: np.ndarray) -> np.ndarray:
        time.sleep(0.4)
        return block + 1

    return da.arange(count, chunks=1).map_blocks(work, dtype=int)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cancelled_job_is_replaced(processes: int) -> None:
    # The only job: without another in its place this would never end.
    cancelled: list[str] = []

    def cancel(done: int, _total: int) -> None:
        if done >= 4 and not cancelled:
            cancelled.extend(queue("running"))
            subprocess.run(["scancel", *cancelled], check=True)

    jobs = {**JOBS, "cores": processes, "processes": processes}
    found = execute(
        slow_blocks(20),
        **jobs,
        n_workers=processes,
        progress=cancel,
        # dask waits this long for a lost worker's return; its default is 15 s.
        config={"distributed.deploy.lost-worker-timeout": "1s"},
    )
    np.testing.assert_array_equal(found, np.arange(20) + 1)
    assert len(cancelled) == 1
    queue_empties()


def test_a_job_cancelled_before_its_worker_came_is_replaced() -> None:
    watcher = subprocess.Popen(
        "until jobs=$(squeue --noheader --format=%A) && [ -n \"$jobs\" ]; do :; done; "
        "scancel $jobs; echo $jobs",
        shell=True,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    np.testing.assert_array_equal(execute(slow_blocks(2), **JOBS, n_workers=1), [1, 2])
    assert watcher.communicate(timeout=10)[0].split()
    queue_empties()


def test_jobs_grow_with_the_work_and_no_further(tmp_path: Path) -> None:
    seen: list[int] = []
    found = execute(
        slow_blocks(60),
        tmp_path / "out.zarr",
        **JOBS,
        min_workers=1,
        max_workers=3,
        progress=lambda *_: seen.append(len(queued_jobs(SYSTEMS["slurm"]) or ())),
    )
    assert isinstance(found, zarr.Array)
    np.testing.assert_array_equal(found[:], np.arange(60) + 1)
    assert max(seen) == 3
    queue_empties()


def test_what_slurm_refuses_is_said() -> None:
    with pytest.raises(InputError, match=r"sbatch refused the job; check queue.*nope"):
        execute(slow_blocks(1), **JOBS, queue="nope")
    assert not queue()


def test_jobs_that_die_at_once_are_not_repeated_for_ever(own_logs: Path) -> None:
    python = {"python": "/no/such/python"}
    with pytest.raises(WorkersError, match=r"3 jobs ended before .*/no/such/python: No such file"):
        execute(slow_blocks(1), **JOBS, n_workers=1, config=python)
    assert list(own_logs.glob("itkstream-*.err"))
    queue_empties()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_jobs(number: signal.Signals) -> None:
    # Killed outright nobody cancels them: workers go when they find their scheduler gone.
    code = (
        "import time, dask.array as da\n"
        "from itkstream.cluster import execute\n"
        "def work(block):\n"
        "    time.sleep(0.5)\n"
        "    return block\n"
        "array = da.zeros(200, chunks=1).map_blocks(work, dtype=float)\n"
        "execute(array, cluster='slurm', cores=1, memory='1GB', n_workers=2,\n"
        "        progress=lambda *counts: print(*counts, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        next(line for line in run.stdout if line.startswith("4 "))
        assert len(queue("running")) == 2
        run.send_signal(number)
        # Ends within seconds, and not as if all were well.
        assert run.wait(timeout=20) != 0
    queue_empties()


def files(folder: Path) -> dict[str, bytes]:
    """The results; what tells times, notes and the page of the report, is left out."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {
        name: data for name, data in found.items() if Path(name).suffix not in (".json", ".html")
    }


def test_register_survives_scancel_with_the_same_bits(tmp_path: Path) -> None:
    motion = Motion(rotation_deg=2, stretch=0.02, shear=0.01, shift=0.04, warp_um=2)
    pair = make_pair(PhantomSettings((160, 144, 96), (1.0, 1.0, 1.3), 4, motion=motion))
    for name, image in (("fix.n5", pair.fixed), ("mov.n5", pair.moving)):
        write_n5(tmp_path / name, "s0", image.read(), image.grid, chunks=(48, 48, 48))
    command = [sys.executable, "-m", "itkstream", "register", "fix.n5/s0", "mov.n5/s0"]
    command += ["--radii", "2", "6", "--match-threshold", "0.5", "--out"]
    local = subprocess.run(
        [*command, "local"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert local.returncode == 0, local.stderr
    slurm = "--cluster slurm --cores 1 --memory 2GB --walltime 0:20 --min-workers 2 --max-workers 2"
    with subprocess.Popen(
        [*command, "slurm", *slurm.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line)
            if re.search(r"\d of \d+  deformation", line):  # as the step begins
                time.sleep(2)  # its block is being computed by one of the two
                cancelled = queue("running")[0]
                subprocess.run(["scancel", cancelled], check=True)
        text = "".join(lines)
        assert run.wait() == 0, run.stderr.read() if run.stderr else ""
    assert "2 to 2 workers; dashboard: http://" in text
    assert cancelled not in queue("running")
    expected = files(tmp_path / "local")
    assert expected
    assert files(tmp_path / "slurm") == expected
    queue_empties()

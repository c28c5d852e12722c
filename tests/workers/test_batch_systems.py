"""Walltimes mean hours everywhere, and the machine's batch system is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itkstream.errors import InputError
from itkstream.workers.batch_systems import SYSTEMS, clock, find_batch_system, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3:59", 14340),
        ("2:00", 7200),
        ("0:00:30", 30),
        ("03:59:07", 14347),
        ("120:00", 432000),
        ("1-12:00:00", 129600),
    ],
)
def test_hours_come_first(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "2h", "1:60", "0:00", "-1:00", "1:2:3:4", 239, None])
def test_other_walltimes_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match="walltime must be text such as '3:59'"):
        seconds_of(text)


@given(st.integers(1, 10**7), st.sampled_from(sorted(SYSTEMS)))
def test_a_clock_says_the_same_time(seconds: int, name: str) -> None:
    hours, rest = divmod(seconds, 3600)
    told = clock(f"{hours}:{rest // 60:02d}:{rest % 60:02d}", SYSTEMS[name])
    if name == "lsf":  # no seconds there, so the next whole minute
        assert told.count(":") == 1
        assert 0 <= seconds_of(told) - seconds < 60
    else:
        assert told.count(":") == 2
        assert seconds_of(told) == seconds


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ([], None),
        (["sbatch"], "slurm"),
        (["bsub"], "lsf"),
        (["qsub"], "pbs"),
        (["qsub", "qconf"], "sge"),
        (["qsub", "msub"], "moab"),
        (["condor_submit"], "htcondor"),
        (["oarsub"], "oar"),
    ],
)
def test_the_command_on_the_path_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], found: str | None
) -> None:
    for name in there:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_batch_system() == (SYSTEMS[found] if found else None)

"""A machine with every batch system's commands, and nothing of the user's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

COMMANDS = ("sbatch", "bsub", "qsub", "condor_submit", "oarsub", "msub")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the whole PATH; commands are there and fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text("#!/bin/sh\necho 'no such queue' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No presets or logs but the test's own."""
    for name in ("ITKSTREAM_CLUSTERS", "LSF_ENVDIR", "LSF_CONFDIR", "PBS_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def python_environment() -> dict[str, str]:
    """For a Python program that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

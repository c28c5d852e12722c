"""Fields larger than the memory a process may have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "stream_field.py"


@pytest.mark.slow
# 64 MB of vectors are 128 MB as doubles, and as much again in ITK; the libraries need 200 MB.
# `python tests/io/transforms/stream_field.py FILE 2048 512` takes minutes: 2 GB within 512 MB.
@pytest.mark.parametrize("name", ["t.h5", "t.nrrd", "t.ome.zarr"])
def test_a_field_streams(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / name), "64", "320"],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "error 0.0e+00" in done.stdout

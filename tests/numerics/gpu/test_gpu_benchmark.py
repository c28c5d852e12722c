"""The benchmark of the GPU runs, untimed, on the kernels as C++."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from emulated import EmulatedBackend, needs_compiler

from itkstream.numerics.gpu import backend as backends
from itkstream.numerics.gpu import dispatch, engine

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu


def test_it_says_why_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_backend", lambda: None)
    lines: list[str] = []
    gpu.main([], lines.append)
    assert lines == ["no GPU was measured: CuPy is not installed, or sees no GPU"]


@needs_compiler
def test_it_checks_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EmulatedBackend()
    for module in (backends, dispatch, engine):
        monkeypatch.setattr(module, "find_backend", lambda: device)
    lines: list[str] = []
    sides = {"side": 30, "stored": 32, "compared": 48, "operated": 40}
    gpu.main([f"--{name}={side}" for name, side in sides.items()], lines.append)
    found = {name: facts for line in lines for name, facts in json.loads(line).items()}
    compared = found["compared"]
    assert compared["repeats"]
    assert compared["between"][0] < 0.02
    assert compared["between"][1] < 0.1
    # The truth is the truth: most of three voxels is found in a block as small as this.
    assert compared["error_gpu"][0] < 0.5
    assert "stored" in found
    assert found["cube"]["seconds_on_card"] <= found["cube"]["seconds"]
    assert {"put", "get", "warp_nodes", "the rest"} <= found["cube"]["calls_and_seconds"].keys()
    operations = [facts for facts in found.values() if "same_bits" in facts]
    assert len(operations) == 8
    assert all(facts["same_bits"] for facts in operations)

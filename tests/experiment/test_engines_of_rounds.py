"""All rounds of an experiment are registered with the engine that began it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from itkstream.errors import InputError
from itkstream.experiment.folder import ExperimentFolder, read_experiment
from itkstream.workers import Resources


def test_an_experiment_goes_on_with_its_engine_alone(
    with_gpus: Callable[..., None], tmp_path: Path
) -> None:
    """Also where the round that is next was not begun, whose folder knows no engine."""
    with_gpus(1)
    out = tmp_path / "out"

    def run(said: Resources, complete: bool = False) -> str | None:
        folder = ExperimentFolder(out, "key", overwrite=False)
        with folder.locked():
            found = folder.with_engine(said).engine
            folder.note({}, complete)
        return found

    assert run(Resources(engine="auto")) == "gpu"
    before = read_experiment(out)
    with pytest.raises(InputError, match="was begun with engine='gpu'"):
        run(Resources())
    assert read_experiment(out) == before
    assert run(Resources(engine="auto")) == "gpu"
    assert run(Resources(engine="cpu"), complete=True) == "cpu"
    # What is complete is looked through again, whatever is said.
    assert run(Resources(), complete=True) is None
    assert read_experiment(out)["engine"] == "gpu+cpu"

"""Everything public shows an example, and all examples run, in one folder of small images."""

from __future__ import annotations

import doctest
import inspect
import io
import warnings
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import pytest
from test_docstrings import public_names

import itkstream
from itkstream.phantoms import (
    ExperimentSettings,
    Motion,
    PhantomSettings,
    make_atlas,
    make_experiment,
)

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

FIRST = ("register", "register_rounds", "register_atlas")
"""The examples whose folders others open."""


def public_things() -> dict[str, Any]:
    """Public classes and functions by their names; those that make folders come first."""
    modules = {name: getattr(itkstream, name) for name in itkstream.__all__}
    modules = {name: thing for name, thing in modules.items() if inspect.ismodule(thing)}
    found = {name: getattr(itkstream, name) for name in (*FIRST, *itkstream.__all__)}
    for module, listed in modules.items():
        found |= {f"{module}.{name}": getattr(listed, name) for name in listed.__all__}
    named: dict[Any, str] = {}
    for name, thing in found.items():
        if inspect.isfunction(thing) or inspect.isclass(thing):
            # One that several modules name is one.
            named.setdefault(thing, name)
    return {name: thing for thing, name in named.items()}


def examples_of(name: str, names: dict[str, Any]) -> list[doctest.DocTest]:
    """The examples of a public thing and of its methods."""
    finder = doctest.DocTestFinder()
    home = inspect.getmodule(public_things()[name])
    tests = finder.find(public_things()[name], name, home, globs=names)
    return [test for test in tests if test.examples]


# What they take is made by a run.
WITHIN_A_RUN = {"InitialSearch.search", "RansacAffine.attempt"}


def test_everything_public_shows_an_example() -> None:
    things = public_things()
    bare = [name for name in things if not examples_of(name, {})]
    assert not bare
    assert len(things) > 150
    methods = [name for name in public_names() if name.rpartition(".")[2].islower()]
    bare = [name for name in methods if "Examples\n" not in (inspect.getdoc(locate(name)) or "")]
    assert {".".join(name.rsplit(".", 2)[-2:]) for name in bare} == WITHIN_A_RUN


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `itkstream examples --out examples` writes, smaller."""
    folder = tmp_path_factory.mktemp("workshop")
    motion = Motion(rotation_deg=2, stretch=0.01, shear=0.01, shift=0.03, warp_um=1.5)
    tissue = PhantomSettings((64, 64, 40), (1.0, 1.0, 1.2), 3, radii_um=(2.5, 5.0), motion=motion)
    make_experiment(ExperimentSettings(rounds=2, tissue=tissue)).write(folder / "examples")
    make_atlas((40, 36, 32)).write(folder / "examples" / "atlas")
    return folder


@pytest.mark.slow
def test_all_examples_run(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names that the docstring of the package gives."""
    monkeypatch.chdir(workshop)
    names = {"itkstream": itkstream, "np": np}
    names["fixed"] = itkstream.open_image("examples/round1.ome.zarr")
    names["moving"] = itkstream.open_image("examples/round2.ome.zarr")
    told = io.StringIO()
    for name in public_things():
        if name not in FIRST and "registration" not in names:
            names["registration"] = itkstream.Registration.open("registered")
            names["advice"] = itkstream.advise(names["fixed"], names["moving"])
        for test in examples_of(name, names):
            runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
            with warnings.catch_warnings(action="error", category=DeprecationWarning):
                runner.run(test, out=told.write)
    assert not told.getvalue(), told.getvalue()

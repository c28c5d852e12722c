"""Everything public is documented in numpydoc: sections, parameters in order, returns."""

import inspect
import pkgutil
from importlib import import_module

import pytest
from numpydoc.validate import validate

import itkstream

CHECKS = {"GL03", "GL05", "GL07", "GL08", "SS02", "SS03", "PR01", "PR02", "PR03", "RT01"}


def public_names():
    """Dotted names of all public classes, functions and methods."""
    for module in pkgutil.walk_packages(itkstream.__path__, "itkstream."):
        # The docstrings of commands are their help texts.
        if module.name in ("itkstream.cli.app", "itkstream.cli.transforms"):
            continue
        home = import_module(module.name)
        for name in getattr(home, "__all__", ()):
            thing = getattr(home, name)
            if getattr(thing, "__module__", None) != module.name:
                continue
            if inspect.isfunction(thing):
                yield f"{module.name}.{name}"
            # A protocol says in one line what its members are; those who fit it say the rest.
            if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
                yield f"{module.name}.{name}"
                yield from (f"{module.name}.{name}.{member}" for member in _methods(thing))


def _methods(kind):
    """Public methods the class itself defines; properties have neither parameters nor returns."""
    callables = (classmethod, staticmethod, type(_methods))
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and isinstance(value, callables)
    ]


@pytest.mark.parametrize("name", sorted(set(public_names())))
def test_docstring_follows_numpydoc(name):
    report = validate(name)
    # A generator says what it yields instead.
    checks = CHECKS - {"RT01"} if "Yields" in report["docstring"] else CHECKS
    assert not [error for error in report["errors"] if error[0] in checks]

"""Everything public is documented in numpydoc: sections, parameters in order, returns."""

import inspect

import pytest
from numpydoc.validate import validate

import itkstream

CHECKS = {"GL03", "GL05", "GL07", "GL08", "SS02", "SS03", "PR01", "PR02", "PR03", "RT01"}


def public_names():
    """Where public classes, functions and methods are defined: all that the package names."""
    modules = [itkstream, *filter(inspect.ismodule, map(_named, itkstream.__all__))]
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                yield f"{thing.__module__}.{name}"
            # A protocol says in one line what its members are; those who fit it say the rest.
            if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
                yield f"{thing.__module__}.{name}"
                yield from (f"{thing.__module__}.{name}.{m}" for m in _methods(thing))


def _named(name):
    return getattr(itkstream, name)


def _methods(kind):
    """Public methods the class itself defines; properties have neither parameters nor returns.

    What a method of a base class says is not said again where it is overridden.
    """
    callables = (classmethod, staticmethod, type(_methods))
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and isinstance(value, callables)
        if not _documented_above(kind, name)
    ]


def _documented_above(kind, name):
    """The base class says it with its sections; an heir's line may add why."""
    return any(name in vars(base) for base in kind.__mro__[1:])


@pytest.mark.parametrize("name", sorted(set(public_names())))
def test_docstring_follows_numpydoc(name):
    report = validate(name)
    # A generator says what it yields instead.
    checks = CHECKS - {"RT01"} if "Yields" in report["docstring"] else CHECKS
    assert not [error for error in report["errors"] if error[0] in checks]

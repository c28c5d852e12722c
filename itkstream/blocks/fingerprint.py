"""Names of computations: of this package's code, a function, and all that it is given.

The same computation has the same name in every process, so that a run that was interrupted knows
its results again. Only values of the types listed here can be named so; a computation that is
given any other gets a random name, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any
from uuid import uuid4

import numpy as np
from dask.tokenize import TokenizationError, normalize_token, tokenize

from itkstream.io.storage.locations import Location

__all__ = ["code_version", "name_computation"]

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16

# Those that make results; how they are run, and what a command is called, changes no bit.
_ROOMS = ("geometry", "numerics", "io", "blocks", "estimate", "apply", "judge", "registration")

# dask's token of these holds all that they are. Beside them: sequences, mappings and partial calls,
# dataclasses and attrs classes of such values, and whatever has a token of its own.
_NAMED = (
    *(type(None), bool, int, float, complex, str, bytes, slice, range, Enum, PurePath),
    *(np.generic, np.dtype, np.ndarray, np.ufunc),
    *(type, FunctionType, BuiltinFunctionType),
)


@cache
def code_version() -> str:
    """The version of this package and a digest of the sources that make its results."""
    package = Path(__file__).parent.parent
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for file in sorted(file for room in _ROOMS for file in (package / room).rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(file.read_bytes() + b"\0")
    return f"{version('itkstream')}-{digest.hexdigest()}"


def name_computation(function: Callable[..., Any], **given: Any) -> str:
    """A name for what a function makes of what it is given; random where a value has none."""
    try:
        parts = [_spell(value, name) for name, value in given.items()]
        token = tokenize(code_version(), function, parts, ensure_deterministic=True)
    except (_UnnamedError, TokenizationError) as error:
        logger.warning(
            "%s has a random name, so that a run of it that is stopped starts anew: %s, which "
            "another process does not know again. Give numpy, dask or Zarr arrays, or what "
            "itkstream.open_image opens",
            *(function.__name__, error),
        )
        token = uuid4().hex
    return f"{function.__name__.lstrip('_')}-{token}"


class _UnnamedError(TypeError):
    """A value of a type that is not listed."""


def _spell(value: Any, where: str) -> Any:
    """A value in listed types; `where` is what a message calls it."""
    if hasattr(value, "__dask_tokenize__") or isinstance(value, _NAMED):
        return value
    if isinstance(value, (tuple, list)):
        return [_spell(part, f"{where}[{k}]") for k, part in enumerate(value)]
    if isinstance(value, Mapping):
        return [(key, _spell(part, f"{where}[{key!r}]")) for key, part in value.items()]
    if isinstance(value, partial):
        return _spell((value.func, value.args, value.keywords), where)
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    if library == "zarr" and Location.of_store(value.store) is None:
        raise _UnnamedError(f"{where} is a Zarr array on no disk and in no object store")
    if library in ("zarr", "SimpleITK"):  # by what is registered below
        return value
    names = _field_names(kind)
    if names is None:
        raise _UnnamedError(f"{where} is a {kind.__module__}.{kind.__qualname__}")
    return kind, [_spell(getattr(value, name), f"{where}.{name}") for name in names]


def _field_names(kind: type[Any]) -> list[str] | None:
    """The fields of a dataclass or an attrs class."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    attributes = getattr(kind, "__attrs_attrs__", None)
    return attributes and [attribute.name for attribute in attributes]


@normalize_token.register_lazy("zarr")
def _know_zarr() -> None:
    import zarr

    from itkstream.io.storage.zarr_arrays import zarr_token

    normalize_token.register(zarr.Array, zarr_token)


@normalize_token.register_lazy("SimpleITK")
def _know_itk() -> None:
    import SimpleITK as sitk

    from itkstream.geometry.itk_bridge import transform_token

    normalize_token.register(sitk.Transform, transform_token)

"""The library of Parquet files, which not every installation has."""

from __future__ import annotations

from typing import Any

from itkstream.errors import InputError

__all__ = ["import_pyarrow"]


def import_pyarrow() -> Any:
    """Import pyarrow, or say how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow: pip install 'itkstream[parquet]', or use .csv or .npy"
        ) from error
    return pyarrow

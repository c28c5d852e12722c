"""Places to write to: claimed before work begins, never taken from somebody else's results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itkstream.errors import ExistingOutputError
from itkstream.io.zarr_arrays import is_zarr_array, zarr_attributes

__all__ = ["check_folder", "claim_file", "claim_folder", "claim_store", "write_text"]

_OME_KEYS = {"ome", "multiscales"}


def claim_store(folder: Path, overwrite: bool) -> None:
    """Clear the place of a new Zarr store; only an array or an OME-Zarr group is ever removed.

    A plain Zarr group may hold many images, so it is never replaced.

    Parameters
    ----------
    folder : Path
        Where the store will be.
    overwrite : bool
        Whether an array or OME-Zarr group that is there may be replaced.

    Raises
    ------
    ExistingOutputError
        Where something is there that may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_zarr_array(folder) and not _OME_KEYS & zarr_attributes(folder).keys():
        raise ExistingOutputError(
            f"{folder} is there and is no Zarr array or OME-Zarr group, so it is never replaced; "
            "choose another path"
        )
    if not overwrite:
        raise ExistingOutputError(
            f"{folder} is there already; choose another path or pass overwrite=True to replace it"
        )
    shutil.rmtree(folder)


def check_folder(folder: Path, proof: str, overwrite: bool) -> Path:
    """See whether a folder may take the results of one run; change nothing.

    Parameters
    ----------
    folder : Path
        New, or empty.
    proof : str
        A file that shows an earlier run of the same kind, whose results may be replaced.
    overwrite : bool
        Whether to replace them.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    ExistingOutputError
        Where the folder holds something that may not be replaced.
    """
    target = folder.expanduser().resolve()
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not (target / proof).is_file():
        raise ExistingOutputError(
            f"{target} holds something other than an earlier run (there is no {proof} in it), "
            "so it is never replaced; choose another folder"
        )
    if not overwrite:
        raise ExistingOutputError(
            f"{target} holds an earlier run; choose another folder or ask to overwrite it"
        )
    return target


def claim_folder(folder: Path, proof: str, overwrite: bool) -> Path:
    """Make a folder for the results of one run.

    Parameters
    ----------
    folder : Path
        New, or empty.
    proof : str
        A file that shows an earlier run of the same kind, whose results may be replaced.
    overwrite : bool
        Whether to replace them.

    Returns
    -------
    Path
        The folder, absolute and empty.

    Raises
    ------
    ExistingOutputError
        Where the folder holds something that may not be replaced.
    """
    target = check_folder(folder, proof, overwrite)
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    return target


@contextmanager
def claim_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A file, or a store, that appears under its name only when it is complete.

    Parameters
    ----------
    target : Path
        The file's name.
    overwrite : bool
        Whether a file that is there may be replaced.

    Yields
    ------
    Path
        Where to write it, a file or a new folder; moved to its name at the end, removed after an
        error.

    Raises
    ------
    ExistingOutputError
        Where the file is there and may not be replaced.
    """
    if target.exists() and not overwrite:
        raise ExistingOutputError(
            f"{target} is there already; choose another path or pass overwrite=True to replace it"
        )
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file at once: it is complete or not there.

    Parameters
    ----------
    target : Path
        The file; replaced if it is there.
    text : str
        Its contents.
    """
    with claim_file(target, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")

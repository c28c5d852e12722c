"""Filling a stored array with blocks, so that a run that was killed can be continued.

The notes of `itkstream.ledger` say which blocks are written; whatever their files do not bear out
is computed again. Blocks are written by whoever computes them, each its own files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask.tokenize import tokenize
from numpy.typing import NDArray

from itkstream.errors import (
    BlockErrors,
    BlockFailure,
    ExistingOutputError,
    InterruptedRunError,
    OutputError,
)
from itkstream.fingerprint import LEDGER_FOLDER
from itkstream.io.chunk_files import ChunkFiles, Region, Sums, remove_partial_files
from itkstream.io.locations import Location
from itkstream.ledger import Header, Ledger, Lock, Records, still_held

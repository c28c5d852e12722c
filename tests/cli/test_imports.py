"""What a command imports is not sought for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from itkstream.cli.process import importing


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_what_was_imported_is_left_alone() -> None:
    with importing():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)


def test_garbage_is_sought_again_where_an_import_fails() -> None:
    with pytest.raises(ImportError), importing():
        import itkstream.nothing_of_this_name  # noqa: F401
    assert gc.isenabled()

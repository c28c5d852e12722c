"""How fast blocks are done, in words."""

from __future__ import annotations

import pytest

from itkstream.progress.drawing import said_rate


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [(30, 10.0, "3 a second"), (1, 55.0, "55 s a block"), (2, 600.0, "5 min a block")],
)
def test_slow_blocks_are_told_by_their_time(done: int, seconds: float, said: str) -> None:
    assert said_rate(done, seconds) == said
